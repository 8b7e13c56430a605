#version 460
#include "lib/common.glsl"
// Matrix product of many tokens on packed 4x8 integer dot products, for quantized weights and activations quantized to 8 bits:
//   r[token, row] = W[row] . a[token], or act(Wgate[row] . a) * (Wup[row] . a) with GLU
//   y = r or y += r in f32, or r in f16 or quantized
// Shared memory holds bytes by (group, word of 4 columns, row), so that four consecutive rows are one 16-byte load; the next step's
// loads are in flight while this step's products run.
#include "lib/tile.glsl"
#include "lib/weights.glsl"

// Which types have scales per half group, minima, and a constant offset that fits their bytes.
#if defined(WEIGHT_Q6_K) || defined(WEIGHT_Q3_K) || defined(WEIGHT_Q2_K)
const uint HALVES = 2;
#else
const uint HALVES = 1;
#endif
#if defined(WEIGHT_Q4_1) || defined(WEIGHT_Q5_1) || defined(WEIGHT_Q4_K) || defined(WEIGHT_Q5_K) || defined(WEIGHT_Q2_K)
#define MINIMA
#endif
#if defined(WEIGHT_Q4_0)
const uint OFFSET = 0x08080808u;
#elif defined(WEIGHT_Q5_0)
const uint OFFSET = 0x10101010u;
#elif defined(WEIGHT_Q6_K)
const uint OFFSET = 0x20202020u;
#elif defined(WEIGHT_Q3_K)
const uint OFFSET = 0x04040404u;
#else
const uint OFFSET = 0u;
#endif

// A group of 8 words by rows or tokens; four more words keep the two groups of a step in different banks.
const uint WEIGHTS = 2 * BM + 4, INPUTS = 2 * BN + 4;
shared uvec4 weights[GROUPS * WEIGHTS];
shared uvec4 inputs[GROUPS * INPUTS];
shared vec4 weight_scale[GROUPS * HALVES * BM / 4];
shared vec4 input_scale[GROUPS * BN / 4];
#ifdef MINIMA
shared vec4 minimum[GROUPS * HALVES * BM / 4];
shared vec4 input_sum[GROUPS * HALVES * BN / 4];    // scaled
#endif

const uint HALF = 8 / HALVES;   // words that share a scale
// Software drivers compile long code slowly.
const uint UNROLL = GROUPS == 1 ? 1 : HALF;
const uint WORDS = (BN * GROUPS + THREADS - 1) / THREADS;   // groups of activations that a thread loads
struct Input { uvec4 a, b; QuantizedMeta m; };
Raw piece[PIECES];
Input word[WORDS];

void fetch(uint k) {
    uint groups = p.cols / 32, g0 = k / 32;
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint at = i * THREADS + thread, g = min(g0 + at % GROUPS, groups - 1);
        bool up;
        uint row = source_row(min(at / GROUPS, BM - 1), up);
        piece[i] = load(Planes(up ? p.uq : p.wq, up ? p.uh : p.wh, up ? p.us : p.ws), row * groups + g);
    }
    [[unroll]] for (uint i = 0; i < WORDS; i++) {
        uint at = i * THREADS + thread, g = min(g0 + at % GROUPS, groups - 1);
        uint from = min(first_token + at / GROUPS, p.tokens - 1) * groups + g;
        word[i] = Input(U32x4(p.a).v[2 * from], U32x4(p.a).v[2 * from + 1], Meta(p.meta).v[from]);
    }
}

