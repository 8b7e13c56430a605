#version 460
#include "lib/common.glsl"
// Decode matrix-vector product for 1 .. 8 tokens, with everything around it folded in:
//   r[row] = W[row] . a, or act(Wgate[row] . a) * (Wup[row] . a) with GLU
//   r *= inverse RMS of the input row, where `squares` gives the sums of squares of its groups
//   y = r, or y += r (residual stream)
//   and where `q` is given: y * next norm's weight, quantized for the next product, with the sums of squares of y.
// A workgroup computes 32 rows with LANES lanes each.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint TOKENS = 1;
layout(constant_id = 2) const uint LANES = 8;
layout(constant_id = 3) const uint ACCUMULATE = 0;   // y += r
layout(constant_id = 4) const uint ACTIVATION = 0;   // of a gated unit: 0 SiLU, 1 GELU (tanh)
layout(constant_id = 5) const uint NORMED = 0;       // multiply by the input's inverse RMS
layout(constant_id = 7) const uint HAS_Y = 1;        // f32 output
layout(constant_id = 6) const uint QUANTIZE = 0;     // 1 quantizes the result, 2 also writes the sums of squares
layout(push_constant, scalar) uniform Push {
    uint64_t wq, wh, ws;
    uint64_t uq, uh, us;    // up projection of a gated unit
    uint64_t a, meta;       // activations: packed i8 and meta, or f32
    uint64_t squares;       // f32 [tokens, cols / 32]
    uint64_t y;             // f32 [tokens, y_stride], 0 for none
    uint64_t next;          // f32 [rows]: weight of the next norm, 0 for none
    uint64_t q, qmeta, qsquares;
    uint rows, cols;
    float eps;
    uint y_stride;
} p;

shared float values[8 * 32];
shared float partial[64];

#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#include "lib/floats.glsl"
void product(uint64_t wq, uint64_t wh, uint64_t ws, uint row, uint lane, inout float sum[8]) {
    uint base = row * p.cols;
    for (uint c = lane * 4; c < p.cols; c += LANES * 4) {
        vec4 w = weight4_at(wq, base + c);
        [[unroll]] for (uint t = 0; t < TOKENS; t++) sum[t] += dot(w, F32x4(p.a).v[(t * p.cols + c) >> 2]);
    }
}
#else
#include "lib/weights.glsl"
void product(uint64_t wq, uint64_t wh, uint64_t ws, uint row, uint lane, inout float sum[8]) {
    Planes planes = Planes(wq, wh, ws);
    uint groups = p.cols / 32;
    for (uint g = lane; g < groups; g += LANES) {
        Group w = decode(planes, row * groups + g);
        [[unroll]] for (uint t = 0; t < TOKENS; t++) {
            uint at = t * groups + g;
            U32x4 q = U32x4(p.a);
            uvec4 a = q.v[2 * at], b = q.v[2 * at + 1];
            QuantizedMeta m = Meta(p.meta).v[at];
            int lo = dot4(w.w[0], a.x) + dot4(w.w[1], a.y) + dot4(w.w[2], a.z) + dot4(w.w[3], a.w);
            int hi = dot4(w.w[4], b.x) + dot4(w.w[5], b.y) + dot4(w.w[6], b.z) + dot4(w.w[7], b.w);
            sum[t] += m.scale * (w.d.x * float(lo) + w.d.y * float(hi) + dot(w.m, unpack_sums(m.sums)));
        }
    }
}
#endif
#include "lib/quantize.glsl"

#include "lib/activation.glsl"

// Inverse RMS of token `t`'s input row, by all threads of the workgroup.
float inverse_rms(uint t) {
    uint groups = p.cols / 32, n = gl_WorkGroupSize.x;
    float sum = 0.0;
    for (uint g = gl_LocalInvocationID.x; g < groups; g += n) sum += F32(p.squares).v[t * groups + g];
    sum = subgroupAdd(sum);
    if (subgroupElect()) partial[gl_SubgroupID] = sum;
    barrier();
    sum = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++) sum += partial[i];
    barrier();
    return inversesqrt(sum / float(p.cols) + p.eps);
}

void main() {
    uint thread = gl_LocalInvocationID.x, local = thread / LANES, lane = thread % LANES;
    uint row = gl_WorkGroupID.x * 32 + local;
    bool live = row < p.rows;
    float sum[8];
    float up[8];
    [[unroll]] for (uint t = 0; t < TOKENS; t++) { sum[t] = 0.0; up[t] = 0.0; }
    if (live) {
        product(p.wq, p.wh, p.ws, row, lane, sum);
#ifdef GLU
        product(p.uq, p.uh, p.us, row, lane, up);
#endif
    }
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        [[unroll]] for (uint s = LANES / 2; s > 0; s /= 2) sum[t] += subgroupShuffleXor(sum[t], s);
#ifdef GLU
        [[unroll]] for (uint s = LANES / 2; s > 0; s /= 2) up[t] += subgroupShuffleXor(up[t], s);
#endif
        float inverse = NORMED != 0 ? inverse_rms(t) : 1.0;
        float r = sum[t] * inverse;
#ifdef GLU
        r = activate(r) * (up[t] * inverse);
#endif
        if (lane == 0) {
            if (live && HAS_Y != 0) {
                uint at = t * p.y_stride + row;
                if (ACCUMULATE != 0) r += F32(p.y).v[at];
                F32(p.y).v[at] = r;
            }
            values[t * 32 + local] = live ? r : 0.0;
        }
    }
    if (QUANTIZE == 0) return;
    barrier();
    // 32 rows are one group of the next product's input.
    uint groups = (p.rows + 31) / 32, group = gl_WorkGroupID.x;
    if (QUANTIZE == 2) {
        for (uint t = thread; t < TOKENS; t += gl_WorkGroupSize.x) {
            float squares = 0.0;
            [[unroll]] for (int i = 0; i < 32; i++) squares += values[t * 32 + i] * values[t * 32 + i];
            F32(p.qsquares).v[t * groups + group] = squares;
        }
        barrier();
        for (uint i = thread; i < TOKENS * 32; i += gl_WorkGroupSize.x) {
            uint r = group * 32 + (i & 31u);
            if (r < p.rows) values[i] *= F32(p.next).v[r];
        }
        barrier();
    }
    for (uint i = thread; i < TOKENS * 8; i += gl_WorkGroupSize.x)
        quantize_group(p.q, p.qmeta, (i / 8) * groups + group, (i / 8) * 32, i % 8);
}
