// What the flash attention kernels share: the tiles of rows that the host lists, and eight elements of the KV cache as f16.
struct Tile {
    uint row;       // first row of the batch
    uint rows;      // at most 64, all of one sequence
    uint pages;     // index of the sequence's first page in `pages`
    uint start;     // position of the first row
    uint span;      // positions of a split of the keys, 0 where the tile's keys are not split
    uint partial;   // first (row, split) record of partial results
    uint unused0, unused1;
};
layout(buffer_reference, scalar, buffer_reference_align = 16) readonly buffer Tiles { Tile v[]; };

// Splits of a tile's keys.
uint tile_splits(Tile t) { return t.span == 0 ? 1 : (t.start + t.rows + t.span - 1) / t.span; }

#ifdef FLASH_HALVES
// `Eight` is what is loaded, `eight_halves` converts it when it has come.
#if defined(KV_Q8_0)
struct Eight { uvec2 w; float16_t d; };
Eight eight(uint64_t page, uint token, uint chunk, bool live) {
    uvec2 w = U32x2(page).v[token * (HEAD_DIM / 8) + chunk];
    float16_t d = F16(page + PAGE_TOKENS * HEAD_DIM).v[token * (HEAD_DIM / 32) + chunk / 4];
    return Eight(w, live ? d : 0.0hf);
}
uvec4 eight_halves(Eight e) {
    uvec4 r;
    [[unroll]] for (uint j = 0; j < 2; j++) {
        // Signed bytes become unsigned by flipping the top bit; 1024 + n has n in its lowest mantissa bits.
        uint w = e.w[j] ^ 0x80808080u;
        uint even = packFloat2x16(e.d * (unpackFloat2x16((w & 0x00FF00FFu) | 0x64006400u) - f16vec2(1152.0hf)));
        uint odd = packFloat2x16(e.d * (unpackFloat2x16(((w >> 8) & 0x00FF00FFu) | 0x64006400u) - f16vec2(1152.0hf)));
        r[2 * j] = (even & 0xFFFFu) | (odd << 16);
        r[2 * j + 1] = (even >> 16) | (odd & 0xFFFF0000u);
    }
    return r;
}
#elif defined(KV_F32)
struct Eight { vec4 a, b; };
Eight eight(uint64_t page, uint token, uint chunk, bool live) {
    uint at = (token * HEAD_DIM + chunk * 8) / 4;
    vec4 a = F32x4(page).v[at], b = F32x4(page).v[at + 1];
    return Eight(live ? a : vec4(0.0), live ? b : vec4(0.0));
}
uvec4 eight_halves(Eight e) {
    return uvec4(packHalf2x16(e.a.xy), packHalf2x16(e.a.zw), packHalf2x16(e.b.xy), packHalf2x16(e.b.zw));
}
#else
struct Eight { uvec4 w; };
Eight eight(uint64_t page, uint token, uint chunk, bool live) {
    uvec4 w = U32x4(page).v[token * (HEAD_DIM / 8) + chunk];
    return Eight(live ? w : uvec4(0));
}
uvec4 eight_halves(Eight e) { return e.w; }
#endif
#endif
