#version 460
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_vote : require
#include "lib/common.glsl"
#include "lib/kv.glsl"
#define FLASH_HALVES
#include "lib/flash.glsl"
// Flash attention of many rows on KHR cooperative matrices: f16 operands, f32 scores, statistics and sums.
// The rows of all heads that share a kv head are stacked (row major, then head) and cut into pieces of BM; a workgroup takes one piece and
// walks over its keys, BC at a time; a subgroup owns T stacked rows and all of HEAD_DIM. K and V of the next step are loaded into registers
// while the current step is multiplied. Scores go through shared memory, where lanes know which row and key they hold.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint T = 16;          // edge of a cooperative matrix
layout(constant_id = 2) const uint LANES = 32;      // size of a subgroup
layout(constant_id = 3) const uint GROUP = 1;       // query heads of a kv head
layout(constant_id = 4) const uint BC = 32;         // keys of a step
layout(constant_id = 5) const uint SPLITS = 1;      // most splits of a tile's keys
layout(constant_id = 6) const uint Q_STAYS = 1;     // queries stay in registers, else they are loaded in every step
layout(constant_id = 7) const uint TURNED = 0;      // values lie in shared memory as [HEAD_DIM][key], for devices that load columns slowly
ARGUMENTS {
    uint64_t queries;   // f16 [kv head][row][head of the group][DP], scaled, DP = HEAD_DIM rounded up to whole matrices
    uint64_t tiles, pages;
    uint64_t keys, values;
    uint64_t y;         // f16 [rows, heads * HEAD_DIM]
    uint64_t partial;   // f32 [(row, split), heads, HEAD_DIM + 2]: weighted values, maximum (times log2 e), sum
    uint rows;          // of the batch
    uint window;        // 0 for none
    float soft_cap;     // 0 for none
} p;

#include "lib/flash_keys.glsl"
const uint SUBGROUPS = THREADS / LANES, BM = SUBGROUPS * T;
const uint SCORE_PITCH = BC / 4 + 1, CHANCE_PITCH = BC / 8 + 1;
const uint SHARE = LANES > T ? LANES / T : 1;   // lanes that share a row
const uint STEP = LANES / SHARE, HELD = T / STEP;   // a lane holds the rows lane / SHARE + STEP i, i < HELD
const uint UNITS = BC / 8 / SHARE;      // groups of eight keys of a row that a lane holds
const float NONE = -1.0e30;
const float LOG2_E = 1.4426950408889634;
// A maximum is raised only when scores outgrow it by this many powers of two, which f16 weights can hold: most steps need no rescaling.
const float SLACK = 6.0;

shared vec4 scores[SUBGROUPS * T * SCORE_PITCH];
shared uvec4 chances[SUBGROUPS * T * CHANCE_PITCH];

#define Sum coopmat<float, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>
#define Left coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseA>
#define Right coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseB>

uint lane = gl_SubgroupInvocationID;
void sync() {
    subgroupMemoryBarrierShared();
    subgroupBarrier();
}

// Writes this lane's part of a stacked row, BC columns from `column`, as they lie in `scores`.
void write(Tile tile, uint split, bool partial, uint own, uint row, uint column, float most, float sum) {
    uint head = kv_head * GROUP + (own + row) % GROUP, token = (own + row) / GROUP;
    uint part = lane % SHARE, base = gl_SubgroupID * T * SCORE_PITCH + row * SCORE_PITCH;
    float inverse = partial ? 1.0 : 1.0 / sum;
    uint record = ((tile.partial + token * tile_splits(tile) + split) * KV_HEADS * GROUP + head) * (HEAD_DIM + 2);
    if (partial && column == 0 && part == 0) {
        F32(p.partial).v[record + HEAD_DIM] = most;
        F32(p.partial).v[record + HEAD_DIM + 1] = sum;
    }
    [[unroll]] for (uint u = 0; u < UNITS; u++) {
        uint unit = u * SHARE + part, c = column + unit * 8;
        vec4 a = scores[base + 2 * unit] * inverse, b = scores[base + 2 * unit + 1] * inverse;
        uint64_t to = uint64_t((tile.row + token) * KV_HEADS * GROUP + head) * HEAD_DIM + c;
        if (c < HEAD_DIM) {
            if (partial) {
                [[unroll]] for (uint e = 0; e < 4; e++) {
                    F32(p.partial).v[record + c + e] = a[e];
                    F32(p.partial).v[record + c + 4 + e] = b[e];
                }
            } else {
                a = clamp(a, -65504.0, 65504.0);
                b = clamp(b, -65504.0, 65504.0);
                U32x4(p.y + 2 * to).v[0] =
                    uvec4(packHalf2x16(a.xy), packHalf2x16(a.zw), packHalf2x16(b.xy), packHalf2x16(b.zw));
            }
        }
    }
}

