#version 460
#include "lib/common.glsl"
// RMS norm of rows: one workgroup a row.
//   y = norm(x) * w            stored as f32, or added to y (residual) with ACCUMULATE
//   q = y quantized            where `q` is given
//   y as f16                   with HAS_HALF
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint ACCUMULATE = 0;
// Which optional addresses are given. Constants, since drivers may load ahead of a run-time test.
layout(constant_id = 2) const uint HAS_WEIGHT = 1;
layout(constant_id = 3) const uint HAS_Y = 1;
layout(constant_id = 4) const uint HAS_Q = 1;
layout(constant_id = 5) const uint LISTED = 0;
layout(constant_id = 6) const uint HAS_HALF = 0;
ARGUMENTS {
    uint64_t x;         // f32 [rows, width]
    uint64_t weight;    // f32 [width]; 0 leaves x as it is (quantization alone)
    uint64_t y;         // f32 or f16 [rows, width], 0 for none
    uint64_t q, meta;   // quantized, 0 for none
    uint64_t rows;      // u32: rows to take, in order; 0 takes all
    uint width;
    float eps;
} p;
shared float partial[64];
shared float values[64 * 32];
#include "lib/quantize.glsl"

void main() {
    uint out_row = gl_WorkGroupID.x, t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    uint row = LISTED != 0 ? U32(p.rows).v[out_row] : out_row;
    uint base = row * p.width, out_base = out_row * p.width;
    float inverse = 1.0;
    if (HAS_WEIGHT != 0) {
        float sum = 0.0;
        for (uint i = t; i < p.width; i += n) sum += F32(p.x).v[base + i] * F32(p.x).v[base + i];
        sum = subgroupAdd(sum);
        if (subgroupElect()) partial[gl_SubgroupID] = sum;
        barrier();
        sum = 0.0;
        for (uint i = 0; i < gl_NumSubgroups; i++) sum += partial[i];
        inverse = inversesqrt(sum / float(p.width) + p.eps);
    }
    // Chunks of n columns (n a multiple of 32), so that each chunk holds whole groups.
    for (uint chunk = 0; chunk < p.width; chunk += n) {
        uint i = chunk + t;
        float v = 0.0;
        if (i < p.width) {
            v = F32(p.x).v[base + i] * inverse * (HAS_WEIGHT != 0 ? F32(p.weight).v[i] : 1.0);
            if (HAS_HALF != 0) F16(p.y).v[out_base + i] = float16_t(clamp(v, -65504.0, 65504.0));
            if (HAS_Y != 0) F32(p.y).v[out_base + i] = v + (ACCUMULATE != 0 ? F32(p.y).v[out_base + i] : 0.0);
        }
        if (HAS_Q != 0) {
            values[t] = v;
            barrier();
            uint group = chunk / 32 + t / 8;
            if (t < n / 4 && group < p.width / 32)
                quantize_group(p.q, p.meta, out_row * (p.width / 32) + group, (t / 8) * 32, t % 8);
            barrier();
        }
    }
}
