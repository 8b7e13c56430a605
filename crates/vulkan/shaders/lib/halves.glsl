// Weights as f16, 32 consecutive columns of a row at a time: `fetch_weights` starts the loads, `halves` converts what came.
// 1024 + n has n in its lowest mantissa bits, so bytes become halves by a mask and a subtraction, both exact.
f16vec2 biased(uint bits, float16_t offset) { return unpackFloat2x16(bits | 0x64006400u) - f16vec2(offset); }

#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#if defined(WEIGHT_F32)
struct Fetched { vec4 v[8]; };
#else
struct Fetched { uvec4 v[4]; };
#endif
Fetched fetch_weights(uint64_t wq, uint64_t wh, uint64_t ws, uint row, uint column, uint cols) {
    Fetched r;
    uint64_t at = uint64_t(row) * cols + column;
#if defined(WEIGHT_F32)
    [[unroll]] for (uint i = 0; i < 8; i++)
        r.v[i] = column + 4 * i < cols ? F32x4(wq + 4 * at).v[i] : vec4(0);
#else
    [[unroll]] for (uint i = 0; i < 4; i++)
        r.v[i] = column + 8 * i < cols ? U32x4(wq + 2 * at).v[i] : uvec4(0);
#endif
    return r;
}
uvec4 halves(Fetched f, uint i) {
#if defined(WEIGHT_F32)
    return uvec4(packHalf2x16(f.v[2 * i].xy), packHalf2x16(f.v[2 * i].zw), packHalf2x16(f.v[2 * i + 1].xy), packHalf2x16(f.v[2 * i + 1].zw));
#elif defined(WEIGHT_BF16)
    uvec4 r;
    [[unroll]] for (int j = 0; j < 4; j++)
        r[j] = packHalf2x16(uintBitsToFloat(uvec2(f.v[i][j] << 16, f.v[i][j] & 0xFFFF0000u)));
    return r;
#else
    return f.v[i];
#endif
}
#else
#include "lib/weights.glsl"
#define Fetched Group
Fetched fetch_weights(uint64_t wq, uint64_t wh, uint64_t ws, uint row, uint column, uint cols) {
    uint groups = cols / 32;
    return decode(Planes(wq, wh, ws), row * groups + min(column / 32, groups - 1));
}
// Columns 8 i .. 8 i + 7.
uvec4 halves(Fetched f, uint i) {
    f16vec2 d = f16vec2(f.d[i >> 1]), m = f16vec2(f.m[i >> 1]);
    uvec4 r;
    [[unroll]] for (uint j = 0; j < 2; j++) {
        // Signed bytes become unsigned by flipping the top bit.
        uint w = f.w[2 * i + j] ^ 0x80808080u;
        f16vec2 even = d * biased(w & 0x00FF00FFu, 1152.0hf) + m, odd = d * biased((w >> 8) & 0x00FF00FFu, 1152.0hf) + m;
        uint e = packFloat2x16(even), o = packFloat2x16(odd);
        r[2 * j] = (e & 0xFFFFu) | (o << 16);
        r[2 * j + 1] = (e >> 16) | (o & 0xFFFF0000u);
    }
    return r;
}
#endif
