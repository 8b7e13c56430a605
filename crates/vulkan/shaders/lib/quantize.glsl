// Quantizing 32 values of one row to a group of 8-bit activations. `values` is shared memory; called by 8 consecutive threads
// (part 0 .. 7), each of which packs four values; part 0 also writes the scale and the sums.
void quantize_group(uint64_t q, uint64_t meta, uint at, uint base, uint part) {
    float most = 0.0;
    [[unroll]] for (int i = 0; i < 32; i++) most = max(most, abs(values[base + i]));
    float scale = most / 127.0;
    float back = most > 0.0 ? 127.0 / most : 0.0;
    uint packed = 0u;
    [[unroll]] for (int b = 0; b < 4; b++) {
        int r = int(roundEven(values[base + 4 * part + b] * back));
        packed |= (uint(r) & 0xFFu) << (8 * b);
    }
    U32(q).v[at * 8 + part] = packed;
    if (part == 0) {
        int lo = 0, hi = 0;
        [[unroll]] for (int i = 0; i < 16; i++) {
            lo += int(roundEven(values[base + i] * back));
            hi += int(roundEven(values[base + 16 + i] * back));
        }
        Meta(meta).v[at] = QuantizedMeta(scale, uint(lo & 0xFFFF) | (uint(hi) << 16));
    }
}

// The same by 32 consecutive lanes of one subgroup, each with one value.
void quantize_lanes(uint64_t q, uint64_t meta, uint at, float value) {
    uint lane = gl_SubgroupInvocationID & 31u;
    float most = abs(value);
    [[unroll]] for (uint x = 16; x > 0; x /= 2) most = max(most, subgroupShuffleXor(most, x));
    float scale = most / 127.0;
    int r = int(roundEven(value * (most > 0.0 ? 127.0 / most : 0.0)));
    uint packed = (uint(r) & 0xFFu) << (8 * (lane & 3u));
    packed |= subgroupShuffleXor(packed, 1u);
    packed |= subgroupShuffleXor(packed, 2u);
    int sum = r;
    [[unroll]] for (uint x = 8; x > 0; x /= 2) sum += subgroupShuffleXor(sum, x);
    int high = subgroupShuffleXor(sum, 16u);
    if ((lane & 3u) == 0) U32(q).v[at * 8 + lane / 4] = packed;
    if (lane == 0) Meta(meta).v[at] = QuantizedMeta(scale, uint(sum & 0xFFFF) | (uint(high) << 16));
}
