#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
// LayerNorm of rows in place: one workgroup a row.
//   x = norm(x) * weight + bias, or norm(x + table[position]) * weight + bias with POSITIONS
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint POSITIONS = 0;
ARGUMENTS {
    uint64_t x;             // f32 [rows, width]
    uint64_t weight, bias;  // f32 [width]
    uint64_t table;         // f32 [positions, width], 0 for none
    uint64_t batch;         // rows
    uint width;
    float eps;
} p;
shared float partial[64];

// The sum over all threads, which all of them get.
float total(float v) {
    v = subgroupAdd(v);
    barrier();
    if (subgroupElect()) partial[gl_SubgroupID] = v;
    barrier();
    v = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++) v += partial[i];
    return v;
}

void main() {
    uint row = gl_WorkGroupID.x, t = gl_LocalInvocationID.x, n = gl_WorkGroupSize.x, base = row * p.width;
    uint at = POSITIONS != 0 ? Rows(p.batch).v[row].position * p.width : 0;
    float sum = 0.0;
    for (uint i = t; i < p.width; i += n) {
        float v = F32(p.x).v[base + i];
        if (POSITIONS != 0) {
            v += F32(p.table).v[at + i];
            F32(p.x).v[base + i] = v;
        }
        sum += v;
    }
    float mean = total(sum) / float(p.width);
    sum = 0.0;
    for (uint i = t; i < p.width; i += n) {
        float v = F32(p.x).v[base + i] - mean;
        sum += v * v;
    }
    float inverse = inversesqrt(total(sum) / float(p.width) + p.eps);
    for (uint i = t; i < p.width; i += n) {
        float v = (F32(p.x).v[base + i] - mean) * inverse;
        F32(p.x).v[base + i] = v * F32(p.weight).v[i] + F32(p.bias).v[i];
    }
}
