#version 460
#include "lib/common.glsl"
#include "lib/flat.glsl"
// f16 activations to 8 bits: rows of whole groups of 32, one after the other.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
ARGUMENTS {
    uint64_t x;         // f16 [groups * 32]
    uint64_t q, meta;
    uint groups;
} p;
shared float values[1024];
#include "lib/quantize.glsl"

void main() {
    uint t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x;
    uint at = flat_group() * n + t;
    values[t] = at < p.groups * 32 ? float(F16(p.x).v[at]) : 0.0;
    barrier();
    uint group = flat_group() * (n / 32) + t / 8;
    if (t < n / 4 && group < p.groups) quantize_group(p.q, p.meta, group, (t / 8) * 32, t % 8);
}
