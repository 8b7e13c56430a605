#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
// x[row] = table[token] * scale, one thread a column, and where QUANTIZE says so what the next block's first products read: x * next norm's
// weight, quantized or as f32, with the sums of squares of x, one a group of 32 columns.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint QUANTIZE = 0;    // 2 quantizes x times `next`, with sums of squares; 3 the same as f32
ARGUMENTS {
    uint64_t wq, wh, ws;
    uint64_t batch;     // rows
    uint64_t x;         // f32 [rows, width]
    uint64_t next;      // f32 [width]: weight of the next norm, 0 for none
    uint64_t q, qmeta, qsquares;
    uint width;
    float scale;
} p;
shared float values[256];
#include "lib/quantize.glsl"

#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#include "lib/floats.glsl"
float embedded(uint token, uint column) { return weight_at(p.wq, token * p.width + column); }
#else
#include "lib/weights.glsl"
float embedded(uint token, uint column) {
    Group group = decode(Planes(p.wq, p.wh, p.ws), token * (p.width / 32) + column / 32);
    uint i = column % 32, word = 0;
    [[unroll]] for (uint j = 0; j < 8; j++)
        if (i / 4 == j) word = group.w[j];
    float w = float(int(word << (24 - 8 * (i % 4))) >> 24);
    return i < 16 ? group.d.x * w + group.m.x : group.d.y * w + group.m.y;
}
#endif

void main() {
    uint row = gl_WorkGroupID.y, t = gl_LocalInvocationID.x, column = gl_WorkGroupID.x * gl_WorkGroupSize.x + t;
    bool inside = column < p.width;
    uint at = row * p.width + column, groups = (p.width + 31) / 32, group = column / 32;
    float v = inside ? p.scale * embedded(Rows(p.batch).v[row].token, column) : 0.0;
    if (inside) F32(p.x).v[at] = v;
    if (QUANTIZE == 0) return;
    float scaled = inside ? v * F32(p.next).v[column] : 0.0;
    if (QUANTIZE == 3 && inside) F32(p.q).v[at] = scaled;
    if (gl_SubgroupSize >= 32) {
        float sum = v * v;
        [[unroll]] for (uint x = 16; x > 0; x /= 2) sum += subgroupShuffleXor(sum, x);
        if (inside && t % 32 == 0) F32(p.qsquares).v[row * groups + group] = sum;
        // Groups are whole or absent.
        if (QUANTIZE == 2 && group < groups) quantize_lanes(p.q, p.qmeta, row * groups + group, scaled);
        return;
    }
    values[t] = v * v;
    barrier();
    if (inside && t % 32 == 0) {
        float sum = 0.0;
        [[unroll]] for (int j = 0; j < 32; j++) sum += values[t + j];
        F32(p.qsquares).v[row * groups + group] = sum;
    }
    if (QUANTIZE == 3) return;
    barrier();
    values[t] = scaled;
    barrier();
    uint own = (gl_WorkGroupID.x * gl_WorkGroupSize.x) / 32 + t / 8;
    if (t < gl_WorkGroupSize.x / 4 && own < groups) quantize_group(p.q, p.qmeta, row * groups + own, (t / 8) * 32, t % 8);
}
