#version 460
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#include "lib/common.glsl"
// Matrix product of many tokens on KHR cooperative matrices, f16 with f32 accumulation:
//   r[token, row] = W[row] . a[token], or act(Wgate[row] . a) * (Wup[row] . a) with GLU
//   y = r or y += r in f32, or h = r in f16; with several splits of the columns, each writes its own sums
// A workgroup computes a tile of BM weight rows (half of them gate, half up with GLU) by BN tokens; each subgroup WM by WN of it.
// Weights are converted to f16 on the way into shared memory. Rows and tokens past the end are computed and dropped: buffers are padded
// to whole tiles, so loads need no test.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 0) const uint THREADS = 128;
layout(constant_id = 1) const uint BM = 128;
layout(constant_id = 2) const uint BN = 128;
layout(constant_id = 3) const uint WM = 64;
layout(constant_id = 4) const uint WN = 64;
layout(constant_id = 5) const uint T = 16;          // edge of a cooperative matrix
layout(constant_id = 6) const uint ACTIVATION = 0;
layout(constant_id = 7) const uint OUTPUT = 0;      // 0 f32, 1 add to f32, 2 f16
layout(constant_id = 8) const uint RAGGED = 0;      // the columns are no multiple of BK
layout(constant_id = 9) const uint PREFETCH = 1;    // the next step's loads are in flight while this step's products run
ARGUMENTS {
    uint64_t wq, wh, ws;
    uint64_t uq, uh, us;    // up projection of a gated unit
    uint64_t a;             // f16 [tokens, cols]
    uint64_t y;             // f32 or f16 [tokens, stride], one after the other for each split
    uint rows, cols, tokens, stride;
    uint span;              // columns of a split, a multiple of BK where there are several
} p;
#include "lib/halves.glsl"
#include "lib/activation.glsl"

const uint BK = 64;
const uint PITCH = BK / 8 + 1;          // 16-byte words of a row in shared memory: one more than needed, against bank conflicts
const uint ROWS = THREADS / (BK / 8);   // rows that the workgroup loads at once, 16-byte words
const uint WORDS = BN / ROWS;
#ifdef WEIGHT_FLOAT
#define Piece Words
const uint PIECES = BM / ROWS;
#else
#define Piece Raw
const uint GROUPS = BM * (BK / 32), PIECES = (GROUPS + THREADS - 1) / THREADS;
#endif
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

uint thread = gl_LocalInvocationID.x, word_row = thread / (BK / 8), word_column = thread % (BK / 8);
// Token tiles run fastest: workgroups that run together share weights.
uint first_row = gl_WorkGroupID.y * UNITS, first_token = gl_WorkGroupID.x * BN;
Piece piece[PIECES];
uvec4 word[WORDS];
uint64_t input_at = p.a + 2 * (uint64_t(first_token + word_row) * p.cols + 8 * word_column);

// Row of the matrix for row `r` of the tile. With GLU each subgroup's rows are WM / 2 of gate, then the same rows of up.
uint unit(uint r) {
#ifdef GLU
    return (r / WM) * (WM / 2) + r % (WM / 2);
#else
    return r;
#endif
}

#ifdef WEIGHT_FLOAT
uint64_t weight_at = p.wq + ELEMENT * (uint64_t(first_row + word_row) * p.cols + 8 * word_column);
uint64_t up_at = p.uq + ELEMENT * (uint64_t(first_row + word_row) * p.cols + 8 * word_column);
void fetch_weights(uint k, bool inside) {
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        // Whole runs of ROWS rows lie on one side, so the choice is the same for all threads.
        uint64_t base = weight_at;
#ifdef GLU
        if ((i * ROWS) % WM >= WM / 2) base = up_at;
#endif
        uint64_t at = base + ELEMENT * uint64_t(unit(i * ROWS) * p.cols + k);
        piece[i] = no_words();
        if (inside) piece[i] = fetch_words(at);
    }
}
void share_weights() {
    [[unroll]] for (uint i = 0; i < PIECES; i++) weights[(i * ROWS + word_row) * PITCH + word_column] = word_halves(piece[i]);
}
#else
void fetch_weights(uint k, bool inside) {
    uint groups = p.cols / 32;
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint at = i * THREADS + thread, r = at / (BK / 32), group = k / 32 + at % (BK / 32);
        if (GROUPS % THREADS != 0 && at >= GROUPS) break;
        if (RAGGED != 0) group = min(group, groups - 1);
        Planes planes = Planes(p.wq, p.wh, p.ws);
#ifdef GLU
        if (r % WM >= WM / 2) planes = Planes(p.uq, p.uh, p.us);
#endif
        piece[i] = load(planes, (first_row + unit(r)) * groups + group);
    }
}
void share_weights() {
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint at = i * THREADS + thread, to = (at / (BK / 32)) * PITCH + 4 * (at % (BK / 32));
        if (GROUPS % THREADS != 0 && at >= GROUPS) break;
        Group group = unpack(piece[i]);
        [[unroll]] for (uint j = 0; j < 4; j++) weights[to + j] = halves(group, j);
    }
}
#endif

