#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
#include "lib/kv.glsl"
// Finishes q, k and v of each row: bias, per-head RMS norm of q and k, RoPE, then q scaled back in place and k, v into the cache.
// One workgroup of one subgroup a (head, row); heads count q first, then k, then v.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(push_constant, scalar) uniform Push {
    uint64_t qkv;           // f32 [rows, (HEADS + 2 KV_HEADS) * HEAD_DIM]
    uint64_t bias;          // f32 [(HEADS + 2 KV_HEADS) * HEAD_DIM], 0 for none
    uint64_t q_norm, k_norm;// f32 [HEAD_DIM]
    uint64_t turns;         // vec2 [positions, pairs]: cosine and sine, magnitude included
    uint64_t batch, pages;
    uint64_t keys, values;
    uint pairs;
    float scale, eps;
} p;
shared float values[HEAD_DIM];
#include "lib/head.glsl"

void main() {
    uint h = gl_WorkGroupID.x, row = gl_WorkGroupID.y;
    bool is_q = h < HEADS, is_v = h >= HEADS + KV_HEADS;
    Row r = Rows(p.batch).v[row];
    uint64_t x = p.qkv + 4 * uint64_t(row * (HEADS + 2 * KV_HEADS) + h) * HEAD_DIM;
    uint64_t turns = p.turns + 8 * uint64_t(r.position) * p.pairs;
    finish_head(x, p.bias + 4 * h * HEAD_DIM, is_q ? p.q_norm : p.k_norm, turns, is_v, p.pairs, p.eps, is_q ? p.scale : 1.0, 0);
    barrier();
    if (is_q) {
        for (uint i = gl_SubgroupInvocationID; i < HEAD_DIM; i += SUBGROUP) F32(x).v[i] = values[i];
        return;
    }
    uint kv_head = is_v ? h - HEADS - KV_HEADS : h - HEADS;
    uint page = U32(p.pages).v[r.pages + r.position / PAGE_TOKENS];
    cache_head(kv_page(is_v ? p.values : p.keys, page, kv_head), r.position % PAGE_TOKENS, 0, true);
}
