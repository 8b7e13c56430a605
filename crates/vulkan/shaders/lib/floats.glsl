// Float weight types: one element, and eight consecutive ones as loaded.
#if defined(WEIGHT_F32)
struct Weights8 { vec4 a, b; };
float weight_at(uint64_t base, uint i) { return F32(base).v[i]; }
Weights8 weights8_at(uint64_t base, uint i) { return Weights8(F32x4(base).v[i >> 2], F32x4(base).v[(i >> 2) + 1]); }
void widen(Weights8 w, out vec4 lo, out vec4 hi) { lo = w.a; hi = w.b; }
#else
struct Weights8 { uvec4 w; };
Weights8 weights8_at(uint64_t base, uint i) { return Weights8(U32x4(base).v[i >> 3]); }
#if defined(WEIGHT_F16)
float weight_at(uint64_t base, uint i) { return float(F16(base).v[i]); }
void widen(Weights8 w, out vec4 lo, out vec4 hi) {
    lo = vec4(unpackHalf2x16(w.w.x), unpackHalf2x16(w.w.y));
    hi = vec4(unpackHalf2x16(w.w.z), unpackHalf2x16(w.w.w));
}
#elif defined(WEIGHT_BF16)
float weight_at(uint64_t base, uint i) { return uintBitsToFloat(uint(U16(base).v[i]) << 16); }
void widen(Weights8 w, out vec4 lo, out vec4 hi) {
    lo = uintBitsToFloat(uvec4(w.w.x << 16, w.w.x & 0xFFFF0000u, w.w.y << 16, w.w.y & 0xFFFF0000u));
    hi = uintBitsToFloat(uvec4(w.w.z << 16, w.w.z & 0xFFFF0000u, w.w.w << 16, w.w.w & 0xFFFF0000u));
}
#endif
#endif
