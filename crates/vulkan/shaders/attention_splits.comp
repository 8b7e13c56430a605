#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
#include "lib/kv.glsl"
// Attention of many rows without matrix hardware: one workgroup a (kv head, split of SPLIT positions, row) computes all GROUP query heads that share the kv head.
// Splits lie at absolute positions, so that a row's result does not depend on the batch. Partial results: per (row, head, split) the
// maximum, the sum and the weighted values; attention_merge puts them together.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint GROUP = 1;
layout(constant_id = 2) const uint SPLIT = 256;
layout(push_constant, scalar) uniform Push {
    uint64_t qkv;       // f32 [rows, q_stride], q scaled
    uint64_t batch, pages;
    uint64_t keys, values;
    uint64_t partial;   // f32 [rows, heads, splits, HEAD_DIM + 2]
    uint q_stride;
    uint window;        // 0 for none
    float soft_cap;     // 0 for none
} p;
shared float q[GROUP * HEAD_DIM];
shared float scores[GROUP * SPLIT];
shared float reduced[GROUP * 2];

const uint LANES = 8;   // lanes that share a key

void main() {
    uint kv_head = gl_WorkGroupID.x, split = gl_WorkGroupID.y, row = gl_WorkGroupID.z;
    uint t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    Row r = Rows(p.batch).v[row];
    uint last = r.position + 1;
    uint first = p.window != 0 && last > p.window ? last - p.window : 0;
    uint from = split * SPLIT, to = min(from + SPLIT, last);
    if (from >= last || to <= first) return;
    for (uint i = t; i < GROUP * HEAD_DIM; i += n)
        q[i] = F32(p.qkv).v[row * p.q_stride + kv_head * GROUP * HEAD_DIM + i];
    barrier();
    uint lane = t % LANES;
    for (uint base = 0; base < SPLIT; base += n / LANES) {
        uint i = base + t / LANES, position = from + i;
        bool live = i < SPLIT && position < to && position >= first;
        float s[GROUP];
        [[unroll]] for (uint g = 0; g < GROUP; g++) s[g] = 0.0;
        if (live) {
            uint64_t page = kv_page(p.keys, U32(p.pages).v[r.pages + position / PAGE_TOKENS], kv_head);
            for (uint c = lane; c < HEAD_DIM / 8; c += LANES) {
                float k[8];
                kv_load8(page, position % PAGE_TOKENS, c, k);
                [[unroll]] for (uint g = 0; g < GROUP; g++)
                    [[unroll]] for (uint e = 0; e < 8; e++) s[g] += q[g * HEAD_DIM + c * 8 + e] * k[e];
            }
        }
        [[unroll]] for (uint g = 0; g < GROUP; g++) {
            [[unroll]] for (uint x = LANES / 2; x > 0; x /= 2) s[g] += subgroupShuffleXor(s[g], x);
            if (p.soft_cap != 0.0) s[g] = p.soft_cap * tanh(s[g] / p.soft_cap);
            if (lane == 0 && i < SPLIT) scores[g * SPLIT + i] = live ? s[g] : -1.0e30;
        }
    }
    barrier();
    // Softmax of each head's scores by its own threads, a subgroup's worth at a time.
    for (uint g = gl_SubgroupID; g < GROUP; g += gl_NumSubgroups) {
        float most = -1.0e30;
        for (uint i = gl_SubgroupInvocationID; i < SPLIT; i += gl_SubgroupSize) most = max(most, scores[g * SPLIT + i]);
        most = subgroupMax(most);
        float sum = 0.0;
        for (uint i = gl_SubgroupInvocationID; i < SPLIT; i += gl_SubgroupSize) {
            float s = scores[g * SPLIT + i];
            float e = s > -1.0e29 ? exp(s - most) : 0.0;
            scores[g * SPLIT + i] = e;
            sum += e;
        }
        sum = subgroupAdd(sum);
        if (subgroupElect()) { reduced[2 * g] = most; reduced[2 * g + 1] = sum; }
    }
    barrier();
    uint splits = gl_NumWorkGroups.y, heads = gl_NumWorkGroups.x * GROUP, record = HEAD_DIM + 2;
    uint begin = max(from, first) - from, count = to - from;
    for (uint item = t; item < GROUP * HEAD_DIM / 8; item += n) {
        uint g = item / (HEAD_DIM / 8), c = item % (HEAD_DIM / 8);
        float o[8];
        [[unroll]] for (uint e = 0; e < 8; e++) o[e] = 0.0;
        for (uint i = begin; i < count; i++) {
            uint position = from + i;
            float v[8];
            kv_load8(kv_page(p.values, U32(p.pages).v[r.pages + position / PAGE_TOKENS], kv_head),
                     position % PAGE_TOKENS, c, v);
            float w = scores[g * SPLIT + i];
            [[unroll]] for (uint e = 0; e < 8; e++) o[e] += w * v[e];
        }
        uint at = ((row * heads + kv_head * GROUP + g) * splits + split) * record;
        [[unroll]] for (uint e = 0; e < 8; e++) F32(p.partial).v[at + c * 8 + e] = o[e];
        if (c == 0) {
            F32(p.partial).v[at + HEAD_DIM] = reduced[2 * g];
            F32(p.partial).v[at + HEAD_DIM + 1] = reduced[2 * g + 1];
        }
    }
}
