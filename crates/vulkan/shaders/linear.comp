#version 460
#include "lib/common.glsl"
// Decode matrix-vector product for 1 .. 8 tokens, with everything around it folded in:
//   r[row] = W[row] . a, or act(Wgate[row] . a) * (Wup[row] . a) with GLU
//   r *= inverse RMS of the input row, where `squares` gives the sums of squares of its groups
//   y = r, or y += r (residual stream)
//   and where `q` is given: y * next norm's weight, quantized or as f32 for the next product, with the sums of squares of y.
// A workgroup computes 32 rows with LANES lanes each. Little work is done a token, so what counts is how many loads are in flight: each
// lane issues UNROLL groups of weights at once, and what the end needs is loaded before the products.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint TOKENS = 1;
layout(constant_id = 2) const uint LANES = 8;
layout(constant_id = 3) const uint ACCUMULATE = 0;   // y += r
layout(constant_id = 4) const uint ACTIVATION = 0;   // of a gated unit: 0 SiLU, 1 GELU (tanh)
layout(constant_id = 5) const uint NORMED = 0;       // multiply by the input's inverse RMS
layout(constant_id = 6) const uint QUANTIZE = 0;     // 1 quantizes the result; 2 quantizes it times `next`, with sums of squares; 3 the same as f32
layout(constant_id = 7) const uint HAS_Y = 1;        // f32 output
layout(constant_id = 8) const uint UNROLL = 1;
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

#ifdef GLU
const uint MATRICES = 2;
#else
const uint MATRICES = 1;
#endif
shared float values[8 * 32];
shared float partial[8 * 128];

float sums[MATRICES * TOKENS];
// Adds this lane's columns to sums[m * TOKENS + t]. Lanes past the last column read it again and count it as zero.
#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#include "lib/floats.glsl"
void product(uint row, uint lane) {
    uint base = row * p.cols, chunks = p.cols / 8;
    for (uint first = lane; first < chunks; first += LANES * UNROLL) {
        Weights8 w[MATRICES * UNROLL];
        [[unroll]] for (uint u = 0; u < UNROLL; u++) {
            uint at = base + 8 * min(first + u * LANES, chunks - 1);
            w[u] = weights8_at(p.wq, at);
#ifdef GLU
            w[UNROLL + u] = weights8_at(p.uq, at);
#endif
        }
        [[unroll]] for (uint u = 0; u < UNROLL; u++) {
            uint chunk = first + u * LANES;
            if (chunk >= chunks) break;
            [[unroll]] for (uint t = 0; t < TOKENS; t++) {
                uint at = (t * p.cols) / 4 + 2 * chunk;
                vec4 a = F32x4(p.a).v[at], b = F32x4(p.a).v[at + 1];
                [[unroll]] for (uint m = 0; m < MATRICES; m++) {
                    vec4 lo, hi;
                    widen(w[m * UNROLL + u], lo, hi);
                    sums[m * TOKENS + t] += dot(lo, a) + dot(hi, b);
                }
            }
        }
    }
}
#else
#include "lib/weights.glsl"
void product(uint row, uint lane) {
    uint groups = p.cols / 32, base = row * groups;
    for (uint first = lane; first < groups; first += LANES * UNROLL) {
        Raw w[MATRICES * UNROLL];
        [[unroll]] for (uint u = 0; u < UNROLL; u++) {
            uint at = base + min(first + u * LANES, groups - 1);
            w[u] = load(Planes(p.wq, p.wh, p.ws), at);
#ifdef GLU
            w[UNROLL + u] = load(Planes(p.uq, p.uh, p.us), at);
#endif
        }
        [[unroll]] for (uint u = 0; u < UNROLL; u++) {
            uint group = first + u * LANES;
            bool inside = group < groups;
            Group unpacked[MATRICES];
            [[unroll]] for (uint m = 0; m < MATRICES; m++) unpacked[m] = unpack(w[m * UNROLL + u]);
            [[unroll]] for (uint t = 0; t < TOKENS; t++) {
                uint at = t * groups + min(group, groups - 1);
                uvec4 a = U32x4(p.a).v[2 * at], b = U32x4(p.a).v[2 * at + 1];
                QuantizedMeta meta = Meta(p.meta).v[at];
                float scale = inside ? meta.scale : 0.0;
                [[unroll]] for (uint m = 0; m < MATRICES; m++) {
                    Group g = unpacked[m];
                    int lo = dot4(g.w[0], a.x) + dot4(g.w[1], a.y) + dot4(g.w[2], a.z) + dot4(g.w[3], a.w);
                    int hi = dot4(g.w[4], b.x) + dot4(g.w[5], b.y) + dot4(g.w[6], b.z) + dot4(g.w[7], b.w);
                    sums[m * TOKENS + t] += scale * (g.d.x * float(lo) + g.d.y * float(hi) + dot(g.m, unpack_sums(meta.sums)));
                }
            }
        }
    }
}
#endif
#include "lib/quantize.glsl"
#include "lib/activation.glsl"

