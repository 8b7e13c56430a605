#version 460
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#include "lib/common.glsl"
// Independent chains of matrix products, f16 with f32 accumulation, all in registers: 16 chains for each subgroup, as many as the largest tiles of our products have.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint T = 16;  // edge of a cooperative matrix
ARGUMENTS { uint64_t y; uint rounds; uint seed; } p;

// Small multiples of 1/8 that differ from element to element, so that nothing can be left out and nothing overflows.
float16_t value(uint i, uint e) {
    return float16_t(float((gl_GlobalInvocationID.x * 5 + e * 3 + i + p.seed) % 7u) * 0.125);
}

void main() {
    coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseA> a[4];
    coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseB> b[4];
    coopmat<float, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator> sum[16];
    [[unroll]] for (uint i = 0; i < 4; i++)
        for (uint e = 0; e < a[i].length(); e++) a[i][e] = value(i, e);
    [[unroll]] for (uint i = 0; i < 4; i++)
        for (uint e = 0; e < b[i].length(); e++) b[i][e] = value(i + 4, e);
    [[unroll]] for (uint i = 0; i < 16; i++)
        sum[i] = coopmat<float, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>(float(i));
    // `rounds` is a multiple of 4, so that the loop itself costs nothing.
    for (uint r = 0; r < p.rounds; r += 4)
        [[unroll]] for (uint i = 0; i < 64; i++) sum[i % 16] = coopMatMulAdd(a[i % 4], b[(i / 4) % 4], sum[i % 16]);
    float all = 0.0;
    [[unroll]] for (uint i = 0; i < 16; i++)
        for (uint e = 0; e < sum[i].length(); e++) all += sum[i][e];
    F32(p.y).v[gl_GlobalInvocationID.x] = all;
}
