#version 460
#include "lib/common.glsl"
#include "lib/flat.glsl"
// The unfused gated unit, for gate and up weights of different types: y = act(y) * up, or h = act(y) * up in f16.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint ACTIVATION = 0;
layout(constant_id = 2) const uint HAS_HALF = 0;
ARGUMENTS { uint64_t y, up, h; uint count; } p;
#include "lib/activation.glsl"
void main() {
    uint i = flat_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
    if (i >= p.count) return;
    float r = activate(F32(p.y).v[i]) * F32(p.up).v[i];
    if (HAS_HALF != 0) F16(p.h).v[i] = float16_t(clamp(r, -65504.0, 65504.0));
    else F32(p.y).v[i] = r;
}
