#version 460
#extension GL_KHR_memory_scope_semantics : require
#include "lib/common.glsl"
#include "lib/batch.glsl"
#include "lib/kv.glsl"
// Attention of single rows, from q, k and v to the finished output, in one dispatch. The grid is (kv head and part of its query heads,
// split, row): a workgroup runs over its split of the row's visible positions, one pass of loads in flight while the last is worked on,
// each LANES lanes of a subgroup with an online softmax of their own. The last workgroup of a (row, part) puts the splits together, in
// order. How positions are split depends on the row's own length alone, so that a row's result does not depend on the batch.
//
// FUSED: q, k and v are finished here. Each workgroup finishes its own q; the one whose split ends in the row's own position finishes
// k and v too, stores them and works with what the cache holds of them. No other row may then read or write that position.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint SUBGROUPS = 8;
layout(constant_id = 2) const uint GROUP = 1;       // query heads of a kv head
layout(constant_id = 3) const uint PART = 1;        // query heads of a workgroup
layout(constant_id = 4) const uint LANES = 8;       // lanes that share a position
layout(constant_id = 5) const uint FLIGHT = 2;      // positions that a lane loads at once
layout(constant_id = 6) const uint FUSED = 0;
layout(constant_id = 7) const uint OUTPUT = 0;      // 0 f32, 1 quantized, 2 f16
layout(constant_id = 8) const uint LOTS = 1;        // lots of splits that threads of their own add up at the end; at most SUBGROUPS
layout(constant_id = 9) const uint WANTED = 128;    // splits of a row that sees many positions; at most MOST_SPLITS
ARGUMENTS {
    uint64_t qkv;           // f32 [rows, (HEADS + 2 KV_HEADS) * HEAD_DIM]; q finished and scaled unless FUSED
    uint64_t bias;          // f32 [(HEADS + 2 KV_HEADS) * HEAD_DIM], 0 for none
    uint64_t q_norm, k_norm;// f32 [HEAD_DIM]
    uint64_t turns;         // vec2 [positions, pairs]: cosine and sine, magnitude included
    uint64_t batch, pages;
    uint64_t keys, values;
    uint64_t partial;       // f32 [rows, heads, splits, HEAD_DIM], then maximum and sum [rows, heads, splits, 2]
    uint64_t tickets;       // u32 [rows, parts]: finished splits; zero before and after
    uint64_t y;             // f32, f16 or packed bytes [rows, heads * HEAD_DIM]
    uint64_t meta;          // scales and sums where quantized
    uint pairs;
    float scale, eps;
    uint window;            // 0 for none
    float soft_cap;         // 0 for none
} p;