void fetch(uint k) {
    bool inside = RAGGED == 0 || k + 8 * word_column < p.cols;
    fetch_weights(k, inside);
    [[unroll]] for (uint i = 0; i < WORDS; i++)
        word[i] = inside ? U32x4(input_at + 2 * uint64_t(i * ROWS * p.cols + k)).v[0] : uvec4(0);
}

void share() {
    share_weights();
    [[unroll]] for (uint i = 0; i < WORDS; i++) inputs[(i * ROWS + word_row) * PITCH + word_column] = word[i];
}

#define Sum coopmat<float, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>
#define Half coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>

// Writes one tile that lies inside the output.
void write_whole(Sum sum, uint64_t at) {
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
}

// Writes what of one tile lies inside the output, element by element through shared memory.
void write_edge(Sum sum, uint64_t at, uint row, uint token) {
    uint base = gl_SubgroupID * T * T / 4;
    subgroupBarrier();
    coopMatStore(sum, weights, base, T / 4, gl_CooperativeMatrixLayoutColumnMajor);
    subgroupMemoryBarrierShared();
    subgroupBarrier();
    for (uint e = gl_SubgroupInvocationID; e < T * T; e += gl_SubgroupSize) {
        if (row + e % T >= p.rows || token + e / T >= p.tokens) continue;
        float v = uintBitsToFloat(weights[base + e / 4][e % 4]);
        uint64_t to = at + uint64_t(e / T) * p.stride + e % T;
        if (OUTPUT == 2) F16(p.y + 2 * to).v[0] = float16_t(clamp(v, -65504.0, 65504.0));
        else F32(p.y + 4 * to).v[0] = v + (OUTPUT == 1 ? F32(p.y + 4 * to).v[0] : 0.0);
    }
}

void main() {
    uint wm = gl_SubgroupID % (BM / WM), wn = gl_SubgroupID / (BM / WM);
    uint from = gl_WorkGroupID.z * p.span, to = min(from + p.span, p.cols);
    Sum sums[TM * TN];
    [[unroll]] for (uint i = 0; i < TM * TN; i++) sums[i] = Sum(0.0);
    if (PREFETCH != 0) fetch(from);
    [[dont_unroll]] for (uint k = from; k < to; k += BK) {
        if (PREFETCH == 0) fetch(k);
        share();
        barrier();
        if (PREFETCH != 0 && k + BK < to) fetch(k + BK);
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
    // The same for the whole workgroup: cooperative matrices want uniform control flow.
    bool whole = first_row + UNITS <= p.rows && first_token + BN <= p.tokens && p.stride % 8 == 0;
    [[unroll]] for (uint i = 0; i < SHOWN; i++) {
        [[unroll]] for (uint j = 0; j < TN; j++) {
#ifdef GLU
            Sum up = sums[(i + SHOWN) * TN + j];
            [[unroll]] for (uint e = 0; e < up.length(); e++) sums[i * TN + j][e] = activate(sums[i * TN + j][e]) * up[e];
            uint row = first_row + wm * (WM / 2) + i * T;
#else
            uint row = first_row + wm * WM + i * T;
#endif
            uint token = first_token + wn * WN + j * T;
            uint64_t at = (uint64_t(gl_WorkGroupID.z) * p.tokens + token) * p.stride + row;
            if (whole) write_whole(sums[i * TN + j], at);
            else write_edge(sums[i * TN + j], at, row, token);
        }
    }
}
