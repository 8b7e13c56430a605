#version 460
#include "lib/common.glsl"
// Softmax attention of a row over all rows of its sequence, which lie in the batch: one workgroup a head of a row. Keys come in chunks with a
// running maximum and sum; within a chunk a thread has some keys, then some values of all keys.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint HEADS = 1;
layout(constant_id = 2) const uint DIM = 32;
layout(constant_id = 3) const uint HAS_HALF = 0;
ARGUMENTS {
    uint64_t qkv;       // f32 [rows, 3, heads, dim]
    uint64_t batch;     // rows
    uint64_t y;         // f32 or f16 [rows, heads, dim]
    float scale;
} p;
// A row of the batch, where it lies in a whole sequence: its position, and how many rows the sequence has.
struct SequenceRow {
    uint token;
    uint position;
    uint count;
    uint slice;
};
layout(buffer_reference, scalar, buffer_reference_align = 16) readonly buffer SequenceRows { SequenceRow v[]; };
const uint CHUNK = 256, DIM_MAX = 256;
shared float scores[CHUNK];
shared float query[DIM_MAX];
shared float sums[DIM_MAX];
shared float parts[DIM_MAX];
shared float partial[64];

float all_sum(float v) {
    v = subgroupAdd(v);
    barrier();
    if (subgroupElect()) partial[gl_SubgroupID] = v;
    barrier();
    v = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++) v += partial[i];
    return v;
}

float all_max(float v) {
    v = subgroupMax(v);
    barrier();
    if (subgroupElect()) partial[gl_SubgroupID] = v;
    barrier();
    v = partial[0];
    for (uint i = 1; i < gl_NumSubgroups; i++) v = max(v, partial[i]);
    return v;
}

void main() {
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    SequenceRow own = SequenceRows(p.batch).v[row];
    uint stride = 3 * HEADS * DIM, first = row - own.position;
    uint keys = first * stride + (HEADS + head) * DIM, values = first * stride + (2 * HEADS + head) * DIM;
    for (uint d = t; d < DIM; d += n) {
        query[d] = F32(p.qkv).v[row * stride + head * DIM + d] * p.scale;
        sums[d] = 0.0;
    }
    barrier();
    float best = -1.0 / 0.0, whole = 0.0;
    for (uint start = 0; start < own.count; start += CHUNK) {
        uint count = min(CHUNK, own.count - start);
        float most = -1.0 / 0.0;
        for (uint k = t; k < count; k += n) {
            uint at = keys + (start + k) * stride;
            float score = 0.0;
            for (uint d = 0; d < DIM; d++) score += query[d] * F32(p.qkv).v[at + d];
            scores[k] = score;
            most = max(most, score);
        }
        most = max(best, all_max(most));
        float kept = exp(best - most), sum = 0.0;
        best = most;
        for (uint k = t; k < count; k += n) {
            scores[k] = exp(scores[k] - best);
            sum += scores[k];
        }
        // The sum has a barrier behind which all exponentials are there.
        whole = whole * kept + all_sum(sum);
        uint share = max(n / DIM, 1);
        for (uint d = t; d < DIM * share; d += n) {
            float value = 0.0;
            for (uint k = d / DIM; k < count; k += share)
                value += scores[k] * F32(p.qkv).v[values + (start + k) * stride + d % DIM];
            parts[d] = value;
        }
        barrier();
        for (uint d = t; d < DIM; d += n) {
            float value = 0.0;
            for (uint i = 0; i < share; i++) value += parts[i * DIM + d];
            sums[d] = sums[d] * kept + value;
        }
        barrier();
    }
    uint out_base = (row * HEADS + head) * DIM;
    for (uint d = t; d < DIM; d += n) {
        float r = sums[d] / whole;
        if (HAS_HALF != 0) F16(p.y).v[out_base + d] = float16_t(clamp(r, -65504.0, 65504.0));
        else F32(p.y).v[out_base + d] = r;
    }
}
