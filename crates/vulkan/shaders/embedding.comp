#version 460
#include "lib/common.glsl"
#include "lib/batch.glsl"
// x[row] = table[token] * scale, one workgroup a row.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(push_constant, scalar) uniform Push {
    uint64_t wq, wh, ws;
    uint64_t batch;     // rows
    uint64_t x;         // f32 [rows, width]
    uint width;
    float scale;
} p;
#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#include "lib/floats.glsl"
void main() {
    uint row = gl_WorkGroupID.x, token = Rows(p.batch).v[row].token;
    for (uint c = gl_LocalInvocationID.x; c < p.width; c += gl_WorkGroupSize.x)
        F32(p.x).v[row * p.width + c] = p.scale * weight_at(p.wq, token * p.width + c);
}
#else
#include "lib/weights.glsl"
void main() {
    uint row = gl_WorkGroupID.x, token = Rows(p.batch).v[row].token, groups = p.width / 32;
    for (uint g = gl_LocalInvocationID.x; g < groups; g += gl_WorkGroupSize.x) {
        Group w = decode(Planes(p.wq, p.wh, p.ws), token * groups + g);
        [[unroll]] for (uint i = 0; i < 32; i++) {
            float v = float(int(w.w[i >> 2] << (24 - 8 * (i & 3))) >> 24);
            F32(p.x).v[row * p.width + g * 32 + i] = p.scale * (w.d[i >> 4] * v + w.m[i >> 4]);
        }
    }
}
#endif
