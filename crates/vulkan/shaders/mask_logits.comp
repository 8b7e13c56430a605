#version 460
#include "lib/common.glsl"
// Logits of tokens that a row's mask does not allow become -inf; rows without a mask stay.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(push_constant, scalar) uniform Push {
    uint64_t x;         // f32 [rows, count]
    uint64_t masks;     // u32 [rows]: the word at which a row's mask begins, 0 for none; then the masks, 32 tokens a word
    uint count;
} p;
void main() {
    uint row = gl_WorkGroupID.y, i = gl_WorkGroupID.x * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
    uint mask = U32(p.masks).v[row];
    if (mask == 0 || i >= p.count) return;
    if (((U32(p.masks).v[mask + i / 32] >> (i % 32)) & 1) == 0)
        F32(p.x + 4 * uint64_t(row) * p.count).v[i] = -uintBitsToFloat(0x7F800000u);
}
