#version 460
#include "lib/common.glsl"
#include "lib/kv.glsl"
#include "lib/flash.glsl"
// Flash attention of many rows for devices without matrix units; f32 arithmetic throughout.
// Rows are stacked and cut as in flash_cooperative. A thread computes 4 rows by every eighth key, then 4 rows by every eighth group of
// four values. Shared memory holds keys and values as f16 where the cache is no wider than that.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 0) const uint THREADS = 64;    // 2 BM
layout(constant_id = 1) const uint BM = 32;         // stacked rows of a workgroup
layout(constant_id = 3) const uint GROUP = 1;       // query heads of a kv head
layout(constant_id = 4) const uint BC = 32;         // keys of a step
layout(constant_id = 5) const uint SPLITS = 1;      // most splits of a tile's keys
ARGUMENTS {
    uint64_t queries;   // f32 [rows, stride], scaled
    uint64_t tiles, pages;
    uint64_t keys, values;
    uint64_t y;         // f16 [rows, heads * HEAD_DIM]
    uint64_t partial;   // f32 [(row, split), heads, HEAD_DIM + 2]: weighted values, maximum (times log2 e), sum
    uint stride;
    uint window;        // 0 for none
    float soft_cap;     // 0 for none
} p;

#if defined(KV_F32)
#define Four vec4
#else
#define Four f16vec4
#endif
const uint FOURS = HEAD_DIM / 4;
const uint PITCH = FOURS + 1;
const uint SCORE_PITCH = BC + 1;
const uint COLUMNS = (FOURS + 7) / 8;   // groups of four values of a thread
const float NONE = -1.0e30;
const float LOG2_E = 1.4426950408889634;

shared Four queries[BM * PITCH];
shared Four cached[BC * PITCH];         // keys, then values
shared float scores[BM * SCORE_PITCH];
shared float factors[BM];
shared float sums[BM];

uint thread = gl_LocalInvocationID.x;

// Loads keys or values `base` ..; those outside begin .. end become zeros, whatever the cache holds there.
void load(uint64_t cache, uint list, uint base, uint begin, uint end) {
    for (uint at = thread; at < BC * (HEAD_DIM / 8); at += THREADS) {
        uint i = at / (HEAD_DIM / 8), chunk = at % (HEAD_DIM / 8), wanted = base + i, key = clamp(wanted, begin, end - 1);
        float v[8];
        kv_load8(kv_page(cache, U32(p.pages).v[list + key / PAGE_TOKENS], gl_WorkGroupID.y), key % PAGE_TOKENS, chunk, v);
        bool live = wanted == key;
        cached[i * PITCH + 2 * chunk] = Four(live ? vec4(v[0], v[1], v[2], v[3]) : vec4(0.0));
        cached[i * PITCH + 2 * chunk + 1] = Four(live ? vec4(v[4], v[5], v[6], v[7]) : vec4(0.0));
    }
}

