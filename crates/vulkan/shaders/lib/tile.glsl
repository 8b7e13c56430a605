// What the tiled matrix products without matrix units share. A workgroup computes a tile of BM weight rows (half of them gate, half up
// with GLU) by BN tokens. Rows come in blocks of 32: eight consecutive threads hold four consecutive rows each, of RB blocks, so that
// the quantized result's groups lie in one subgroup. Each thread holds TN consecutive tokens.
layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;
layout(constant_id = 0) const uint THREADS = 128;   // 8 * (BM / (32 * RB)) * (BN / TN)
layout(constant_id = 1) const uint BM = 64;
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint RB = 2;          // even with GLU
layout(constant_id = 4) const uint TN = 4;          // a multiple of 4
layout(constant_id = 5) const uint ACTIVATION = 0;
layout(constant_id = 6) const uint OUTPUT = 0;      // 0 f32, 1 add to f32, 2 f16, 3 quantized
layout(constant_id = 7) const uint GROUPS = 2;      // groups of 32 columns of a step
ARGUMENTS {
    uint64_t wq, wh, ws;
    uint64_t uq, uh, us;    // up projection of a gated unit
    uint64_t a, meta;       // activations: packed i8 and meta, or f16 [tokens, cols] alone
    uint64_t y, ymeta;      // f32 or f16 [tokens, stride], or packed i8 and meta
    uint rows, cols, tokens, stride;
} p;
#include "lib/activation.glsl"

const uint BK = 32 * GROUPS;
const uint TM = 4 * RB;
#ifdef GLU
const uint SHOWN = RB / 2;      // blocks of a thread that are written: gate first, up after
const uint UNITS = BM / 2;
#else
const uint SHOWN = RB;
const uint UNITS = BM;
#endif
const uint PIECES = (BM * GROUPS + THREADS - 1) / THREADS;  // groups of weights that a thread loads

uint thread = gl_LocalInvocationID.x;
uint first_row = gl_WorkGroupID.x * UNITS, first_token = gl_WorkGroupID.y * BN;
uint lane = thread % 8, row_part = (thread / 8) % (BM / (32 * RB)), token_part = thread / 8 / (BM / (32 * RB));
float sums[TM * TN];            // [RB][4][TN]

// The matrix and the row of it that row `r` of the tile stands for.
uint source_row(uint r, out bool up) {
#ifdef GLU
    uint part = r / (32 * RB), block = (r / 32) % RB;
    up = block >= SHOWN;
    uint unit = first_row + part * 32 * SHOWN + (block % SHOWN) * 32 + r % 32;
#else
    up = false;
    uint unit = first_row + r;
#endif
    return min(unit, p.rows - 1);
}

// Four consecutive units of one token to 8 bits, together with the seven threads beside this one.
void write_quantized(vec4 v, uint unit, uint token) {
    float most = max(max(abs(v.x), abs(v.y)), max(abs(v.z), abs(v.w)));
    [[unroll]] for (uint s = 1; s < 8; s *= 2) most = max(most, subgroupShuffleXor(most, s));
    ivec4 q = ivec4(roundEven(v * (most > 0.0 ? 127.0 / most : 0.0)));
    int sum = q.x + q.y + q.z + q.w;
    [[unroll]] for (uint s = 1; s < 4; s *= 2) sum += subgroupShuffleXor(sum, s);
    int high = subgroupShuffleXor(sum, 4);
    uint groups = (p.rows + 31) / 32;
    if (token >= p.tokens || unit / 32 >= groups) return;
    uint at = token * groups + unit / 32;
    uvec4 bytes = uvec4(q) & 0xFFu;
    U32(p.y).v[at * 8 + lane] = bytes.x | (bytes.y << 8) | (bytes.z << 16) | (bytes.w << 24);
    if (lane == 0) Meta(p.ymeta).v[at] = QuantizedMeta(most / 127.0, uint(sum & 0xFFFF) | (uint(high) << 16));
}

void write(vec4 v, uint unit, uint token) {
    if (token >= p.tokens || unit >= p.rows) return;
    uint64_t at = uint64_t(token) * p.stride + unit;
    if (OUTPUT == 2) v = clamp(v, -65504.0, 65504.0);
    // Whole and aligned: one store.
    if (unit + 4 <= p.rows && p.stride % 4 == 0 && (uint(p.y) & 15u) == 0) {
        if (OUTPUT == 2) U32x2(p.y + 2 * at).v[0] = uvec2(packHalf2x16(v.xy), packHalf2x16(v.zw));
        else F32x4(p.y + 4 * at).v[0] = OUTPUT == 1 ? v + F32x4(p.y + 4 * at).v[0] : v;
        return;
    }
    for (uint i = 0; i < 4 && unit + i < p.rows; i++) {
        if (OUTPUT == 2) F16(p.y + 2 * at).v[i] = float16_t(v[i]);
        else F32(p.y + 4 * at).v[i] = OUTPUT == 1 ? v[i] + F32(p.y + 4 * at).v[i] : v[i];
    }
}

// Writes the thread's part of the tile.
void finish() {
    [[unroll]] for (uint b = 0; b < SHOWN; b++) {
        uint unit = first_row + (row_part * SHOWN + b) * 32 + lane * 4;
        [[unroll]] for (uint j = 0; j < TN; j++) {
            uint token = first_token + token_part * TN + j;
            vec4 v;
            [[unroll]] for (uint i = 0; i < 4; i++) {
                v[i] = sums[(b * 4 + i) * TN + j];
#ifdef GLU
                v[i] = activate(v[i]) * sums[((b + SHOWN) * 4 + i) * TN + j];
#endif
                // Rows past the end repeat the last one; a group that they share with real ones must not see them.
                if (OUTPUT == 3 && unit + i >= p.rows) v[i] = 0.0;
            }
            if (OUTPUT == 3) write_quantized(v, unit, token);
            else write(v, unit, token);
        }
    }
}
