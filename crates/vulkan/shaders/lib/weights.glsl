// Weight formats: one decoder per type. A group is 32 consecutive weights of a row:
//   weight = d.x * w + m.x in its first half, d.y * w + m.y in its second, with w the signed bytes packed in `w`.
// Planes (host side: weights/layout): `q` holds the low bits, 16 bytes a group (32 for 8-bit types, 8 for 2-bit ones), `h` the high
// bits, `s` the scales. `g` is the group's index in the whole matrix: row * (cols / 32) + column group.
struct Group { uint w[8]; vec2 d; vec2 m; };
struct Planes { uint64_t q; uint64_t h; uint64_t s; };

void nibbles(uvec4 q, out uint w[8]) {
    [[unroll]] for (int i = 0; i < 4; i++) {
        w[i] = q[i] & 0x0F0F0F0Fu;
        w[i + 4] = (q[i] >> 4) & 0x0F0F0F0Fu;
    }
}
// Bits 4i .. 4i+3 of `bits`, one to the lowest bit of each byte.
uint spread1(uint bits, int i) { return (((bits >> (4 * i)) & 0xFu) * 0x00204081u) & 0x01010101u; }
// Two bits each of the four elements of word `i`, to the lowest bits of each byte.
uint spread2(uvec2 bits, int i) {
    uint x = (bits[i >> 2] >> (8 * (i & 3))) & 0xFFu;
    return (x | (x << 6) | (x << 12) | (x << 18)) & 0x03030303u;
}
float half_at(uint64_t base, uint i) { return float(F16(base).v[i]); }
int byte_at(uint64_t base, uint i) { return int(int8_t(U8(base).v[i])); }

// Scale and minimum of group `j` (0 .. 7) of a 256-weight block, from its 16-byte header: f16 d, dmin, 8 x 6-bit scales and minima.
vec2 k_scale_min(uvec4 header, uint j) {
    vec2 d = unpackHalf2x16(header.x);
    uint lo = j & 3u, shift = 8u * lo;
    uint a = (header.y >> shift) & 0xFFu, b = (header.z >> shift) & 0xFFu, c = (header.w >> shift) & 0xFFu;
    uint scale = j < 4u ? a & 63u : (c & 0xFu) | ((a >> 6) << 4);
    uint low = j < 4u ? b & 63u : (c >> 4) | ((b >> 6) << 4);
    return vec2(d.x * float(scale), -d.y * float(low));
}

#if defined(WEIGHT_Q8_0)
Group decode(Planes p, uint g) {
    Group r;
    uvec4 a = U32x4(p.q).v[2 * g], b = U32x4(p.q).v[2 * g + 1];
    r.w = uint[8](a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w);
    r.d = vec2(half_at(p.s, g));
    r.m = vec2(0);
    return r;
}
#elif defined(WEIGHT_Q4_0) || defined(WEIGHT_Q5_0)
Group decode(Planes p, uint g) {
    Group r;
    nibbles(U32x4(p.q).v[g], r.w);
    r.d = vec2(half_at(p.s, g));
#ifdef WEIGHT_Q5_0
    uint high = U32(p.h).v[g];
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] |= spread1(high, i) << 4;
    r.m = -16.0 * r.d;
#else
    r.m = -8.0 * r.d;
#endif
    return r;
}
#elif defined(WEIGHT_Q4_1) || defined(WEIGHT_Q5_1)
Group decode(Planes p, uint g) {
    Group r;
    nibbles(U32x4(p.q).v[g], r.w);
    vec2 dm = unpackHalf2x16(U32(p.s).v[g]);
#ifdef WEIGHT_Q5_1
    uint high = U32(p.h).v[g];
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] |= spread1(high, i) << 4;
#endif
    r.d = vec2(dm.x);
    r.m = vec2(dm.y);
    return r;
}
#elif defined(WEIGHT_Q4_K) || defined(WEIGHT_Q5_K)
Group decode(Planes p, uint g) {
    Group r;
    nibbles(U32x4(p.q).v[g], r.w);
#ifdef WEIGHT_Q5_K
    uint high = U32(p.h).v[g];
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] |= spread1(high, i) << 4;
#endif
    vec2 dm = k_scale_min(U32x4(p.s).v[g >> 3], g & 7u);
    r.d = vec2(dm.x);
    r.m = vec2(dm.y);
    return r;
}
#elif defined(WEIGHT_Q6_K) || defined(WEIGHT_Q3_K)
// `s`: 20 bytes a block of 256: 16 signed scales, f16 d, 2 unused.
Group decode(Planes p, uint g) {
    Group r;
    uint record = (g >> 3) * 20u, pair = record + 2u * (g & 7u);
    float d = half_at(p.s, (record + 16u) >> 1);
    r.d = d * vec2(byte_at(p.s, pair), byte_at(p.s, pair + 1u));
#ifdef WEIGHT_Q6_K
    nibbles(U32x4(p.q).v[g], r.w);
    uvec2 high = U32x2(p.h).v[g];
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] |= spread2(high, i) << 4;
    r.m = -32.0 * r.d;
#else
    uvec2 low = U32x2(p.q).v[g];
    uint high = U32(p.h).v[g];
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] = spread2(low, i) | (spread1(high, i) << 2);
    r.m = -4.0 * r.d;
#endif
    return r;
}
#elif defined(WEIGHT_Q2_K)
// `s`: 20 bytes a block of 256: 16 x (scale | minimum << 4), f16 d, f16 dmin.
Group decode(Planes p, uint g) {
    Group r;
    uint record = (g >> 3) * 20u, pair = record + 2u * (g & 7u);
    vec2 d = unpackHalf2x16(U32(p.s).v[(record + 16u) >> 2]);
    uvec2 s = uvec2(U8(p.s).v[pair], U8(p.s).v[pair + 1u]);
    r.d = d.x * vec2(s & 15u);
    r.m = -d.y * vec2(s >> 4);
    uvec2 low = U32x2(p.q).v[g];
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] = spread2(low, i);
    return r;
}
#elif defined(WEIGHT_IQ4_NL) || defined(WEIGHT_IQ4_XS) || defined(WEIGHT_MXFP4)
#ifdef WEIGHT_MXFP4
const int LEVELS[16] = int[16](0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
#else
const int LEVELS[16] = int[16](-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
#endif
uint levels(uint n) {
    uint r = 0u;
    [[unroll]] for (int b = 0; b < 4; b++) r |= (uint(LEVELS[(n >> (8 * b)) & 15u]) & 0xFFu) << (8 * b);
    return r;
}
Group decode(Planes p, uint g) {
    Group r;
    nibbles(U32x4(p.q).v[g], r.w);
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] = levels(r.w[i]);
#if defined(WEIGHT_IQ4_NL)
    r.d = vec2(half_at(p.s, g));
#elif defined(WEIGHT_MXFP4)
    // The levels are doubled, so the exponent's bias is one more.
    uint e = uint(U8(p.s).v[g]);
    r.d = vec2(e < 2u ? uintBitsToFloat(0x00200000u << e) : uintBitsToFloat((e - 1u) << 23));
#else
    // 8 bytes a block of 256: f16 d, 8 x 2 high bits, 8 x 4 low bits of the scales.
    uvec2 record = U32x2(p.s).v[g >> 3];
    uint j = g & 7u;
    uint scale = ((record.y >> (4u * j)) & 15u) | (((record.x >> (16u + 2u * j)) & 3u) << 4);
    r.d = vec2(unpackHalf2x16(record.x).x * (float(scale) - 32.0));
#endif
    r.m = vec2(0);
    return r;
}
#endif
