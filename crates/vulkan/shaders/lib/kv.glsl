// KV cache of one mixer: keys and values as [page][kv head][token in page][head_dim], f16, f32, or Q8_0 (32 signed bytes, then their f16
// scales in a plane of their own after all bytes of the head's page).
layout(constant_id = 10) const uint KV_HEADS = 1;
layout(constant_id = 11) const uint HEAD_DIM = 64;
layout(constant_id = 12) const uint PAGE_TOKENS = 64;

#if defined(KV_F32)
const uint KV_BYTES = HEAD_DIM * 4;
#elif defined(KV_Q8_0)
const uint KV_BYTES = HEAD_DIM + HEAD_DIM / 16;
#else
const uint KV_BYTES = HEAD_DIM * 2;
#endif

// First byte of a head's page.
uint64_t kv_page(uint64_t cache, uint page, uint kv_head) {
    return cache + uint64_t(page * KV_HEADS + kv_head) * uint64_t(PAGE_TOKENS * KV_BYTES);
}

// Eight consecutive elements as stored, `chunk` counting eights: fetched first, unpacked when they are needed.
#if defined(KV_F32)
struct Chunk { vec4 a, b; };
#elif defined(KV_Q8_0)
struct Chunk { uvec2 w; float16_t d; };
#else
struct Chunk { uvec4 w; };
#endif
Chunk kv_fetch8(uint64_t page, uint token, uint chunk) {
#if defined(KV_F32)
    uint at = (token * HEAD_DIM + chunk * 8) / 4;
    return Chunk(F32x4(page).v[at], F32x4(page).v[at + 1]);
#elif defined(KV_Q8_0)
    return Chunk(U32x2(page).v[token * (HEAD_DIM / 8) + chunk],
                 F16(page + PAGE_TOKENS * HEAD_DIM).v[token * (HEAD_DIM / 32) + chunk / 4]);
#else
    return Chunk(U32x4(page).v[token * (HEAD_DIM / 8) + chunk]);
#endif
}
void kv_unpack8(Chunk c, out float v[8]) {
#if defined(KV_F32)
    v = float[8](c.a.x, c.a.y, c.a.z, c.a.w, c.b.x, c.b.y, c.b.z, c.b.w);
#elif defined(KV_Q8_0)
    float d = float(c.d);
    [[unroll]] for (int i = 0; i < 8; i++) v[i] = d * float(int(c.w[i >> 2] << (24 - 8 * (i & 3))) >> 24);
#else
    [[unroll]] for (int i = 0; i < 4; i++) {
        vec2 h = unpackHalf2x16(c.w[i]);
        v[2 * i] = h.x;
        v[2 * i + 1] = h.y;
    }
#endif
}

void kv_load8(uint64_t page, uint token, uint chunk, out float v[8]) { kv_unpack8(kv_fetch8(page, token, chunk), v); }
