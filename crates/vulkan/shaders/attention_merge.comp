#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
// Puts the splits of attention_decode together, in order: one workgroup a (head, row). The result is written as f32, quantized or as f16.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint SPLIT = 256;
layout(constant_id = 2) const uint HEAD_DIM = 64;
layout(constant_id = 3) const uint OUTPUT = 0;      // 0 f32, 1 quantized, 2 f16
layout(push_constant, scalar) uniform Push {
    uint64_t partial;   // f32 [rows, heads, splits, HEAD_DIM + 2]
    uint64_t batch;
    uint64_t y;         // f32 or f16 [rows, heads * HEAD_DIM], 0 for none
    uint64_t q, meta;   // quantized, 0 for none
    uint splits;
    uint window;
} p;
shared float values[512];
#include "lib/quantize.glsl"

void main() {
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    uint heads = gl_NumWorkGroups.x, record = HEAD_DIM + 2, base = (row * heads + head) * p.splits * record;
    uint last = Rows(p.batch).v[row].position + 1;
    uint first = p.window != 0 && last > p.window ? last - p.window : 0;
    uint begin = first / SPLIT, end = (last + SPLIT - 1) / SPLIT;
    F32 x = F32(p.partial);
    float most = -1.0e30;
    for (uint s = begin; s < end; s++) most = max(most, x.v[base + s * record + HEAD_DIM]);
    float sum = 0.0;
    for (uint s = begin; s < end; s++)
        sum += exp(x.v[base + s * record + HEAD_DIM] - most) * x.v[base + s * record + HEAD_DIM + 1];
    for (uint i = t; i < HEAD_DIM; i += n) {
        float o = 0.0;
        for (uint s = begin; s < end; s++)
            o += exp(x.v[base + s * record + HEAD_DIM] - most) * x.v[base + s * record + i];
        o /= sum;
        values[i] = o;
        if (OUTPUT == 0) F32(p.y).v[(row * heads + head) * HEAD_DIM + i] = o;
        if (OUTPUT == 2) F16(p.y).v[(row * heads + head) * HEAD_DIM + i] = float16_t(o);
    }
    if (OUTPUT != 1) return;
    barrier();
    for (uint i = t; i < HEAD_DIM / 4; i += n)
        quantize_group(p.q, p.meta, (row * heads + head) * (HEAD_DIM / 32) + i / 8, (i / 8) * 32, i % 8);
}
