// Weights as f16 for the matrix kernels. Float types by 8 columns: `fetch_words` starts the load, `word_halves` converts what came.
// All types by 32 columns of a row: `fetch_weights` and `halves`.
#if defined(WEIGHT_F32) || defined(WEIGHT_F16) || defined(WEIGHT_BF16)
#define WEIGHT_FLOAT
#if defined(WEIGHT_F32)
const uint ELEMENT = 4;
struct Words { vec4 a, b; };
Words no_words() { return Words(vec4(0), vec4(0)); }
Words fetch_words(uint64_t at) { return Words(F32x4(at).v[0], F32x4(at).v[1]); }
uvec4 word_halves(Words f) { return uvec4(packHalf2x16(f.a.xy), packHalf2x16(f.a.zw), packHalf2x16(f.b.xy), packHalf2x16(f.b.zw)); }
#else
const uint ELEMENT = 2;
struct Words { uvec4 a; };
Words no_words() { return Words(uvec4(0)); }
Words fetch_words(uint64_t at) { return Words(U32x4(at).v[0]); }
#if defined(WEIGHT_F16)
uvec4 word_halves(Words f) { return f.a; }
#else
uint bf16_halves(uint pair) { return packHalf2x16(uintBitsToFloat(uvec2(pair << 16, pair & 0xFFFF0000u))); }
uvec4 word_halves(Words f) { return uvec4(bf16_halves(f.a.x), bf16_halves(f.a.y), bf16_halves(f.a.z), bf16_halves(f.a.w)); }
#endif
#endif
struct Fetched { Words v[4]; };
Fetched fetch_weights(uint64_t wq, uint64_t wh, uint64_t ws, uint row, uint column, uint cols) {
    Fetched r;
    [[unroll]] for (uint i = 0; i < 4; i++) {
        r.v[i] = no_words();
        if (column + 8 * i < cols) r.v[i] = fetch_words(wq + ELEMENT * (uint64_t(row) * cols + column + 8 * i));
    }
    return r;
}
uvec4 halves(Fetched f, uint i) { return word_halves(f.v[i]); }
#else
#include "lib/weights.glsl"
#define Fetched Group
Fetched fetch_weights(uint64_t wq, uint64_t wh, uint64_t ws, uint row, uint column, uint cols) {
    uint groups = cols / 32;
    return decode(Planes(wq, wh, ws), row * groups + min(column / 32, groups - 1));
}
// 1024 + n has n in its lowest mantissa bits, so unsigned bytes become halves by a mask and a subtraction, both exact; signed bytes
// become unsigned by flipping their top bit.
f16vec2 byte_pair(uint bits) { return unpackFloat2x16(bits | 0x64006400u) - f16vec2(1152.0hf); }
// Columns 8 i .. 8 i + 7.
uvec4 halves(Group f, uint i) {
    f16vec2 d = f16vec2(f.d[i >> 1]), m = f16vec2(f.m[i >> 1]);
    uvec4 r;
    [[unroll]] for (uint j = 0; j < 2; j++) {
        uint w = f.w[2 * i + j] ^ 0x80808080u;
        uint even = packFloat2x16(d * byte_pair(w & 0x00FF00FFu) + m), odd = packFloat2x16(d * byte_pair((w >> 8) & 0x00FF00FFu) + m);
        r[2 * j] = (even & 0xFFFFu) | (odd << 16);
        r[2 * j + 1] = (even >> 16) | (odd & 0xFFFF0000u);
    }
    return r;
}
#endif
