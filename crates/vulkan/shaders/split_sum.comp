#version 460
#include "lib/common.glsl"
// Adds the sums of a matrix product's splits: y = sum, y += sum, or h = sum in f16.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint OUTPUT = 0;      // 0 f32, 1 add to f32, 2 f16
ARGUMENTS {
    uint64_t parts;     // f32 [splits, tokens, rows]
    uint64_t y;         // f32 or f16 [tokens, stride]
    uint rows, tokens, stride, splits;
} p;
void main() {
    uint row = gl_GlobalInvocationID.x, token = gl_WorkGroupID.y;
    if (row >= p.rows) return;
    float sum = 0.0;
    for (uint s = 0; s < p.splits; s++) sum += F32(p.parts + 4 * ((uint64_t(s) * p.tokens + token) * p.rows + row)).v[0];
    uint64_t at = uint64_t(token) * p.stride + row;
    if (OUTPUT == 2) F16(p.y + 2 * at).v[0] = float16_t(clamp(sum, -65504.0, 65504.0));
    else F32(p.y + 4 * at).v[0] = sum + (OUTPUT == 1 ? F32(p.y + 4 * at).v[0] : 0.0);
}