void main() {
    uint tiles = gl_NumWorkGroups.z / SPLITS, kv_head = gl_WorkGroupID.y;
    // Later rows see more keys: they start first.
    Tile tile = Tiles(p.tiles).v[tiles - 1 - gl_WorkGroupID.z / SPLITS];
    uint split = gl_WorkGroupID.z % SPLITS;
    uint count = tile.rows * GROUP, first = gl_WorkGroupID.x * BM;
    if (first >= count) return;
    uint begin = 0, end = tile.start + (min(first + BM, count) - 1) / GROUP + 1;
    uint low = tile.start + first / GROUP;
    if (p.window != 0 && low + 1 > p.window) begin = low + 1 - p.window;
    if (SPLITS > 1) {
        if (tile.span == 0 && split != 0) return;
        if (tile.span != 0) {
            begin = max(begin, split * tile.span);
            end = min(end, (split + 1) * tile.span);
        }
    }
    if (begin >= end) return;

    for (uint at = thread; at < BM * FOURS; at += THREADS) {
        uint stacked = min(first + at / FOURS, count - 1), c = at % FOURS;
        uint row = tile.row + stacked / GROUP, head = kv_head * GROUP + stacked % GROUP;
        queries[at / FOURS * PITCH + c] = Four(F32x4(p.queries + 4 * (uint64_t(row) * p.stride + head * HEAD_DIM)).v[c]);
    }
    uint row = thread / 8 * 4, column = thread % 8;         // in products
    uint own = thread / 2, half_row = thread % 2;           // in the softmax: two threads a row
    uint position = tile.start + min(first + own, count - 1) / GROUP;
    float most = NONE, sum = 0.0;
    vec4 o[4 * COLUMNS];
    [[unroll]] for (uint i = 0; i < 4 * COLUMNS; i++) o[i] = vec4(0.0);

    for (uint base = begin / BC * BC; base < end; base += BC) {
        load(p.keys, tile.pages, base, begin, end);
        barrier();
        float s[4 * (BC / 8)];
        [[unroll]] for (uint i = 0; i < 4 * (BC / 8); i++) s[i] = 0.0;
        for (uint c = 0; c < FOURS; c++) {
            vec4 a[4];
            [[unroll]] for (uint r = 0; r < 4; r++) a[r] = vec4(queries[(row + r) * PITCH + c]);
            [[unroll]] for (uint j = 0; j < BC / 8; j++) {
                vec4 b = vec4(cached[(column + 8 * j) * PITCH + c]);
                [[unroll]] for (uint r = 0; r < 4; r++) s[r * (BC / 8) + j] += dot(a[r], b);
            }
        }
        [[unroll]] for (uint r = 0; r < 4; r++)
            [[unroll]] for (uint j = 0; j < BC / 8; j++) scores[(row + r) * SCORE_PITCH + column + 8 * j] = s[r * (BC / 8) + j];
        barrier();

        load(p.values, tile.pages, base, begin, end);
        float highest = NONE;
        for (uint i = half_row; i < BC; i += 2) {
            uint key = base + i;
            float v = scores[own * SCORE_PITCH + i];
            if (p.soft_cap != 0.0) v = p.soft_cap * tanh(v / p.soft_cap);
            bool seen = key <= position && key >= begin && key < end && (p.window == 0 || key + p.window > position);
            v = seen ? v * LOG2_E : NONE;
            scores[own * SCORE_PITCH + i] = v;
            highest = max(highest, v);
        }
        highest = max(most, max(highest, subgroupShuffleXor(highest, 1)));
        float factor = exp2(most - highest);
        most = highest;
        sum *= factor;
        for (uint i = half_row; i < BC; i += 2) {
            float v = scores[own * SCORE_PITCH + i];
            v = v == NONE ? 0.0 : exp2(v - most);
            scores[own * SCORE_PITCH + i] = v;
            sum += v;
        }
        if (half_row == 0) factors[own] = factor;
        barrier();

        [[unroll]] for (uint r = 0; r < 4; r++) {
            float f = factors[row + r];
            [[unroll]] for (uint i = 0; i < COLUMNS; i++) o[r * COLUMNS + i] *= f;
        }
        for (uint key = 0; key < BC; key++) {
            float w[4];
            [[unroll]] for (uint r = 0; r < 4; r++) w[r] = scores[(row + r) * SCORE_PITCH + key];
            [[unroll]] for (uint i = 0; i < COLUMNS; i++) {
                vec4 v = vec4(cached[key * PITCH + min(column + 8 * i, FOURS - 1)]);
                [[unroll]] for (uint r = 0; r < 4; r++) o[r * COLUMNS + i] += w[r] * v;
            }
        }
        barrier();
    }

    bool partial = SPLITS > 1 && tile.span != 0;
    uint heads = KV_HEADS * GROUP, splits = tile_splits(tile);
    sum += subgroupShuffleXor(sum, 1);
    if (half_row == 0) {
        sums[own] = sum;
        uint at = first + own;
        if (partial && at < count) {
            uint record = ((tile.partial + at / GROUP * splits + split) * heads + kv_head * GROUP + at % GROUP) * (HEAD_DIM + 2);
            F32(p.partial).v[record + HEAD_DIM] = most;
            F32(p.partial).v[record + HEAD_DIM + 1] = sum;
        }
    }
    barrier();
    [[unroll]] for (uint r = 0; r < 4; r++) {
        uint at = first + row + r;
        if (at >= count) continue;
        uint head = kv_head * GROUP + at % GROUP, token = at / GROUP;
        float inverse = 1.0 / sums[row + r];
        [[unroll]] for (uint i = 0; i < COLUMNS; i++) {
            uint c = column + 8 * i;
            if (c >= FOURS) continue;
            vec4 v = o[r * COLUMNS + i];
            uint64_t to = uint64_t((tile.row + token) * heads + head) * HEAD_DIM + 4 * c;
            if (partial) {
                uint record = ((tile.partial + token * splits + split) * heads + head) * (HEAD_DIM + 2) + 4 * c;
                [[unroll]] for (uint e = 0; e < 4; e++) F32(p.partial).v[record + e] = v[e];
            } else {
                v = clamp(v * inverse, -65504.0, 65504.0);
                U32x2(p.y + 2 * to).v[0] = uvec2(packHalf2x16(v.xy), packHalf2x16(v.zw));
            }
        }
    }
}
