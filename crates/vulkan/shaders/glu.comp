#version 460
#include "lib/common.glsl"
// y = act(y) * up: the unfused gated unit, for gate and up weights of different types.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint ACTIVATION = 0;
layout(push_constant, scalar) uniform Push { uint64_t y, up; uint count; } p;
float activate(float x) {
    if (ACTIVATION == 0) return x / (1.0 + exp(-x));
    float u = 0.7978845608 * (x + 0.044715 * x * x * x);
    return x / (1.0 + exp(-2.0 * u));
}
void main() {
    uint i = gl_GlobalInvocationID.x;
    if (i < p.count) F32(p.y).v[i] = activate(F32(p.y).v[i]) * F32(p.up).v[i];
}
