#version 460
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_NV_cooperative_matrix2 : require
#extension GL_KHR_shader_subgroup_vote : require
#include "lib/common.glsl"
#include "lib/kv.glsl"
#define FLASH_HALVES
#include "lib/flash.glsl"
// Flash attention of many rows on NV cooperative matrices 2: as flash_cooperative.comp, but scores never leave the registers: they are
// masked element by element, reduced row by row and converted to the next product's operand as matrices. A subgroup owns R stacked rows.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint R = 16;          // rows of a subgroup
layout(constant_id = 2) const uint LANES = 32;      // size of a subgroup
layout(constant_id = 3) const uint GROUP = 1;       // query heads of a kv head
layout(constant_id = 4) const uint BC = 32;         // keys of a step
layout(constant_id = 5) const uint SPLITS = 1;      // most splits of a tile's keys
layout(constant_id = 6) const uint Q_STAYS = 1;     // queries stay in registers, else they are loaded in every step
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

const uint T = 16, TURNED = 0;
#include "lib/flash_keys.glsl"
const uint SUBGROUPS = THREADS / LANES, BM = SUBGROUPS * R;
// What masks give is below what maxima start from, so that a row that saw nothing yet weighs nothing.
const float NONE = -1.0e30, LEAST = -1.0e29;
const float LOG2_E = 1.4426950408889634;
// A maximum is raised only when scores outgrow it by this many powers of two, which f16 weights can hold: most steps need no rescaling.
const float SLACK = 6.0;

#define Scores coopmat<float, gl_ScopeSubgroup, R, BC, gl_MatrixUseAccumulator>
#define Sum coopmat<float, gl_ScopeSubgroup, R, T, gl_MatrixUseAccumulator>
#define Left coopmat<float16_t, gl_ScopeSubgroup, R, T, gl_MatrixUseA>

float capped(const in uint32_t row, const in uint32_t col, const in float x, const in float cap) { return cap * tanh(x / cap); }
// Position of a stacked row.
uint position(uint row, uint own, uint start, uint count) { return start + min(own + row, count - 1) / GROUP; }
float mask(const in uint32_t row, const in uint32_t col, const in float x, const in uint32_t base, const in uint32_t own,
           const in uint32_t start, const in uint32_t count) {
    uint key = base + col, at = position(row, own, start, count);
    return key <= at && (p.window == 0 || key + p.window > at) ? x : NONE;
}
float larger(const in float a, const in float b) { return max(a, b); }
float plus(const in float a, const in float b) { return a + b; }
float raise(const in uint32_t row, const in uint32_t col, const in float most, const in float highest) {
    return highest > most + SLACK ? highest : most;
}
float power(const in uint32_t row, const in uint32_t col, const in float x) { return exp2(x); }
// Copies a row's value to all columns: all are the same.
float any_of(const in float a, const in float b) { return a; }

float store(const in uint32_t row, const in uint32_t col, const in float x, const in uint32_t column, const in uint32_t own,
            const in uint32_t count, const in uint32_t first_row, const in uint32_t record, const in uint32_t splits) {
    uint c = column + col;
    if (own + row >= count || c >= HEAD_DIM) return x;
    uint head = kv_head * GROUP + (own + row) % GROUP, token = (own + row) / GROUP;
    if (SPLITS > 1 && record != 0xFFFFFFFFu) {
        uint at = ((record + token * splits) * KV_HEADS * GROUP + head) * (HEAD_DIM + 2);
        F32(p.partial).v[at + c] = x;
    } else {
        F16(p.y + 2 * (uint64_t((first_row + token) * KV_HEADS * GROUP + head) * HEAD_DIM + c)).v[0] = float16_t(clamp(x, -65504.0, 65504.0));
    }
    return x;
}
// Maximum and sum of each row, from column 0.
float store_marks(const in uint32_t row, const in uint32_t col, const in float most, const in float sum, const in uint32_t own,
                  const in uint32_t count, const in uint32_t record, const in uint32_t splits) {
    if (col != 0 || own + row >= count) return most;
    uint head = kv_head * GROUP + (own + row) % GROUP, token = (own + row) / GROUP;
    uint at = ((record + token * splits) * KV_HEADS * GROUP + head) * (HEAD_DIM + 2) + HEAD_DIM;
    F32(p.partial).v[at] = most;
    F32(p.partial).v[at + 1] = sum;
    return most;
}