// What passes between workgroups.
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Between { coherent float v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 8) buffer Between2 { coherent vec2 v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer Between4 { coherent vec4 v[]; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer Ticket { coherent uint v[]; };

const uint PARTS = (GROUP + PART - 1) / PART;
const uint CHUNKS = HEAD_DIM / 8;
const uint EACH = (CHUNKS + LANES - 1) / LANES;     // chunks of a lane
const uint MOST_SPLITS = 128;
const uint ITEMS = PART * HEAD_DIM / 4;             // of the last step: four columns each

shared float values[(PART + 2) * HEAD_DIM];         // q of each head, k, v; at the end the output of each head
shared float sums[SUBGROUPS * PART * HEAD_DIM];
shared vec2 marks[SUBGROUPS * PART];                // maximum and sum
shared float weights[PART * MOST_SPLITS];
shared uint finished;
#include "lib/head.glsl"
#include "lib/quantize.glsl"

// Positions of a split where a row sees `n`. The host's count of splits (select::decode_splits) covers this.
uint split_positions(uint n) {
    return 64 * ((n + 64 * WANTED - 1) / (64 * WANTED));
}

// Writes what `values` holds for the first `count` heads from `head` on.
void write_output(uint row, uint head, uint count) {
    uint at = row * HEADS + head, t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    if (OUTPUT == 1 && SUBGROUP >= 32) {
        for (uint g = t / 32; g < count * HEAD_DIM / 32; g += n / 32)
            quantize_lanes(p.y, p.meta, at * (HEAD_DIM / 32) + g, values[g * 32 + (t & 31u)]);
        return;
    }
    if (OUTPUT == 1) {
        for (uint i = t; i < count * HEAD_DIM / 4; i += n)
            quantize_group(p.y, p.meta, at * (HEAD_DIM / 32) + i / 8, (i / 8) * 32, i % 8);
        return;
    }
    for (uint i = t; i < count * HEAD_DIM; i += n) {
        if (OUTPUT == 0) F32(p.y).v[at * HEAD_DIM + i] = values[i];
        if (OUTPUT == 2) F16(p.y).v[at * HEAD_DIM + i] = float16_t(clamp(values[i], -65504.0, 65504.0));
    }
}

// Finishes the workgroup's query heads and, with `own`, k and v of the row; `stored` says who writes the cache.
void finish(Row r, uint row, uint kv_head, uint part, bool own, bool stored) {
    uint64_t x = p.qkv + 4 * uint64_t(row * (HEADS + 2 * KV_HEADS)) * HEAD_DIM;
    uint64_t turns = p.turns + 8 * uint64_t(r.position) * p.pairs;
    for (uint job = gl_SubgroupID; job < (own ? PART + 2 : PART); job += SUBGROUPS) {
        bool is_q = job < PART, is_v = job == PART + 1;
        // A part past the end of its group works on the last head again and does not write it.
        uint head = is_q ? kv_head * GROUP + min(part * PART + job, GROUP - 1) : HEADS + (is_v ? KV_HEADS : 0) + kv_head;
        uint64_t at = 4 * uint64_t(head * HEAD_DIM);
        finish_head(x + at, p.bias + at, is_q ? p.q_norm : p.k_norm, turns, is_v, p.pairs, p.eps, is_q ? p.scale : 1.0,
                    job * HEAD_DIM);
    }
    barrier();
    if (!own) return;
    uint page = U32(p.pages).v[r.pages + r.position / PAGE_TOKENS];
    for (uint is_v = gl_SubgroupID; is_v < 2; is_v += SUBGROUPS)
        cache_head(kv_page(is_v == 1 ? p.values : p.keys, page, kv_head), r.position % PAGE_TOKENS, (PART + is_v) * HEAD_DIM, stored);
}

// Adds up the splits of a row's heads, `live` of them, and leaves the result in `values`.
void merge(uint row, uint head, uint count, uint live) {
    uint t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x, splits = gl_NumWorkGroups.y;
    uint64_t marked = p.partial + 4 * uint64_t(gl_NumWorkGroups.z * HEADS * splits) * HEAD_DIM;
    for (uint g = gl_SubgroupID; g < PART; g += SUBGROUPS) {
        uint at = (row * HEADS + head + min(g, count - 1)) * splits;
        float most = -1.0e30;
        for (uint s = gl_SubgroupInvocationID; s < live; s += SUBGROUP) most = max(most, Between2(marked).v[at + s].x);
        most = subgroupMax(most);
        float sum = 0.0;
        for (uint s = gl_SubgroupInvocationID; s < live; s += SUBGROUP) {
            vec2 mark = Between2(marked).v[at + s];
            float w = exp(mark.x - most);
            weights[g * MOST_SPLITS + s] = w;
            sum += w * mark.y;
        }
        sum = subgroupAdd(sum);
        for (uint s = gl_SubgroupInvocationID; s < live; s += SUBGROUP) weights[g * MOST_SPLITS + s] /= sum;
    }
    barrier();
    for (uint u = t; u < ITEMS * LOTS; u += n) {
        uint item = u % ITEMS, lot = u / ITEMS, g = item / (HEAD_DIM / 4), c = item % (HEAD_DIM / 4);
        uint at = (row * HEADS + head + min(g, count - 1)) * splits;
        vec4 o = vec4(0.0);
        for (uint s = lot; s < live; s += 4 * LOTS) {
            vec4 x[4];
            [[unroll]] for (uint k = 0; k < 4; k++)
                x[k] = Between4(p.partial).v[(at + min(s + k * LOTS, live - 1)) * (HEAD_DIM / 4) + c];
            [[unroll]] for (uint k = 0; k < 4; k++)
                if (s + k * LOTS < live) o += weights[g * MOST_SPLITS + s + k * LOTS] * x[k];
        }
        [[unroll]] for (uint e = 0; e < 4; e++) sums[4 * u + e] = o[e];
    }
    barrier();
    for (uint i = t; i < PART * HEAD_DIM; i += n) {
        float o = 0.0;
        [[unroll]] for (uint lot = 0; lot < LOTS; lot++) o += sums[lot * PART * HEAD_DIM + i];
        values[i] = o;
    }
    barrier();
}

void main() {
    uint kv_head = gl_WorkGroupID.x / PARTS, part = gl_WorkGroupID.x % PARTS, split = gl_WorkGroupID.y, row = gl_WorkGroupID.z;
    uint t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x, splits = gl_NumWorkGroups.y;
    uint head = kv_head * GROUP + part * PART, count = min(PART, GROUP - part * PART);
    Row r = Rows(p.batch).v[row];
    uint end = r.position + 1;
    uint first = p.window != 0 && end > p.window ? end - p.window : 0;
    uint size = split_positions(end - first);
    uint live = (end - first + size - 1) / size;
    if (split >= live) return;
    uint from = first + split * size, to = min(from + size, end);
    bool own = FUSED != 0 && to == end;
    // The row's own position may not be in the cache yet: loads stop before it, what they bring in its place is never used.
    uint furthest = own ? max(end, 2) - 2 : to - 1;

    const uint SLOTS = SUBGROUPS * (SUBGROUP / LANES);
    uint lane = gl_SubgroupInvocationID % LANES;
    uint slot = gl_SubgroupID * (SUBGROUP / LANES) + gl_SubgroupInvocationID / LANES;
    uint page[FLIGHT];
    Chunk k[FLIGHT * EACH], v[FLIGHT * EACH];
    [[unroll]] for (uint j = 0; j < FLIGHT; j++)
        page[j] = U32(p.pages).v[r.pages + min(from + j * SLOTS + slot, furthest) / PAGE_TOKENS];
    [[unroll]] for (uint j = 0; j < FLIGHT; j++) {
        uint token = min(from + j * SLOTS + slot, furthest) % PAGE_TOKENS;
        [[unroll]] for (uint i = 0; i < EACH; i++) {
            uint chunk = min(lane + i * LANES, CHUNKS - 1);
            k[j * EACH + i] = kv_fetch8(kv_page(p.keys, page[j], kv_head), token, chunk);
            v[j * EACH + i] = kv_fetch8(kv_page(p.values, page[j], kv_head), token, chunk);
        }
    }
    if (FUSED != 0) {
        finish(r, row, kv_head, part, own, part == 0);
    } else {
        for (uint i = t; i < PART * HEAD_DIM; i += n) {
            uint h = kv_head * GROUP + min(part * PART + i / HEAD_DIM, GROUP - 1);
            values[i] = F32(p.qkv).v[(row * (HEADS + 2 * KV_HEADS) + h) * HEAD_DIM + i % HEAD_DIM];
        }
    }
    barrier();
    float q[PART * EACH * 8], o[PART * EACH * 8];
    float most[PART], sum[PART];
    [[unroll]] for (uint g = 0; g < PART; g++) {
        most[g] = -1.0e30;
        sum[g] = 0.0;
        [[unroll]] for (uint i = 0; i < EACH; i++) {
            uint chunk = lane + i * LANES;
            [[unroll]] for (uint e = 0; e < 8; e++) {
                q[(g * EACH + i) * 8 + e] = chunk < CHUNKS ? values[g * HEAD_DIM + min(chunk, CHUNKS - 1) * 8 + e] : 0.0;
                o[(g * EACH + i) * 8 + e] = 0.0;
            }
        }
    }
    for (uint base = from; base < to; base += SLOTS * FLIGHT) {
        uint next = base + SLOTS * FLIGHT;
        bool more = next < to;
        if (more) {
            [[unroll]] for (uint j = 0; j < FLIGHT; j++)
                page[j] = U32(p.pages).v[r.pages + min(next + j * SLOTS + slot, furthest) / PAGE_TOKENS];
        }
        float s[FLIGHT * PART];
        [[unroll]] for (uint j = 0; j < FLIGHT; j++) {
            [[unroll]] for (uint g = 0; g < PART; g++) s[j * PART + g] = 0.0;
            bool here = own && base + j * SLOTS + slot >= end - 1;
            [[unroll]] for (uint i = 0; i < EACH; i++) {
                float x[8];
                kv_unpack8(k[j * EACH + i], x);
                if (own) {
                    uint at = PART * HEAD_DIM + min(lane + i * LANES, CHUNKS - 1) * 8;
                    [[unroll]] for (uint e = 0; e < 8; e++) x[e] = here ? values[at + e] : x[e];
                }
                [[unroll]] for (uint g = 0; g < PART; g++)
                    [[unroll]] for (uint e = 0; e < 8; e++) s[j * PART + g] += q[(g * EACH + i) * 8 + e] * x[e];
            }
        }
        if (more) {
            [[unroll]] for (uint j = 0; j < FLIGHT; j++) {
                uint token = min(next + j * SLOTS + slot, furthest) % PAGE_TOKENS;
                [[unroll]] for (uint i = 0; i < EACH; i++)
                    k[j * EACH + i] = kv_fetch8(kv_page(p.keys, page[j], kv_head), token, min(lane + i * LANES, CHUNKS - 1));
            }
        }
        [[unroll]] for (uint i = 0; i < FLIGHT * PART; i++) {
            [[unroll]] for (uint x = 1; x < LANES; x *= 2) s[i] += subgroupShuffleXor(s[i], x);
            if (p.soft_cap != 0.0) s[i] = p.soft_cap * tanh(s[i] / p.soft_cap);
        }
        [[unroll]] for (uint g = 0; g < PART; g++) {
            float highest = most[g];
            [[unroll]] for (uint j = 0; j < FLIGHT; j++)
                if (base + j * SLOTS + slot < to) highest = max(highest, s[j * PART + g]);
            float shrink = exp(most[g] - highest);
            most[g] = highest;
            sum[g] *= shrink;
            [[unroll]] for (uint e = 0; e < EACH * 8; e++) o[g * EACH * 8 + e] *= shrink;
            [[unroll]] for (uint j = 0; j < FLIGHT; j++) {
                float w = base + j * SLOTS + slot < to ? exp(s[j * PART + g] - highest) : 0.0;
                s[j * PART + g] = w;
                sum[g] += w;
            }
        }
        [[unroll]] for (uint j = 0; j < FLIGHT; j++) {
            bool here = own && base + j * SLOTS + slot >= end - 1;
            [[unroll]] for (uint i = 0; i < EACH; i++) {
                float x[8];
                kv_unpack8(v[j * EACH + i], x);
                if (own) {
                    uint at = (PART + 1) * HEAD_DIM + min(lane + i * LANES, CHUNKS - 1) * 8;
                    [[unroll]] for (uint e = 0; e < 8; e++) x[e] = here ? values[at + e] : x[e];
                }
                [[unroll]] for (uint g = 0; g < PART; g++)
                    [[unroll]] for (uint e = 0; e < 8; e++) o[(g * EACH + i) * 8 + e] += s[j * PART + g] * x[e];
            }
        }
        if (more) {
            [[unroll]] for (uint j = 0; j < FLIGHT; j++) {
                uint token = min(next + j * SLOTS + slot, furthest) % PAGE_TOKENS;
                [[unroll]] for (uint i = 0; i < EACH; i++)
                    v[j * EACH + i] = kv_fetch8(kv_page(p.values, page[j], kv_head), token, min(lane + i * LANES, CHUNKS - 1));
            }
        }
    }
    // The positions of a subgroup, then the subgroups.
    [[unroll]] for (uint g = 0; g < PART; g++) {
        float highest = most[g];
        [[unroll]] for (uint x = LANES; x < SUBGROUP; x *= 2) highest = max(highest, subgroupShuffleXor(highest, x));
        float shrink = exp(most[g] - highest);
        sum[g] *= shrink;
        [[unroll]] for (uint x = LANES; x < SUBGROUP; x *= 2) sum[g] += subgroupShuffleXor(sum[g], x);
        [[unroll]] for (uint i = 0; i < EACH * 8; i++) {
            float a = o[g * EACH * 8 + i] * shrink;
            [[unroll]] for (uint x = LANES; x < SUBGROUP; x *= 2) a += subgroupShuffleXor(a, x);
            uint chunk = lane + (i / 8) * LANES;
            if (gl_SubgroupInvocationID < LANES && chunk < CHUNKS)
                sums[(gl_SubgroupID * PART + g) * HEAD_DIM + chunk * 8 + i % 8] = a;
        }
        if (gl_SubgroupInvocationID == 0) marks[gl_SubgroupID * PART + g] = vec2(highest, sum[g]);
    }
    barrier();
    uint64_t marked = p.partial + 4 * uint64_t(gl_NumWorkGroups.z * HEADS * splits) * HEAD_DIM;
    for (uint i = t; i < count * HEAD_DIM; i += n) {
        uint g = i / HEAD_DIM, c = i % HEAD_DIM;
        float highest = -1.0e30;
        [[unroll]] for (uint w = 0; w < SUBGROUPS; w++) highest = max(highest, marks[w * PART + g].x);
        float total = 0.0, a = 0.0;
        [[unroll]] for (uint w = 0; w < SUBGROUPS; w++) {
            float shrink = exp(marks[w * PART + g].x - highest);
            total += shrink * marks[w * PART + g].y;
            a += shrink * sums[(w * PART + g) * HEAD_DIM + c];
        }
        if (live == 1) {
            values[i] = a / total;
        } else {
            uint at = (row * HEADS + head + g) * splits + split;
            Between(p.partial).v[at * HEAD_DIM + c] = a;
            if (c == 0) Between2(marked).v[at] = vec2(highest, total);
        }
    }
    if (live > 1) {
        // What was stored above reaches the device before the ticket is drawn; who draws the last one sees it all. Not the Vulkan memory
        // model: lavapipe 22.3 computes wrong results with it.
        const int ALL = gl_SemanticsAcquireRelease;
        controlBarrier(gl_ScopeWorkgroup, gl_ScopeDevice, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared, ALL);
        uint ticket = row * gl_NumWorkGroups.x + gl_WorkGroupID.x;
        if (t == 0)
            finished = atomicAdd(Ticket(p.tickets).v[ticket], 1, gl_ScopeDevice, gl_StorageSemanticsBuffer, ALL);
        barrier();
        if (finished + 1 != live) return;
        controlBarrier(gl_ScopeWorkgroup, gl_ScopeDevice, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared, ALL);
        if (t == 0) Ticket(p.tickets).v[ticket] = 0;
        merge(row, head, count, live);
    } else {
        barrier();
    }
    write_output(row, head, count);
}
