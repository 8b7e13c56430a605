#version 460
#include "lib/common.glsl"
// The K largest logits of a row with their token ids, largest first, ties to the smaller id. A workgroup takes one slice of a row, holds it
// in registers and takes out the largest K times. Where a row has several slices, a second dispatch does the same with their pairs; ids
// of pairs that stand for nothing are the largest.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint EACH = 1;        // values of a thread
layout(constant_id = 2) const uint PAIRS = 0;       // the input is pairs, not logits
layout(constant_id = 3) const uint LAST = 1;        // the result is the answer: soft cap
ARGUMENTS {
    uint64_t x;         // f32 [rows, count], or (float value, uint id) [rows, count]
    uint64_t out_;      // (float value, uint id) [rows, slices, k]; with LAST (uint id, float logit) [rows, k], ids that an embedding can read
    uint count;
    uint k;
    float soft_cap;     // 0 for none
} p;

const uint NO_ID = 0xFFFFFFFFu;
// Two sets, so that one barrier a round is enough.
shared float best_value[2 * 128];
shared uint best_id[2 * 128];

bool before(float a, uint ia, float b, uint ib) { return a > b || (a == b && ia < ib); }

// The best of a subgroup, in every lane.
void best_of_subgroup(inout float value, inout uint id) {
    float most = subgroupMax(value);
    id = subgroupMin(value == most ? id : NO_ID);
    value = most;
}

void main() {
    const float NOTHING = -uintBitsToFloat(0x7F800000u);
    uint slice = gl_WorkGroupID.x, row = gl_WorkGroupID.y, t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    float values[EACH];
    uint ids[EACH];
    [[unroll]] for (uint e = 0; e < EACH; e++) {
        uint i = (slice * EACH + e) * n + t;
        values[e] = NOTHING;
        ids[e] = NO_ID;
        if (i < p.count && PAIRS == 0) {
            // No number comes first. Told by its bits: drivers may take it that there is none.
            uint bits = U32(p.x + 4 * uint64_t(row) * p.count).v[i];
            values[e] = uintBitsToFloat((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7F800000u : bits);
            ids[e] = i;
        }
        if (i < p.count && PAIRS != 0) {
            uvec2 pair = U32x2(p.x + 8 * uint64_t(row) * p.count).v[i];
            values[e] = uintBitsToFloat(pair.x);
            ids[e] = pair.y;
        }
    }
    for (uint round = 0; round < p.k; round++) {
        float value = NOTHING;
        uint id = NO_ID, set = 128 * (round & 1u);
        [[unroll]] for (uint e = 0; e < EACH; e++)
            if (before(values[e], ids[e], value, id)) { value = values[e]; id = ids[e]; }
        best_of_subgroup(value, id);
        if (subgroupElect()) { best_value[set + gl_SubgroupID] = value; best_id[set + gl_SubgroupID] = id; }
        barrier();
        value = NOTHING;
        id = NO_ID;
        for (uint s = gl_SubgroupInvocationID; s < gl_NumSubgroups; s += gl_SubgroupSize)
            if (before(best_value[set + s], best_id[set + s], value, id)) { value = best_value[set + s]; id = best_id[set + s]; }
        best_of_subgroup(value, id);
        // Ids are unique, so only the owner of the value finds it.
        [[unroll]] for (uint e = 0; e < EACH; e++)
            if (ids[e] == id) { values[e] = NOTHING; ids[e] = NO_ID; }
        if (t != 0) continue;
        uint at = (row * gl_NumWorkGroups.x + slice) * p.k + round;
        if (LAST != 0) {
            U32(p.out_).v[2 * at] = id == NO_ID ? 0 : id;
            F32(p.out_).v[2 * at + 1] = p.soft_cap != 0.0 && floatBitsToUint(value) != 0x7F800000u ? p.soft_cap * tanh(value / p.soft_cap) : value;
        } else {
            U32x2(p.out_).v[at] = uvec2(floatBitsToUint(value), id);
        }
    }
}