void main() {
    Piece w;
    if (!find_piece(BM, w)) return;
    // This subgroup's rows and the positions that they reach.
    uint start = w.tile.start, count = w.count, own = w.first + gl_SubgroupID * R;
    bool live = own < count;
    uint own_low = position(0, own, start, count), own_high = position(R - 1, own, start, count);
    F16 queries = F16(p.queries + 2 * uint64_t(DP) * ((kv_head * p.rows + w.tile.row) * GROUP + min(own, count - 1)));
    Left q[DP / T];
    if (Q_STAYS != 0 && live) {
        [[unroll]] for (uint k = 0; k < DP / T; k++)
            coopMatLoad(q[k], queries.v, k * T, DP, gl_CooperativeMatrixLayoutRowMajor);
    }
    Sum o[DP / T], most = Sum(LEAST), sum = Sum(0.0);
    [[unroll]] for (uint n = 0; n < DP / T; n++) o[n] = Sum(0.0);

    uint base = w.begin / BC * BC;
    fetch(w.tile.pages, base, w.begin, w.end);
    for (; base < w.end; base += BC) {
        share();
        barrier();
        if (base + BC < w.end) fetch(w.tile.pages, base + BC, w.begin, w.end);
        // Keys wholly in the future of these rows, or before their window, are left out.
        if (live && base <= own_high && (p.window == 0 || base + BC + p.window > own_low + 1)) {
            Scores s = Scores(0.0);
            [[unroll]] for (uint k = 0; k < DP / T; k++) {
                Left a;
                if (Q_STAYS != 0) a = q[k];
                else coopMatLoad(a, queries.v, k * T, DP, gl_CooperativeMatrixLayoutRowMajor);
                coopmat<float16_t, gl_ScopeSubgroup, T, BC, gl_MatrixUseB> b;
                coopMatLoad(b, shared_keys, k * T / 8, PITCH, gl_CooperativeMatrixLayoutColumnMajor);
                s = coopMatMulAdd(a, b, s);
            }
            if (p.soft_cap != 0.0) coopMatPerElementNV(s, s, capped, p.soft_cap);
            s *= LOG2_E;
            if (base + BC > own_low + 1 || (p.window != 0 && base + p.window <= own_high) || base < w.begin || base + BC > w.end)
                coopMatPerElementNV(s, s, mask, base, own, start, count);
            Sum highest, next, added;
            coopMatReduceNV(highest, s, gl_CooperativeMatrixReduceRowNV, larger);
            coopMatPerElementNV(next, most, raise, highest);
            Scores limit;
            coopMatReduceNV(limit, next, gl_CooperativeMatrixReduceRowNV, any_of);
            coopMatPerElementNV(s, s - limit, power);
            bool raised = false;
            [[unroll]] for (uint e = 0; e < next.length(); e++) raised = raised || next[e] != most[e];
            if (subgroupAny(raised)) {
                Sum factor;
                coopMatPerElementNV(factor, most - next, power);
                [[unroll]] for (uint n = 0; n < DP / T; n++) o[n] *= factor;
                sum *= factor;
                most = next;
            }
            coopMatReduceNV(added, s, gl_CooperativeMatrixReduceRowNV, plus);
            sum += added;
            coopmat<float16_t, gl_ScopeSubgroup, R, BC, gl_MatrixUseA> chances =
                coopmat<float16_t, gl_ScopeSubgroup, R, BC, gl_MatrixUseA>(s);
            [[unroll]] for (uint n = 0; n < DP / T; n++) {
                coopmat<float16_t, gl_ScopeSubgroup, BC, T, gl_MatrixUseB> v;
                coopMatLoad(v, shared_values, n * T / 8, PITCH, gl_CooperativeMatrixLayoutRowMajor);
                o[n] = coopMatMulAdd(chances, v, o[n]);
            }
        }
        barrier();
    }
    if (!live) return;

    bool partial = SPLITS > 1 && w.tile.span != 0;
    uint splits = tile_splits(w.tile), record = partial ? w.tile.partial + w.split : 0xFFFFFFFFu;
    if (partial) coopMatPerElementNV(most, most, store_marks, sum, own, count, record, splits);
    [[unroll]] for (uint n = 0; n < DP / T; n++) {
        if (!partial) o[n] /= sum;
        coopMatPerElementNV(o[n], o[n], store, n * T, own, count, w.tile.row, record, splits);
    }
}
