#version 460
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#include "lib/common.glsl"
// Matrix product of many tokens on KHR cooperative matrices, f16 with f32 accumulation:
//   r[token, row] = W[row] . a[token], or act(Wgate[row] . a) * (Wup[row] . a) with GLU
//   y = r or y += r in f32, or h = r in f16
// A workgroup computes a tile of BM weight rows (half of them gate, half up with GLU) by BN tokens; each subgroup WM by WN of it.
// Weights are converted to f16 on the way into shared memory; the next step's loads are in flight while this step's products run.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 0) const uint THREADS = 256;
layout(constant_id = 1) const uint BM = 128;
layout(constant_id = 2) const uint BN = 128;
layout(constant_id = 3) const uint WM = 64;
layout(constant_id = 4) const uint WN = 32;
layout(constant_id = 5) const uint T = 16;          // edge of a cooperative matrix
layout(constant_id = 6) const uint ACTIVATION = 0;
layout(constant_id = 7) const uint OUTPUT = 0;      // 0 f32, 1 add to f32, 2 f16
layout(push_constant, scalar) uniform Push {
    uint64_t wq, wh, ws;
    uint64_t uq, uh, us;    // up projection of a gated unit
    uint64_t a;             // f16 [tokens, cols]
    uint64_t y;             // f32 or f16 [tokens, stride]
    uint rows, cols, tokens, stride;
} p;
#include "lib/halves.glsl"
#include "lib/activation.glsl"

const uint BK = 64;
const uint PITCH = BK / 8 + 1;      // 16-byte words of a row in shared memory: one more than needed, against bank conflicts
const uint SUBGROUPS = (BM / WM) * (BN / WN);
const uint PIECES = BM * (BK / 32) / THREADS;   // groups of 32 weights that a thread loads
const uint WORDS = BN * (BK / 8) / THREADS;     // 16-byte words of activations that a thread loads
const uint TM = WM / T, TN = WN / T;
#ifdef GLU
const uint SHOWN = TM / 2;  // tiles of a subgroup that are written: gate above, up below
const uint UNITS = BM / 2;
#else
const uint SHOWN = TM;
const uint UNITS = BM;
#endif
shared uvec4 weights[BM * PITCH];
shared uvec4 inputs[BN * PITCH];
shared float edge[SUBGROUPS * T * T];

uint thread = gl_LocalInvocationID.x;
uint first_row = gl_WorkGroupID.x * UNITS, first_token = gl_WorkGroupID.y * BN;
Fetched piece[PIECES];
uvec4 word[WORDS];

void fetch(uint k) {
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint at = i * THREADS + thread, r = at / (BK / 32), column = k + 32 * (at % (BK / 32));
#ifdef GLU
        // Each subgroup's rows: WM / 2 of gate, then the same rows of up.
        uint unit = (r / WM) * (WM / 2) + r % (WM / 2), row = min(first_row + unit, p.rows - 1);
        bool up = r % WM >= WM / 2;
        piece[i] = fetch_weights(up ? p.uq : p.wq, up ? p.uh : p.wh, up ? p.us : p.ws, row, column, p.cols);
#else
        piece[i] = fetch_weights(p.wq, p.wh, p.ws, min(first_row + r, p.rows - 1), column, p.cols);
#endif
    }
    [[unroll]] for (uint i = 0; i < WORDS; i++) {
        uint at = i * THREADS + thread, column = k + 8 * (at % (BK / 8));
        uint token = min(first_token + at / (BK / 8), p.tokens - 1);
        word[i] = column < p.cols ? U32x4(p.a + 2 * (uint64_t(token) * p.cols + column)).v[0] : uvec4(0);
    }
}

