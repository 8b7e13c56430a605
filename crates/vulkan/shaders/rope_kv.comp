#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
#include "lib/kv.glsl"
// Finishes q, k and v of each row: bias, per-head RMS norm of q and k, RoPE, then q scaled and k, v into the cache.
// LANES lanes of one subgroup take a head; a workgroup takes THREADS / LANES heads of a row; heads count q first, then k, then v.
// q goes back in place, or as f16 to `queries` in the order of flash_cooperative.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 0) const uint THREADS = 64;
layout(constant_id = 1) const uint HEADS = 1;
layout(constant_id = 2) const uint NEOX = 0;
layout(constant_id = 3) const uint QK_NORM = 0;
layout(constant_id = 4) const uint HAS_BIAS = 0;
layout(constant_id = 5) const uint LANES = 8;       // at least 8, so that they reduce a group of 32 elements by shuffles
layout(constant_id = 6) const uint Q_PITCH = 0;     // f16 elements of a head in `queries`, zeros past HEAD_DIM; 0: q stays in place
ARGUMENTS {
    uint64_t qkv;           // f32 [rows, (HEADS + 2 KV_HEADS) * HEAD_DIM]
    uint64_t bias;          // f32 [(HEADS + 2 KV_HEADS) * HEAD_DIM], 0 for none
    uint64_t q_norm, k_norm;// f32 [HEAD_DIM]
    uint64_t turns;         // vec2 [positions, pairs]: cosine and sine, magnitude included
    uint64_t batch, pages;
    uint64_t keys, values;
    uint64_t queries;       // f16 [kv head][row][head of the group][Q_PITCH]
    uint pairs;
    float scale, eps;
} p;
const uint ALL = HEADS + 2 * KV_HEADS;
const uint FOURS = HEAD_DIM / 4;
const uint ROUNDS = (FOURS + LANES - 1) / LANES;
const uint TAKEN = THREADS / LANES;
shared vec4 heads[TAKEN * (FOURS + 1)];

// One element of this subgroup part's head.
float element(uint base, uint i) { return heads[base + i / 4][i % 4]; }

void main() {
    uint t = gl_LocalInvocationID.x, lane = t % LANES, slot = t / LANES, row = gl_WorkGroupID.y;
    // Lanes past the last head repeat it and write nothing, since all lanes must take part in shuffles.
    uint wanted = gl_WorkGroupID.x * TAKEN + slot, h = min(wanted, ALL - 1);
    bool live = wanted < ALL, is_q = h < HEADS, is_v = h >= HEADS + KV_HEADS;
    uint base = slot * (FOURS + 1);
    Row r = Rows(p.batch).v[row];
    F32x4 x = F32x4(p.qkv + 4 * (uint64_t(row) * ALL + h) * HEAD_DIM);
    vec4 held[ROUNDS];
    float sum = 0.0;
    [[unroll]] for (uint i = 0; i < ROUNDS; i++) {
        uint c = i * LANES + lane;
        held[i] = c < FOURS ? x.v[min(c, FOURS - 1)] : vec4(0.0);
        if (HAS_BIAS != 0 && c < FOURS) held[i] += F32x4(p.bias + 4 * h * HEAD_DIM).v[c];
        sum += dot(held[i], held[i]);
    }
    if (QK_NORM != 0) {
        [[unroll]] for (uint d = LANES / 2; d > 0; d /= 2) sum += subgroupShuffleXor(sum, d);
        float inverse = inversesqrt(sum / float(HEAD_DIM) + p.eps);
        F32x4 w = F32x4(is_q ? p.q_norm : p.k_norm);
        [[unroll]] for (uint i = 0; i < ROUNDS; i++)
            if (!is_v) held[i] *= inverse * w.v[min(i * LANES + lane, FOURS - 1)];
    }
    [[unroll]] for (uint i = 0; i < ROUNDS; i++)
        if (i * LANES + lane < FOURS) heads[base + i * LANES + lane] = held[i];
    barrier();
    // Each lane turns its own four elements; the others of their pairs are read from shared memory.
    if (!is_v) {
        F32 turns = F32(p.turns + 8 * uint64_t(r.position) * p.pairs);
        [[unroll]] for (uint i = 0; i < ROUNDS; i++) {
            uint c = i * LANES + lane;
            [[unroll]] for (uint e = 0; e < 4; e++) {
                uint at = 4 * c + e;
                if (at >= 2 * p.pairs || c >= FOURS) continue;
                uint pair = NEOX != 0 ? (at < p.pairs ? at : at - p.pairs) : at / 2;
                bool second = NEOX != 0 ? at >= p.pairs : (at & 1) != 0;
                float other = element(base, NEOX != 0 ? (second ? pair : at + p.pairs) : at ^ 1);
                float cosine = turns.v[2 * pair], sine = turns.v[2 * pair + 1];
                held[i][e] = held[i][e] * cosine + (second ? other * sine : -other * sine);
            }
        }
    }
    if (is_q) {
        if (!live) return;
        const uint GROUP = HEADS / KV_HEADS;
        uint stacked = (h / GROUP * gl_NumWorkGroups.y + row) * GROUP + h % GROUP;
        [[unroll]] for (uint i = 0; i < ROUNDS; i++) {
            uint c = i * LANES + lane;
            vec4 q = held[i] * p.scale;
            if (Q_PITCH == 0) {
                if (c < FOURS) x.v[c] = q;
            } else if (c < FOURS) {
                q = clamp(q, -65504.0, 65504.0);
                U32x2(p.queries + 2 * uint64_t(stacked) * Q_PITCH).v[c] = uvec2(packHalf2x16(q.xy), packHalf2x16(q.zw));
            }
        }
        for (uint c = FOURS + lane; c < Q_PITCH / 4; c += LANES)
            U32x2(p.queries + 2 * uint64_t(stacked) * Q_PITCH).v[c] = uvec2(0);
        return;
    }
    uint kv_head = is_v ? h - HEADS - KV_HEADS : h - HEADS;
    uint page = U32(p.pages).v[r.pages + r.position / PAGE_TOKENS], token = r.position % PAGE_TOKENS;
    uint64_t to = kv_page(is_v ? p.values : p.keys, page, kv_head);
    [[unroll]] for (uint i = 0; i < ROUNDS; i++) {
        uint c = i * LANES + lane;
        bool inside = live && c < FOURS;
#if defined(KV_F32)
        if (inside) F32x4(to).v[token * FOURS + c] = held[i];
#elif defined(KV_Q8_0)
        vec4 size = abs(held[i]);
        float most = max(max(size.x, size.y), max(size.z, size.w));
        [[unroll]] for (uint d = 4; d > 0; d /= 2) most = max(most, subgroupShuffleXor(most, d));
        float back = most > 0.0 ? 127.0 / most : 0.0;
        uvec4 b = uvec4(ivec4(roundEven(held[i] * back))) & 0xFFu;
        if (inside) {
            U32(to).v[token * FOURS + c] = b.x | b.y << 8 | b.z << 16 | b.w << 24;
            if (c % 8 == 0) F16(to + PAGE_TOKENS * HEAD_DIM).v[token * (HEAD_DIM / 32) + c / 8] = float16_t(most / 127.0);
        }
#else
        if (inside) U32x2(to).v[token * FOURS + c] = uvec2(packHalf2x16(held[i].xy), packHalf2x16(held[i].zw));
#endif
    }
}
