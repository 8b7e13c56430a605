// Weight formats: one decoder per type. A group is 32 consecutive weights of a row:
//   weight = d.x * w + m.x in its first half, d.y * w + m.y in its second, with w the signed bytes packed in `w`.
// Planes (host side: weights/layout): `q` holds the low bits, 16 bytes a group (32 for 8-bit types, 8 for 2-bit ones), `h` the high
// bits, `s` the scales. `g` is the group's index in the whole matrix: row * (cols / 32) + column group.
// `load` starts a group's loads and `unpack` decodes what came, so that a kernel can do other work between them.
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
struct Raw { uvec4 a, b; float16_t d; };
Raw load(Planes p, uint g) { return Raw(U32x4(p.q).v[2 * g], U32x4(p.q).v[2 * g + 1], F16(p.s).v[g]); }
Group unpack(Raw w) {
    Group r;
    r.w = uint[8](w.a.x, w.a.y, w.a.z, w.a.w, w.b.x, w.b.y, w.b.z, w.b.w);
    r.d = vec2(float(w.d));
    r.m = vec2(0);
    return r;
}
#elif defined(WEIGHT_Q4_0)
struct Raw { uvec4 q; float16_t d; };
Raw load(Planes p, uint g) { return Raw(U32x4(p.q).v[g], F16(p.s).v[g]); }
Group unpack(Raw w) {
    Group r;
    nibbles(w.q, r.w);
    r.d = vec2(float(w.d));
    r.m = -8.0 * r.d;
    return r;
}
#elif defined(WEIGHT_Q5_0)
struct Raw { uvec4 q; uint high; float16_t d; };
Raw load(Planes p, uint g) { return Raw(U32x4(p.q).v[g], U32(p.h).v[g], F16(p.s).v[g]); }
Group unpack(Raw w) {
    Group r;
    nibbles(w.q, r.w);
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] |= spread1(w.high, i) << 4;
    r.d = vec2(float(w.d));
    r.m = -16.0 * r.d;
    return r;
}
#elif defined(WEIGHT_Q4_1) || defined(WEIGHT_Q5_1)
struct Raw { uvec4 q; uint high, dm; };
Raw load(Planes p, uint g) {
#ifdef WEIGHT_Q5_1
    uint high = U32(p.h).v[g];
#else
    uint high = 0u;
#endif
    return Raw(U32x4(p.q).v[g], high, U32(p.s).v[g]);
}
Group unpack(Raw w) {
    Group r;
    nibbles(w.q, r.w);
    vec2 dm = unpackHalf2x16(w.dm);
#ifdef WEIGHT_Q5_1
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] |= spread1(w.high, i) << 4;
#endif
    r.d = vec2(dm.x);
    r.m = vec2(dm.y);
    return r;
}
#elif defined(WEIGHT_Q4_K) || defined(WEIGHT_Q5_K)
struct Raw { uvec4 q, header; uint high, j; };
Raw load(Planes p, uint g) {
#ifdef WEIGHT_Q5_K
    uint high = U32(p.h).v[g];
#else
    uint high = 0u;
#endif
    return Raw(U32x4(p.q).v[g], U32x4(p.s).v[g >> 3], high, g & 7u);
}
Group unpack(Raw w) {
    Group r;
    nibbles(w.q, r.w);
#ifdef WEIGHT_Q5_K
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] |= spread1(w.high, i) << 4;
#endif
    vec2 dm = k_scale_min(w.header, w.j);
    r.d = vec2(dm.x);
    r.m = vec2(dm.y);
    return r;
}
#elif defined(WEIGHT_Q6_K) || defined(WEIGHT_Q3_K)
// `s`: 20 bytes a block of 256: 16 signed scales, f16 d, 2 unused.
#ifdef WEIGHT_Q6_K
struct Raw { uvec4 low; uvec2 high; float16_t d; int s0, s1; };
#else
struct Raw { uvec2 low; uint high; float16_t d; int s0, s1; };
#endif
Raw load(Planes p, uint g) {
    Raw r;
    uint record = (g >> 3) * 20u, pair = record + 2u * (g & 7u);
    r.d = F16(p.s).v[(record + 16u) >> 1];
    r.s0 = byte_at(p.s, pair);
    r.s1 = byte_at(p.s, pair + 1u);
#ifdef WEIGHT_Q6_K
    r.low = U32x4(p.q).v[g];
    r.high = U32x2(p.h).v[g];
#else
    r.low = U32x2(p.q).v[g];
    r.high = U32(p.h).v[g];
#endif
    return r;
}
Group unpack(Raw w) {
    Group r;
    r.d = float(w.d) * vec2(w.s0, w.s1);
#ifdef WEIGHT_Q6_K
    nibbles(w.low, r.w);
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] |= spread2(w.high, i) << 4;
    r.m = -32.0 * r.d;
#else
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] = spread2(w.low, i) | (spread1(w.high, i) << 2);
    r.m = -4.0 * r.d;
#endif
    return r;
}
#elif defined(WEIGHT_Q2_K)
// `s`: 20 bytes a block of 256: 16 x (scale | minimum << 4), f16 d, f16 dmin.
struct Raw { uvec2 low; uint d, s0, s1; };
Raw load(Planes p, uint g) {
    uint record = (g >> 3) * 20u, pair = record + 2u * (g & 7u);
    return Raw(U32x2(p.q).v[g], U32(p.s).v[(record + 16u) >> 2], uint(U8(p.s).v[pair]), uint(U8(p.s).v[pair + 1u]));
}
Group unpack(Raw w) {
    Group r;
    vec2 d = unpackHalf2x16(w.d);
    uvec2 s = uvec2(w.s0, w.s1);
    r.d = d.x * vec2(s & 15u);
    r.m = -d.y * vec2(s >> 4);
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] = spread2(w.low, i);
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
#if defined(WEIGHT_IQ4_NL)
struct Raw { uvec4 q; float16_t d; };
Raw load(Planes p, uint g) { return Raw(U32x4(p.q).v[g], F16(p.s).v[g]); }
#elif defined(WEIGHT_MXFP4)
struct Raw { uvec4 q; uint e; };
Raw load(Planes p, uint g) { return Raw(U32x4(p.q).v[g], uint(U8(p.s).v[g])); }
#else
// `s`: 8 bytes a block of 256: f16 d, 8 x 2 high bits, 8 x 4 low bits of the scales.
struct Raw { uvec4 q; uvec2 record; uint j; };
Raw load(Planes p, uint g) { return Raw(U32x4(p.q).v[g], U32x2(p.s).v[g >> 3], g & 7u); }
#endif
Group unpack(Raw w) {
    Group r;
    nibbles(w.q, r.w);
    [[unroll]] for (int i = 0; i < 8; i++) r.w[i] = levels(r.w[i]);
#if defined(WEIGHT_IQ4_NL)
    r.d = vec2(float(w.d));
#elif defined(WEIGHT_MXFP4)
    // The levels are doubled, so the exponent's bias is one more.
    r.d = vec2(w.e < 2u ? uintBitsToFloat(0x00200000u << w.e) : uintBitsToFloat((w.e - 1u) << 23));
#else
    uint scale = ((w.record.y >> (4u * w.j)) & 15u) | (((w.record.x >> (16u + 2u * w.j)) & 3u) << 4);
    r.d = vec2(unpackHalf2x16(w.record.x).x * (float(scale) - 32.0));
#endif
    r.m = vec2(0);
    return r;
}
#endif

Group decode(Planes p, uint g) { return unpack(load(p, g)); }