void main() {
    Piece w;
    if (!find_piece(BM, w)) return;
    Tile tile = w.tile;
    uint split = w.split, count = w.count, first = w.first, begin = w.begin, end = w.end;

    // This subgroup's rows and the positions that they reach.
    uint own = first + gl_SubgroupID * T;
    bool live = own < count;
    uint own_low = tile.start + min(own, count - 1) / GROUP, own_high = tile.start + min(own + T - 1, count - 1) / GROUP;
    uint score_base = gl_SubgroupID * T * SCORE_PITCH, chance_base = gl_SubgroupID * T * CHANCE_PITCH;
    uint mine = lane / SHARE, part = lane % SHARE;
    float most[HELD], sum[HELD];
    uint position[HELD];
    [[unroll]] for (uint i = 0; i < HELD; i++) {
        most[i] = NONE;
        sum[i] = 0.0;
        position[i] = tile.start + min(own + mine + STEP * i, count - 1) / GROUP;
    }
    F16 queries = F16(p.queries + 2 * uint64_t(DP) * ((kv_head * p.rows + tile.row) * GROUP + own));
    Left q[DP / T];
    if (Q_STAYS != 0) {
        [[unroll]] for (uint k = 0; k < DP / T; k++)
            coopMatLoad(q[k], queries.v, k * T, DP, gl_CooperativeMatrixLayoutRowMajor);
    }
    Sum o[DP / T];
    [[unroll]] for (uint n = 0; n < DP / T; n++) o[n] = Sum(0.0);

    uint base = begin / BC * BC;
    fetch(tile.pages, base, begin, end);
    for (; base < end; base += BC) {
        share();
        barrier();
        if (base + BC < end) fetch(tile.pages, base + BC, begin, end);
        // Keys wholly in the future of these rows, or before their window, are left out.
        if (live && base <= own_high && (p.window == 0 || base + BC + p.window > own_low + 1)) {
            Sum s[BC / T];
            [[unroll]] for (uint j = 0; j < BC / T; j++) s[j] = Sum(0.0);
            [[unroll]] for (uint k = 0; k < DP / T; k++) {
                Left a;
                if (Q_STAYS != 0) a = q[k];
                else coopMatLoad(a, queries.v, k * T, DP, gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint j = 0; j < BC / T; j++) {
                    Right b;
                    coopMatLoad(b, shared_keys, j * T * PITCH + k * T / 8, PITCH, gl_CooperativeMatrixLayoutColumnMajor);
                    s[j] = coopMatMulAdd(a, b, s[j]);
                }
            }
            [[unroll]] for (uint j = 0; j < BC / T; j++)
                coopMatStore(s[j], scores, score_base + j * T / 4, SCORE_PITCH, gl_CooperativeMatrixLayoutRowMajor);
            sync();

            bool masked = base + BC > own_low + 1 || (p.window != 0 && base + p.window <= own_high);
            bool raised = false;
            float factor[HELD];
            [[unroll]] for (uint i = 0; i < HELD; i++) {
                uint row = mine + STEP * i;
                float x[UNITS * 8], highest = NONE;
                [[unroll]] for (uint u = 0; u < UNITS; u++) {
                    uint unit = u * SHARE + part;
                    vec4 a = scores[score_base + row * SCORE_PITCH + 2 * unit];
                    vec4 b = scores[score_base + row * SCORE_PITCH + 2 * unit + 1];
                    if (p.soft_cap != 0.0) {
                        a = p.soft_cap * tanh(a / p.soft_cap);
                        b = p.soft_cap * tanh(b / p.soft_cap);
                    }
                    [[unroll]] for (uint e = 0; e < 8; e++) {
                        float v = (e < 4 ? a[e & 3] : b[e & 3]) * LOG2_E;
                        if (masked) {
                            uint key = base + unit * 8 + e;
                            bool seen = key <= position[i] && (p.window == 0 || key + p.window > position[i]);
                            v = seen ? v : NONE;
                        }
                        x[u * 8 + e] = v;
                        highest = max(highest, v);
                    }
                }
                [[unroll]] for (uint d = SHARE / 2; d > 0; d /= 2) highest = max(highest, subgroupShuffleXor(highest, d));
                float next = highest > most[i] + SLACK ? highest : most[i];
                factor[i] = exp2(most[i] - next);
                raised = raised || next > most[i];
                most[i] = next;
                sum[i] *= factor[i];
                [[unroll]] for (uint u = 0; u < UNITS; u++) {
                    [[unroll]] for (uint e = 0; e < 8; e++) {
                        float v = x[u * 8 + e];
                        v = masked && v == NONE ? 0.0 : exp2(v - next);
                        x[u * 8 + e] = v;
                        sum[i] += v;
                    }
                    chances[chance_base + row * CHANCE_PITCH + u * SHARE + part] = uvec4(
                        packHalf2x16(vec2(x[u * 8], x[u * 8 + 1])), packHalf2x16(vec2(x[u * 8 + 2], x[u * 8 + 3])),
                        packHalf2x16(vec2(x[u * 8 + 4], x[u * 8 + 5])), packHalf2x16(vec2(x[u * 8 + 6], x[u * 8 + 7])));
                }
            }
            sync();
            if (subgroupAny(raised)) {
                // A matrix whose rows hold their factors, over the scores that have been read.
                [[unroll]] for (uint i = 0; i < HELD; i++)
                    for (uint c = part; c < T / 4; c += SHARE)
                        scores[score_base + (mine + STEP * i) * SCORE_PITCH + c] = vec4(factor[i]);
                sync();
                Sum f;
                coopMatLoad(f, scores, score_base, SCORE_PITCH, gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint n = 0; n < DP / T; n++) o[n] = o[n] * f;
            }
            [[unroll]] for (uint k = 0; k < BC / T; k++) {
                Left a;
                coopMatLoad(a, chances, chance_base + k * T / 8, CHANCE_PITCH, gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint n = 0; n < DP / T; n++) {
                    Right b;
                    if (TURNED != 0)
                        coopMatLoad(b, shared_values, n * T * TURNED_PITCH + k * T / 8, TURNED_PITCH, gl_CooperativeMatrixLayoutColumnMajor);
                    else
                        coopMatLoad(b, shared_values, k * T * PITCH + n * T / 8, PITCH, gl_CooperativeMatrixLayoutRowMajor);
                    o[n] = coopMatMulAdd(a, b, o[n]);
                }
            }
        }
        barrier();
    }
    if (!live) return;

    bool partial = SPLITS > 1 && tile.span != 0;
    [[unroll]] for (uint i = 0; i < HELD; i++)
        [[unroll]] for (uint d = SHARE / 2; d > 0; d /= 2) sum[i] += subgroupShuffleXor(sum[i], d);
    [[unroll]] for (uint column = 0; column < DP; column += BC) {
        [[unroll]] for (uint j = 0; j < BC / T; j++) {
            if (column + j * T < DP)
                coopMatStore(o[min(column / T + j, DP / T - 1)], scores, score_base + j * T / 4, SCORE_PITCH, gl_CooperativeMatrixLayoutRowMajor);
        }
        sync();
        [[unroll]] for (uint i = 0; i < HELD; i++)
            if (own + mine + STEP * i < count) write(tile, split, partial, own, mine + STEP * i, column, most[i], sum[i]);
        sync();
    }
}
