// Float weight types: one element, and four consecutive ones.
#if defined(WEIGHT_F32)
float weight_at(uint64_t base, uint i) { return F32(base).v[i]; }
vec4 weight4_at(uint64_t base, uint i) { return F32x4(base).v[i >> 2]; }
#elif defined(WEIGHT_F16)
float weight_at(uint64_t base, uint i) { return float(F16(base).v[i]); }
vec4 weight4_at(uint64_t base, uint i) {
    uvec2 w = U32x2(base).v[i >> 2];
    return vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y));
}
#elif defined(WEIGHT_BF16)
float weight_at(uint64_t base, uint i) { return uintBitsToFloat(uint(U16(base).v[i]) << 16); }
vec4 weight4_at(uint64_t base, uint i) {
    uvec2 w = U32x2(base).v[i >> 2];
    return uintBitsToFloat(uvec4(w.x << 16, w.x & 0xFFFF0000u, w.y << 16, w.y & 0xFFFF0000u));
}
#endif
