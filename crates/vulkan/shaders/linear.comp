#version 460
#include "lib/common.glsl"
// Decode matrix-vector product for 1 .. 8 tokens, with everything around it folded in:
//   r[row] = W[row] . a, or act(Wgate[row] . a) * (Wup[row] . a) with GLU
//   r *= inverse RMS of the input row, where `squares` gives the sums of squares of its groups
//   y = r, or y += r (residual stream)
//   and where `q` is given: y * next norm's weight, quantized or as f32 for the next product, with the sums of squares of y.
// A workgroup computes 32 rows, LANES lanes for every ROWS of them. Little work is done a token, so what counts is how many loads are in
// flight: each lane issues UNROLL groups of weights of each of its rows at once, and what the end needs is loaded before the products. With
// several tokens what counts is how often activations are loaded: once for all of a lane's rows.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 1) const uint TOKENS = 1;
layout(constant_id = 2) const uint LANES = 8;
layout(constant_id = 3) const uint ACCUMULATE = 0;   // y += r
layout(constant_id = 4) const uint ACTIVATION = 0;   // of a gated unit: 0 SiLU, 1 GELU (tanh)
layout(constant_id = 5) const uint NORMED = 0;       // multiply by the input's inverse RMS
layout(constant_id = 6) const uint QUANTIZE = 0;     // 1 quantizes the result; 2 quantizes it times `next`, with sums of squares; 3 the same as f32
layout(constant_id = 7) const uint HAS_Y = 1;        // f32 output
layout(constant_id = 8) const uint UNROLL = 1;
layout(constant_id = 9) const uint ROWS = 1;         // 1, 2 or 4
ARGUMENTS {
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
shared float values[MATRICES * 8 * 32];
shared float partial[8 * 128];

// A lane's rows of all matrices: the gate's, then those of the up projection.
const uint LINES = MATRICES * ROWS;
float sums[LINES * TOKENS];         // [matrix][token][row]
uint own_rows[ROWS];
uint index(uint line, uint t) { return ((line / ROWS) * TOKENS + t) * ROWS + line % ROWS; }

// Adds this lane's columns to the sums. Lanes past the last column read it again and count it as zero.
#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#include "lib/floats.glsl"
void product(uint lane) {
    uint chunks = p.cols / 8;
    for (uint first = lane; first < chunks; first += LANES * UNROLL) {
        Weights8 w[LINES * UNROLL];
        [[unroll]] for (uint u = 0; u < UNROLL; u++) [[unroll]] for (uint r = 0; r < ROWS; r++) {
            uint at = own_rows[r] * p.cols + 8 * min(first + u * LANES, chunks - 1);
            w[u * LINES + r] = weights8_at(p.wq, at);
#ifdef GLU
            w[u * LINES + ROWS + r] = weights8_at(p.uq, at);
#endif
        }
        [[unroll]] for (uint u = 0; u < UNROLL; u++) {
            uint chunk = first + u * LANES;
            if (chunk >= chunks) break;
            vec4 lo[LINES], hi[LINES];
            [[unroll]] for (uint l = 0; l < LINES; l++) widen(w[u * LINES + l], lo[l], hi[l]);
            [[unroll]] for (uint t = 0; t < TOKENS; t++) {
                uint at = (t * p.cols) / 4 + 2 * chunk;
                vec4 a = F32x4(p.a).v[at], b = F32x4(p.a).v[at + 1];
                [[unroll]] for (uint l = 0; l < LINES; l++) sums[index(l, t)] += dot(lo[l], a) + dot(hi[l], b);
            }
        }
    }
}
#else
#include "lib/weights.glsl"
void product(uint lane) {
    uint groups = p.cols / 32;
    for (uint first = lane; first < groups; first += LANES * UNROLL) {
        Raw w[LINES * UNROLL];
        [[unroll]] for (uint u = 0; u < UNROLL; u++) [[unroll]] for (uint r = 0; r < ROWS; r++) {
            uint at = own_rows[r] * groups + min(first + u * LANES, groups - 1);
            w[u * LINES + r] = load(Planes(p.wq, p.wh, p.ws), at);
#ifdef GLU
            w[u * LINES + ROWS + r] = load(Planes(p.uq, p.uh, p.us), at);
#endif
        }
        [[unroll]] for (uint u = 0; u < UNROLL; u++) {
            uint group = first + u * LANES;
            bool inside = group < groups;
            Group unpacked[LINES];
            [[unroll]] for (uint l = 0; l < LINES; l++) unpacked[l] = unpack(w[u * LINES + l]);
            [[unroll]] for (uint t = 0; t < TOKENS; t++) {
                uint at = t * groups + min(group, groups - 1);
                uvec4 a = U32x4(p.a).v[2 * at], b = U32x4(p.a).v[2 * at + 1];
                QuantizedMeta meta = Meta(p.meta).v[at];
                float scale = inside ? meta.scale : 0.0;
                [[unroll]] for (uint l = 0; l < LINES; l++) {
                    Group g = unpacked[l];
                    int lo = dot4(g.w[0], a.x) + dot4(g.w[1], a.y) + dot4(g.w[2], a.z) + dot4(g.w[3], a.w);
                    int hi = dot4(g.w[4], b.x) + dot4(g.w[5], b.y) + dot4(g.w[6], b.z) + dot4(g.w[7], b.w);
                    sums[index(l, t)] += scale * (g.d.x * float(lo) + g.d.y * float(hi) + dot(g.m, unpack_sums(meta.sums)));
                }
            }
        }
    }
}
#endif
#include "lib/quantize.glsl"
#include "lib/activation.glsl"

// Inverse RMS of token `t`'s input row, from each subgroup's share of the sums of squares.
float inverse_rms(uint t) {
    float sum = 0.0;
    if (gl_SubgroupSize >= 32) {
        // At most 32 shares; waves of 64 hold two tokens.
        uint i = gl_LocalInvocationID.x & 31u;
        sum = i < gl_NumSubgroups ? partial[t * 128 + i] : 0.0;
        [[unroll]] for (uint x = 16; x > 0; x /= 2) sum += subgroupShuffleXor(sum, x);
    } else {
        for (uint i = 0; i < gl_NumSubgroups; i++) sum += partial[t * 128 + i];
    }
    return inversesqrt(sum / float(p.cols) + p.eps);
}

// Finishes row `i` of the workgroup for token `t`; returns what the next product reads, before quantization, and the value itself.
vec2 finish(uint t, uint i, float old, float next) {
    uint row = gl_WorkGroupID.x * 32 + i;
    float inverse = NORMED != 0 ? inverse_rms(t) : 1.0;
    float r = values[t * 32 + i] * inverse;
#ifdef GLU
    r = activate(r) * (values[(TOKENS + t) * 32 + i] * inverse);
#endif
    r = row < p.rows ? r + old : 0.0;
    if (HAS_Y != 0 && row < p.rows) F32(p.y).v[t * p.y_stride + row] = r;
    float scaled = r * next;
    if (QUANTIZE == 3 && row < p.rows) F32(p.q).v[t * p.rows + row] = scaled;
    return vec2(scaled, r);
}

void main() {
    uint thread = gl_LocalInvocationID.x, local = thread / LANES, lane = thread % LANES;
    uint groups_in = p.cols / 32;
    [[unroll]] for (uint r = 0; r < ROWS; r++) own_rows[r] = min(gl_WorkGroupID.x * 32 + local * ROWS + r, p.rows - 1);
    // What the end needs is on its way while the products run: the first threads finish one row each.
    uint own = min(gl_WorkGroupID.x * 32 + (thread & 31u), p.rows - 1), own_token = min(thread / 32, TOKENS - 1);
    float old = ACCUMULATE != 0 ? F32(p.y).v[own_token * p.y_stride + own] : 0.0;
    float next = QUANTIZE >= 2 ? F32(p.next).v[own] : 1.0;
    float squares[TOKENS];
    if (NORMED != 0) [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        squares[t] = 0.0;
        for (uint g = thread; g < groups_in; g += gl_WorkGroupSize.x) squares[t] += F32(p.squares).v[t * groups_in + g];
    }
    [[unroll]] for (uint i = 0; i < LINES * TOKENS; i++) sums[i] = 0.0;
    product(lane);
    [[unroll]] for (uint i = 0; i < LINES * TOKENS; i++) {
        [[unroll]] for (uint s = LANES / 2; s > 0; s /= 2) sums[i] += subgroupShuffleXor(sums[i], s);
        if (lane == 0) values[(i / ROWS) * 32 + local * ROWS + i % ROWS] = sums[i];
    }
    if (NORMED != 0) [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        float sum = subgroupAdd(squares[t]);
        if (subgroupElect()) partial[t * 128 + gl_SubgroupID] = sum;
    }
    barrier();
    // 32 rows are one group of the next product's input.
    uint groups = (p.rows + 31) / 32, group = gl_WorkGroupID.x, i = thread & 31u;
    if (gl_SubgroupSize >= 32) {
        for (uint t = thread / 32; t < TOKENS; t += gl_WorkGroupSize.x / 32) {
            if (t != own_token && ACCUMULATE != 0) old = F32(p.y).v[t * p.y_stride + own];
            vec2 r = finish(t, i, old, next);
            if (QUANTIZE >= 2) {
                float sum = r.y * r.y;
                [[unroll]] for (uint x = 16; x > 0; x /= 2) sum += subgroupShuffleXor(sum, x);
                if (i == 0) F32(p.qsquares).v[t * groups + group] = sum;
            }
            if (QUANTIZE == 1 || QUANTIZE == 2) quantize_lanes(p.q, p.qmeta, t * groups + group, r.x);
        }
        return;
    }
    vec2 r[TOKENS];
    [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        if (thread < 32) {
            if (ACCUMULATE != 0) old = F32(p.y).v[t * p.y_stride + own];
            r[t] = finish(t, i, old, next);
        }
    }
    if (QUANTIZE == 0) return;
    barrier();
    if (thread < 32) [[unroll]] for (uint t = 0; t < TOKENS; t++) {
        values[t * 32 + i] = r[t].x;
        partial[t * 32 + i] = r[t].y * r[t].y;
    }
    barrier();
    if (QUANTIZE >= 2) for (uint t = thread; t < TOKENS; t += gl_WorkGroupSize.x) {
        float sum = 0.0;
        [[unroll]] for (int j = 0; j < 32; j++) sum += partial[t * 32 + j];
        F32(p.qsquares).v[t * groups + group] = sum;
    }
    if (QUANTIZE == 3) return;
    for (uint j = thread; j < TOKENS * 8; j += gl_WorkGroupSize.x)
        quantize_group(p.q, p.qmeta, (j / 8) * groups + group, (j / 8) * 32, j % 8);
}
