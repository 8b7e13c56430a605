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
