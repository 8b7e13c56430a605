#version 460
#include "lib/common.glsl"
// Matrix product of many tokens in plain f32 arithmetic on f16 weights and activations:
//   r[token, row] = W[row] . a[token], or act(Wgate[row] . a) * (Wup[row] . a) with GLU
//   y = r or y += r in f32, or r in f16
// Weights are converted to f16 on the way into shared memory, which holds pairs of columns by (group, pair, row), so that four consecutive
// rows are one 16-byte load; the next step's loads are in flight while this step's products run.
#include "lib/tile.glsl"
#include "lib/halves.glsl"

#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#define Piece Fetched
Piece fetch_piece(uint64_t wq, uint64_t wh, uint64_t ws, uint row, uint column) {
    return fetch_weights(wq, wh, ws, row, column, p.cols);
}
Fetched opened(Piece piece) { return piece; }
#else
#define Piece Raw
Piece fetch_piece(uint64_t wq, uint64_t wh, uint64_t ws, uint row, uint column) {
    uint groups = p.cols / 32;
    return load(Planes(wq, wh, ws), row * groups + min(column / 32, groups - 1));
}
Group opened(Piece piece) { return unpack(piece); }
#endif

// A group of 16 pairs by rows, and all pairs by tokens. What is more keeps the stores of a subgroup in different banks.
const uint WEIGHTS = 4 * BM + 4, PITCH = BN / 4 + 1;
shared uvec4 weights[GROUPS * WEIGHTS];
shared uvec4 inputs[GROUPS * 16 * PITCH];
const uint WORDS = (BN * (BK / 8) + THREADS - 1) / THREADS; // 16-byte words of activations that a thread loads
const uint UNROLL = 2 * GROUPS; // pairs: few where steps are short, for software drivers that compile long code slowly
Piece piece[PIECES];
uvec4 word[WORDS];

// Token and word of its columns: two neighbouring words of 16 tokens lie in 32 consecutive threads.
uint word_token(uint at) { return (at / 2) % BN; }
uint word_column(uint at) { return 2 * (at / (2 * BN)) + at % 2; }

void fetch(uint k) {
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint at = i * THREADS + thread;
        bool up;
        uint row = source_row(min(at / GROUPS, BM - 1), up);
        piece[i] = fetch_piece(up ? p.uq : p.wq, up ? p.uh : p.wh, up ? p.us : p.ws, row, k + 32 * (at % GROUPS));
    }
    [[unroll]] for (uint i = 0; i < WORDS; i++) {
        uint at = i * THREADS + thread, column = k + 8 * word_column(at);
        uint token = min(first_token + word_token(at), p.tokens - 1);
        word[i] = column < p.cols ? U32x4(p.a + 2 * (uint64_t(token) * p.cols + column)).v[0] : uvec4(0);
    }
}

void share() {
    [[unroll]] for (uint i = 0; i < PIECES; i++) {
        uint at = i * THREADS + thread, g = at % GROUPS, row = at / GROUPS;
        if (row >= BM) continue;
        Fetched f = opened(piece[i]);
        [[unroll]] for (uint j = 0; j < 4; j++) {
            uvec4 w = halves(f, j);
            [[unroll]] for (uint c = 0; c < 4; c++)
                weights[g * WEIGHTS + (4 * j + c) * (BM / 4) + row / 4][row % 4] = w[c];
        }
    }
    [[unroll]] for (uint i = 0; i < WORDS; i++) {
        uint at = i * THREADS + thread, token = word_token(at);
        if (at >= BN * (BK / 8)) continue;
        [[unroll]] for (uint c = 0; c < 4; c++)
            inputs[(4 * word_column(at) + c) * PITCH + token / 4][token % 4] = word[i][c];
    }
}

void multiply(uint g, uint pair) {
    uvec4 w[RB];
    [[unroll]] for (uint b = 0; b < RB; b++)
        w[b] = weights[g * WEIGHTS + pair * (BM / 4) + (row_part * RB + b) * 8 + lane];
    [[unroll]] for (uint t = 0; t < TN / 4; t++) {
        uvec4 a = inputs[(16 * g + pair) * PITCH + token_part * (TN / 4) + t];
        [[unroll]] for (uint i = 0; i < TM; i++) {
            [[unroll]] for (uint c = 0; c < 4; c++) {
                uint to = i * TN + t * 4 + c;
                f16vec2 x = unpackFloat2x16(w[i / 4][i % 4]), y = unpackFloat2x16(a[c]);
                sums[to] = fma(float(x.x), float(y.x), sums[to]);
                sums[to] = fma(float(x.y), float(y.y), sums[to]);
            }
        }
    }
}

void main() {
    [[unroll]] for (uint i = 0; i < TM * TN; i++) sums[i] = 0.0;
    fetch(0);
    for (uint k = 0; k < p.cols; k += BK) {
        share();
        barrier();
        if (k + BK < p.cols) fetch(k + BK);
        [[dont_unroll]] for (uint step = 0; step < 16 * GROUPS; step += UNROLL) {
            [[unroll]] for (uint i = 0; i < UNROLL; i++) multiply(step / 16, step % 16 + i);
        }
        barrier();
    }
    finish();
}