void share(uint k) {
    uint groups = p.cols / 32, g0 = k / 32;
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint at = i * THREADS + thread, g = at % GROUPS, row = at / GROUPS;
        if (row >= BM) continue;
        Group w = unpack(piece[i]);
        [[unroll]] for (uint j = 0; j < 8; j++) {
            // Bytes minus the offset, without borrows from one to the next.
            uint bytes = OFFSET == 0 ? w.w[j] : ((w.w[j] | 0x80808080u) - OFFSET) ^ 0x80808080u;
            weights[g * WEIGHTS + j * (BM / 4) + row / 4][row % 4] = bytes;
        }
        [[unroll]] for (uint h = 0; h < HALVES; h++) {
            weight_scale[(g * HALVES + h) * (BM / 4) + row / 4][row % 4] = w.d[h];
#ifdef MINIMA
            minimum[(g * HALVES + h) * (BM / 4) + row / 4][row % 4] = w.m[h];
#endif
        }
    }
    [[unroll]] for (uint i = 0; i < WORDS; i++) {
        uint at = i * THREADS + thread, g = at % GROUPS, token = at / GROUPS;
        if (token >= BN) continue;
        [[unroll]] for (uint j = 0; j < 4; j++) {
            inputs[g * INPUTS + j * (BN / 4) + token / 4][token % 4] = word[i].a[j];
            inputs[g * INPUTS + (j + 4) * (BN / 4) + token / 4][token % 4] = word[i].b[j];
        }
        // A step past the last group adds nothing.
        float scale = g0 + g < groups ? word[i].m.scale : 0.0;
        input_scale[g * (BN / 4) + token / 4][token % 4] = scale;
#ifdef MINIMA
        vec2 sum = scale * unpack_sums(word[i].m.sums);
        if (HALVES == 1) sum.x += sum.y;
        [[unroll]] for (uint h = 0; h < HALVES; h++)
            input_sum[(g * HALVES + h) * (BN / 4) + token / 4][token % 4] = sum[h];
#endif
    }
}

void multiply(uint g, uint h) {
    int dots[TM * TN];
    [[unroll]] for (uint i = 0; i < TM * TN; i++) dots[i] = 0;
    for (uint part = 0; part < HALF; part += UNROLL) {
        [[unroll]] for (uint u = 0; u < UNROLL; u++) {
            uint j = h * HALF + part + u;
            uvec4 w[RB];
            [[unroll]] for (uint b = 0; b < RB; b++)
                w[b] = weights[g * WEIGHTS + j * (BM / 4) + (row_part * RB + b) * 8 + lane];
            [[unroll]] for (uint t = 0; t < TN / 4; t++) {
                uvec4 a = inputs[g * INPUTS + j * (BN / 4) + token_part * (TN / 4) + t];
                [[unroll]] for (uint i = 0; i < TM; i++) {
                    [[unroll]] for (uint c = 0; c < 4; c++) dots[i * TN + t * 4 + c] += dot4(w[i / 4][i % 4], a[c]);
                }
            }
        }
    }
    [[unroll]] for (uint b = 0; b < RB; b++) {
        uint from = (g * HALVES + h) * (BM / 4) + (row_part * RB + b) * 8 + lane;
        vec4 d = weight_scale[from];
#ifdef MINIMA
        vec4 m = minimum[from];
#endif
        [[unroll]] for (uint t = 0; t < TN / 4; t++) {
            vec4 scale = input_scale[g * (BN / 4) + token_part * (TN / 4) + t];
#ifdef MINIMA
            vec4 sum = input_sum[(g * HALVES + h) * (BN / 4) + token_part * (TN / 4) + t];
#endif
            [[unroll]] for (uint i = 0; i < 4; i++) {
                [[unroll]] for (uint c = 0; c < 4; c++) {
                    uint to = (b * 4 + i) * TN + t * 4 + c;
                    sums[to] = fma(d[i] * scale[c], float(dots[to]), sums[to]);
#ifdef MINIMA
                    sums[to] = fma(m[i], sum[c], sums[to]);
#endif
                }
            }
        }
    }
}

void main() {
    [[unroll]] for (uint i = 0; i < TM * TN; i++) sums[i] = 0.0;
    fetch(0);
    for (uint k = 0; k < p.cols; k += BK) {
        share(k);
        barrier();
        if (k + BK < p.cols) fetch(k + BK);
        [[dont_unroll]] for (uint g = 0; g < GROUPS; g++) {
            [[unroll]] for (uint h = 0; h < HALVES; h++) multiply(g, h);
        }
        barrier();
    }
    finish();
}