// Each subgroup's share of the input's sums of squares, to `partial`; `inverse_rms` adds them up behind the next barrier.
void start_rms() {
    uint groups = p.cols / 32;
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        float sum = 0.0;
        for (uint g = gl_LocalInvocationID.x; g < groups; g += gl_WorkGroupSize.x) sum += F32(p.squares).v[t * groups + g];
        sum = subgroupAdd(sum);
        if (subgroupElect()) partial[t * 128 + gl_SubgroupID] = sum;
    }
}

float inverse_rms(uint t) {
    float sum = 0.0;
    for (uint i = gl_SubgroupInvocationID; i < gl_NumSubgroups; i += gl_SubgroupSize) sum += partial[t * 128 + i];
    return inversesqrt(subgroupAdd(sum) / float(p.cols) + p.eps);
}

void main() {
    uint thread = gl_LocalInvocationID.x, local = thread / LANES, lane = thread % LANES;
    uint row = gl_WorkGroupID.x * 32 + local, near = min(row, p.rows - 1);
    bool live = row < p.rows;
    float old[TOKENS];
    float weight = 1.0;
    if (ACCUMULATE != 0) [[unroll]] for (uint t = 0; t < TOKENS; t++) old[t] = F32(p.y).v[t * p.y_stride + near];
    if (QUANTIZE >= 2) weight = F32(p.next).v[near];
    if (NORMED != 0) start_rms();
    [[unroll]] for (uint i = 0; i < MATRICES * TOKENS; i++) sums[i] = 0.0;
    product(near, lane);
    [[unroll]] for (uint i = 0; i < MATRICES * TOKENS; i++)
        [[unroll]] for (uint s = LANES / 2; s > 0; s /= 2) sums[i] += subgroupShuffleXor(sums[i], s);
    if (NORMED != 0) barrier();
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        float inverse = NORMED != 0 ? inverse_rms(t) : 1.0;
        float r = sums[t] * inverse;
#ifdef GLU
        r = activate(r) * (sums[TOKENS + t] * inverse);
#endif
        if (ACCUMULATE != 0) r += old[t];
        if (lane == 0) {
            if (live && HAS_Y != 0) F32(p.y).v[t * p.y_stride + row] = r;
            if (QUANTIZE != 0) values[t * 32 + local] = live ? r : 0.0;
        }
    }
    if (QUANTIZE == 0) return;
    if (QUANTIZE >= 2 && lane == 0) partial[8 * 128 - 32 + local] = weight;
    barrier();
    // 32 rows are one group of the next product's input.
    uint groups = (p.rows + 31) / 32, group = gl_WorkGroupID.x;
    if (gl_SubgroupSize >= 32) {
        // Waves of 64 take two tokens.
        uint i = thread & 31u;
        for (uint t = thread / 32; t < TOKENS; t += gl_WorkGroupSize.x / 32) {
            float v = values[t * 32 + i];
            if (QUANTIZE >= 2) {
                float squares = v * v;
                [[unroll]] for (uint x = 16; x > 0; x /= 2) squares += subgroupShuffleXor(squares, x);
                if (i == 0) F32(p.qsquares).v[t * groups + group] = squares;
                v *= partial[8 * 128 - 32 + i];
            }
            if (QUANTIZE == 3) {
                if (group * 32 + i < p.rows) F32(p.q).v[t * p.rows + group * 32 + i] = v;
            } else {
                quantize_lanes(p.q, p.qmeta, t * groups + group, v);
            }
        }
        return;
    }
    if (QUANTIZE >= 2) {
        for (uint t = thread; t < TOKENS; t += gl_WorkGroupSize.x) {
            float squares = 0.0;
            [[unroll]] for (int i = 0; i < 32; i++) squares += values[t * 32 + i] * values[t * 32 + i];
            F32(p.qsquares).v[t * groups + group] = squares;
        }
        barrier();
        for (uint i = thread; i < TOKENS * 32; i += gl_WorkGroupSize.x) {
            values[i] *= partial[8 * 128 - 32 + (i & 31u)];
            if (QUANTIZE == 3 && group * 32 + (i & 31u) < p.rows) F32(p.q).v[(i / 32) * p.rows + group * 32 + (i & 31u)] = values[i];
        }
        barrier();
    }
    if (QUANTIZE == 3) return;
    for (uint i = thread; i < TOKENS * 8; i += gl_WorkGroupSize.x)
        quantize_group(p.q, p.qmeta, (i / 8) * groups + group, (i / 8) * 32, i % 8);
}
