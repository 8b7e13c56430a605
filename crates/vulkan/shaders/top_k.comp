#version 460
#include "lib/common.glsl"
// The K largest logits of a row with their token ids, largest first, ties to the smaller id: one workgroup a row. Each thread walks its
// share once per round and looks for the largest below the last one found.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(push_constant, scalar) uniform Push {
    uint64_t logits;    // f32 [rows, vocab]
    uint64_t out_;      // (uint id, float logit) [rows, k]
    uint vocab;
    uint k;
    float soft_cap;
} p;
shared float best_value[128];
shared uint best_id[128];

bool before(float a, uint ia, float b, uint ib) { return a > b || (a == b && ia < ib); }

void main() {
    uint row = gl_WorkGroupID.x, t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    F32 x = F32(p.logits + uint64_t(row) * p.vocab * 4);
    float last = uintBitsToFloat(0x7F800000u);
    uint last_id = 0xFFFFFFFFu;
    bool any = false;
    for (uint round = 0; round < p.k; round++) {
        float value = -uintBitsToFloat(0x7F800000u);
        uint id = 0xFFFFFFFFu;
        for (uint i = t; i < p.vocab; i += n) {
            float v = x.v[i];
            if (before(v, i, value, id) && (!any || before(last, last_id, v, i))) { value = v; id = i; }
        }
        float most = subgroupMax(value);
        id = subgroupMin(value == most ? id : 0xFFFFFFFFu);
        value = most;
        if (subgroupElect()) { best_value[gl_SubgroupID] = value; best_id[gl_SubgroupID] = id; }
        barrier();
        for (uint s = 0; s < gl_NumSubgroups; s++)
            if (before(best_value[s], best_id[s], value, id)) { value = best_value[s]; id = best_id[s]; }
        barrier();
        last = value;
        last_id = id;
        any = true;
        if (t == 0) {
            uint at = 2 * (row * p.k + round);
            float logit = p.soft_cap != 0.0 ? p.soft_cap * tanh(value / p.soft_cap) : value;
            U32(p.out_).v[at] = id;
            F32(p.out_).v[at + 1] = logit;
        }
    }
}
