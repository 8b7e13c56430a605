#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
#include "lib/kv.glsl"
// Finishes q, k and v of each row: bias, per-head RMS norm of q and k, RoPE, then q scaled back in place and k, v into the cache.
// One workgroup a (head, row); heads count q first, then k, then v.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint HEADS = 1;
layout(constant_id = 2) const uint NEOX = 0;
layout(constant_id = 3) const uint QK_NORM = 0;
layout(constant_id = 4) const uint HAS_BIAS = 0;
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
shared float head[512];
shared float partial[64];

void store(uint64_t page, uint token, uint i, float x) {
#if defined(KV_F32)
    F32(page).v[token * HEAD_DIM + i] = x;
#elif defined(KV_F16)
    F16(page).v[token * HEAD_DIM + i] = float16_t(x);
#endif
}

void main() {
    uint h = gl_WorkGroupID.x, row = gl_WorkGroupID.y, t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    uint width = (HEADS + 2 * KV_HEADS) * HEAD_DIM, base = row * width + h * HEAD_DIM;
    bool is_q = h < HEADS, is_v = h >= HEADS + KV_HEADS;
    Row r = Rows(p.batch).v[row];
    float sum = 0.0;
    for (uint i = t; i < HEAD_DIM; i += n) {
        float x = F32(p.qkv).v[base + i] + (HAS_BIAS != 0 ? F32(p.bias).v[h * HEAD_DIM + i] : 0.0);
        head[i] = x;
        sum += x * x;
    }
    if (QK_NORM != 0 && !is_v) {
        sum = subgroupAdd(sum);
        if (subgroupElect()) partial[gl_SubgroupID] = sum;
        barrier();
        sum = 0.0;
        for (uint i = 0; i < gl_NumSubgroups; i++) sum += partial[i];
        float inverse = inversesqrt(sum / float(HEAD_DIM) + p.eps);
        F32 w = F32(is_q ? p.q_norm : p.k_norm);
        for (uint i = t; i < HEAD_DIM; i += n) head[i] *= inverse * w.v[i];
    }
    barrier();
    if (!is_v) {
        for (uint i = t; i < p.pairs; i += n) {
            uint a = NEOX != 0 ? i : 2 * i, b = NEOX != 0 ? i + p.pairs : 2 * i + 1;
            uint at = 2 * (r.position * p.pairs + i);
            float c = F32(p.turns).v[at], s = F32(p.turns).v[at + 1], x = head[a], y = head[b];
            head[a] = x * c - y * s;
            head[b] = x * s + y * c;
        }
        barrier();
    }
    if (is_q) {
        for (uint i = t; i < HEAD_DIM; i += n) F32(p.qkv).v[base + i] = head[i] * p.scale;
        return;
    }
    uint kv_head = is_v ? h - HEADS - KV_HEADS : h - HEADS;
    uint page = U32(p.pages).v[r.pages + r.position / PAGE_TOKENS], token = r.position % PAGE_TOKENS;
    uint64_t at = kv_page(is_v ? p.values : p.keys, page, kv_head);
#if defined(KV_Q8_0)
    for (uint g = t; g < HEAD_DIM / 32; g += n) {
        float most = 0.0;
        for (uint i = 0; i < 32; i++) most = max(most, abs(head[g * 32 + i]));
        float d = most / 127.0, back = most > 0.0 ? 127.0 / most : 0.0;
        F16(at + PAGE_TOKENS * HEAD_DIM).v[token * (HEAD_DIM / 32) + g] = float16_t(d);
        for (uint i = 0; i < 32; i++)
            U8(at).v[token * HEAD_DIM + g * 32 + i] = uint8_t(int(roundEven(head[g * 32 + i] * back)) & 0xFF);
    }
#else
    for (uint i = t; i < HEAD_DIM; i += n) store(at, token, i, head[i]);
#endif
}
