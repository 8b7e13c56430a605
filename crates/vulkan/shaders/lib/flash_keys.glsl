// What flash attention on matrix units shares: a workgroup's range of keys, and the keys and values of one step on their way through
// registers into shared memory. Needs THREADS, T, BC, GROUP, SPLITS and TURNED, the push constants, and FLASH_HALVES of lib/flash.glsl.
const uint DP = (HEAD_DIM + T - 1) / T * T;
const uint CHUNKS = DP / 8;             // 16-byte words of a key
const uint PITCH = CHUNKS + 1;          // one word more, against bank conflicts
const uint WORDS = (BC * CHUNKS + THREADS - 1) / THREADS;
const uint TURNED_PITCH = BC / 8 + 1;
const uint PAIRS = (BC / 2 * CHUNKS + THREADS - 1) / THREADS;   // pairs of words of two adjacent keys, where values are turned
shared uvec4 shared_keys[BC * PITCH];
shared uvec4 shared_values[TURNED != 0 ? DP * TURNED_PITCH : BC * PITCH];

uint thread = gl_LocalInvocationID.x, kv_head = gl_WorkGroupID.y;
Eight key_words[WORDS], value_words[TURNED != 0 ? 2 * PAIRS : WORDS];

// Eight elements of a key, zeros where it lies outside begin .. end, whatever the cache holds there.
Eight fetch_eight(uint64_t cache, uint list, uint uniform_page, uint wanted, uint chunk, uint begin, uint end) {
    bool live = wanted >= begin && wanted < end && chunk < HEAD_DIM / 8;
    uint key = clamp(wanted, begin, end - 1);
    uint page = PAGE_TOKENS % BC == 0 ? uniform_page : U32(p.pages).v[list + key / PAGE_TOKENS];
    return eight(kv_page(cache, page, kv_head), key % PAGE_TOKENS, min(chunk, HEAD_DIM / 8 - 1), live);
}

// Starts the loads of keys and values `base` .. base + BC - 1.
void fetch(uint list, uint base, uint begin, uint end) {
    uint uniform_page = 0;
    if (PAGE_TOKENS % BC == 0) uniform_page = U32(p.pages).v[list + base / PAGE_TOKENS];
    [[unroll]] for (uint i = 0; i < WORDS; i++) {
        uint at = i * THREADS + thread;
        key_words[i] = fetch_eight(p.keys, list, uniform_page, base + at / CHUNKS, at % CHUNKS, begin, end);
        if (TURNED == 0)
            value_words[i] = fetch_eight(p.values, list, uniform_page, base + at / CHUNKS, at % CHUNKS, begin, end);
    }
    if (TURNED == 0) return;
    [[unroll]] for (uint i = 0; i < 2 * PAIRS; i++) {
        uint at = i / 2 * THREADS + thread, key = base + 2 * (at % (BC / 2)) + i % 2;
        value_words[i] = fetch_eight(p.values, list, uniform_page, key, at / (BC / 2), begin, end);
    }
}

void share() {
    [[unroll]] for (uint i = 0; i < WORDS; i++) {
        uint at = i * THREADS + thread, to = at / CHUNKS * PITCH + at % CHUNKS;
        if (BC * CHUNKS % THREADS != 0 && at >= BC * CHUNKS) continue;
        shared_keys[to] = eight_halves(key_words[i]);
        if (TURNED == 0) shared_values[to] = eight_halves(value_words[i]);
    }
    if (TURNED == 0) return;
    [[unroll]] for (uint i = 0; i < PAIRS; i++) {
        uint at = i * THREADS + thread, pair = at % (BC / 2), row = at / (BC / 2) * 8;
        if (BC / 2 * CHUNKS % THREADS != 0 && at >= BC / 2 * CHUNKS) continue;
        uvec4 a = eight_halves(value_words[2 * i]), b = eight_halves(value_words[2 * i + 1]);
        [[unroll]] for (uint e = 0; e < 8; e++) {
            uint word = (e & 1) == 0 ? (a[e / 2] & 0xFFFFu) | (b[e / 2] << 16) : (a[e / 2] >> 16) | (b[e / 2] & 0xFFFF0000u);
            shared_values[(row + e) * TURNED_PITCH + pair / 4][pair % 4] = word;
        }
    }
}

// What a workgroup of `piece` stacked rows does: rows first .. count - 1 of a tile, over the keys begin .. end - 1.
struct Piece { Tile tile; uint split, count, first, begin, end; };

// False where there is nothing to do.
bool find_piece(uint rows, out Piece w) {
    uint tiles = gl_NumWorkGroups.z / SPLITS;
    // Later rows see more keys: they start first.
    w.tile = Tiles(p.tiles).v[tiles - 1 - gl_WorkGroupID.z / SPLITS];
    w.split = gl_WorkGroupID.z % SPLITS;
    w.count = w.tile.rows * GROUP;
    w.first = gl_WorkGroupID.x * rows;
    if (w.first >= w.count) return false;
    w.begin = 0;
    w.end = w.tile.start + (min(w.first + rows, w.count) - 1) / GROUP + 1;
    uint low = w.tile.start + w.first / GROUP;
    if (p.window != 0 && low + 1 > p.window) w.begin = low + 1 - p.window;
    if (SPLITS > 1) {
        if (w.tile.span == 0 && w.split != 0) return false;
        if (w.tile.span != 0) {
            w.begin = max(w.begin, w.split * w.tile.span);
            w.end = min(w.end, (w.split + 1) * w.tile.span);
        }
    }
    return w.begin < w.end;
}
