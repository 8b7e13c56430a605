#version 460
#include "lib/common.glsl"
#include "lib/flat.glsl"
// x = cap * tanh(x / cap)
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
ARGUMENTS { uint64_t x; uint count; float cap; } p;
void main() {
    uint i = flat_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
    if (i < p.count) F32(p.x).v[i] = p.cap * tanh(F32(p.x).v[i] / p.cap);
}
