#version 460
#include "lib/common.glsl"
#include "lib/flat.glsl"
// Takes listed logits out of their rows, so that they are selected by whoever takes them: -inf stays behind.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(push_constant, scalar) uniform Push {
    uint64_t x;         // f32 [rows, count]
    uint64_t list;      // u32: how many, unused, then (row, token) for each
    uint64_t taken;     // f32 for each
    uint count;
} p;
void main() {
    uint i = flat_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
    if (i >= U32(p.list).v[0]) return;
    uvec2 place = U32x2(p.list).v[i + 1];
    uint64_t row = p.x + 4 * uint64_t(place.x) * p.count;
    F32(p.taken).v[i] = F32(row).v[place.y];
    F32(row).v[place.y] = -uintBitsToFloat(0x7F800000u);
}