void share() {
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint at = i * THREADS + thread, to = (at / (BK / 32)) * PITCH + 4 * (at % (BK / 32));
        [[unroll]] for (uint j = 0; j < 4; j++) weights[to + j] = halves(piece[i], j);
    }
    [[unroll]] for (uint i = 0; i < WORDS; i++) {
        uint at = i * THREADS + thread;
        inputs[(at / (BK / 8)) * PITCH + at % (BK / 8)] = word[i];
    }
}

#define Sum coopmat<float, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>
#define Half coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>

// Writes one tile: in one piece where it lies inside the output and is aligned, else element by element through shared memory.
void write(Sum sum, uint row, uint token) {
    uint64_t at = uint64_t(token) * p.stride + row;
    if (row + T <= p.rows && token + T <= p.tokens && p.stride % 8 == 0) {
        if (OUTPUT == 2) {
            [[unroll]] for (uint e = 0; e < sum.length(); e++) sum[e] = clamp(sum[e], -65504.0, 65504.0);
            coopMatStore(Half(sum), F16(p.y + 2 * at).v, 0, p.stride, gl_CooperativeMatrixLayoutColumnMajor);
            return;
        }
        F32 y = F32(p.y + 4 * at);
        if (OUTPUT == 1) {
            Sum old;
            coopMatLoad(old, y.v, 0, p.stride, gl_CooperativeMatrixLayoutColumnMajor);
            sum += old;
        }
        coopMatStore(sum, y.v, 0, p.stride, gl_CooperativeMatrixLayoutColumnMajor);
        return;
    }
    uint base = gl_SubgroupID * T * T;
    coopMatStore(sum, edge, base, T, gl_CooperativeMatrixLayoutColumnMajor);
    subgroupMemoryBarrierShared();
    subgroupBarrier();
    for (uint e = gl_SubgroupInvocationID; e < T * T; e += gl_SubgroupSize) {
        if (row + e % T >= p.rows || token + e / T >= p.tokens) continue;
        uint64_t to = at + uint64_t(e / T) * p.stride + e % T;
        if (OUTPUT == 2) F16(p.y + 2 * to).v[0] = float16_t(clamp(edge[base + e], -65504.0, 65504.0));
        else F32(p.y + 4 * to).v[0] = edge[base + e] + (OUTPUT == 1 ? F32(p.y + 4 * to).v[0] : 0.0);
    }
    subgroupBarrier();
}

void main() {
    uint wm = gl_SubgroupID % (BM / WM), wn = gl_SubgroupID / (BM / WM);
    Sum sums[TM * TN];
    [[unroll]] for (uint i = 0; i < TM * TN; i++) sums[i] = Sum(0.0);
    fetch(0);
    for (uint k = 0; k < p.cols; k += BK) {
        share();
        barrier();
        if (k + BK < p.cols) fetch(k + BK);
        [[unroll]] for (uint step = 0; step < BK / T; step++) {
            coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseA> a[TM];
            coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseB> b;
            [[unroll]] for (uint i = 0; i < TM; i++)
                coopMatLoad(a[i], weights, (wm * WM + i * T) * PITCH + step * T / 8, PITCH, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint j = 0; j < TN; j++) {
                coopMatLoad(b, inputs, (wn * WN + j * T) * PITCH + step * T / 8, PITCH, gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint i = 0; i < TM; i++) sums[i * TN + j] = coopMatMulAdd(a[i], b, sums[i * TN + j]);
            }
        }
        barrier();
    }
    [[unroll]] for (uint i = 0; i < SHOWN; i++) {
        [[unroll]] for (uint j = 0; j < TN; j++) {
#ifdef GLU
            Sum up = sums[(i + SHOWN) * TN + j];
            [[unroll]] for (uint e = 0; e < up.length(); e++) sums[i * TN + j][e] = activate(sums[i * TN + j][e]) * up[e];
            uint row = first_row + wm * (WM / 2) + i * T;
#else
            uint row = first_row + wm * WM + i * T;
#endif
            write(sums[i * TN + j], row, first_token + wn * WN + j * T);
        }
    }
}
