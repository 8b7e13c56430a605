//! How quantized weights lie in device memory: the bytes of a GGUF block split into planes, so that the low bits of consecutive groups of
//! 32 columns are aligned 16-byte words. `shaders/lib/weights.glsl` decodes them.

use unicorn_core::TensorType;

/// Bytes per group of 32 columns (low and high bits) and per block (scales), and groups that share a scale record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Planes {
    /// Low bits, bytes per group.
    pub low: usize,
    /// High bits, bytes per group.
    pub high: usize,
    /// Scale record, bytes.
    pub scale: usize,
    /// Groups per scale record: 1, or 8 for blocks of 256.
    pub groups: usize,
}

/// The planes of a quantized type; `None` for float types, which keep their layout.
pub(crate) fn planes(ty: TensorType) -> Option<Planes> {
    use TensorType::*;
    let p = |low, high, scale, groups| Some(Planes { low, high, scale, groups });
    match ty {
        F32 | F16 | BF16 => None,
        Q4_0 | IQ4_NL => p(16, 0, 2, 1),
        Q4_1 => p(16, 0, 4, 1),
        Q5_0 => p(16, 4, 2, 1),
        Q5_1 => p(16, 4, 4, 1),
        Q8_0 => p(32, 0, 2, 1),
        MXFP4 => p(16, 0, 1, 1),
        Q4_K => p(16, 0, 16, 8),
        Q5_K => p(16, 4, 16, 8),
        Q6_K => p(16, 8, 20, 8),
        Q3_K => p(8, 4, 20, 8),
        Q2_K => p(8, 0, 20, 8),
        IQ4_XS => p(16, 0, 8, 8),
    }
}

/// Bits `shift ..` of 32 bytes, as many as `mask` has. By words of two bytes, which vector units can shift: what comes in from the next byte,
/// the mask takes away.
fn fields(bytes: &[u8], at: usize, shift: usize, mask: u8) -> [u8; 32] {
    let bytes: [u8; 32] = std::array::from_fn(|i| bytes[at..][..32][i]);
    let mask = u16::from_le_bytes([mask; 2]);
    let words: [[u8; 2]; 16] = std::array::from_fn(|i| {
        (u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]) >> shift & mask).to_le_bytes()
    });
    std::array::from_fn(|i| words[i / 2][i % 2])
}

/// Packs 32 values below 4, four to a byte, in element order.
fn pack2(values: [u8; 32], out: &mut [u8]) {
    for (byte, four) in out.iter_mut().zip(values.as_chunks::<4>().0) {
        // Moves the value of byte `i` to bits `24 + 2 i`; no two terms of the product meet.
        *byte = (u32::from_le_bytes(*four).wrapping_mul(0x0104_1040) >> 24) as u8;
    }
}

/// Packs 32 single bits in element order.
fn pack1(values: [u8; 32], out: &mut [u8]) {
    for (byte, eight) in out.iter_mut().zip(values.as_chunks::<8>().0) {
        // Moves the bit of byte `i` to bit `56 + i`.
        *byte = (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
}

/// Packs 32 nibbles: byte `i` holds elements `i` and `i + 16`.
fn pack4(values: [u8; 32], out: &mut [u8]) {
    let packed: [u8; 16] = std::array::from_fn(|i| values[i] | values[i + 16] << 4);
    out.copy_from_slice(&packed);
}

/// Splits one GGUF block into its planes. The slices have the sizes that [`planes`] gives, times the groups of the block for
/// `low` and `high`.
pub(crate) fn split_block(ty: TensorType, block: &[u8], low: &mut [u8], high: &mut [u8], scale: &mut [u8]) {
    use TensorType::*;
    match ty {
        F32 | F16 | BF16 => {}
        Q4_0 | IQ4_NL => (scale.copy_from_slice(&block[..2]), low.copy_from_slice(&block[2..])).0,
        Q4_1 => (scale.copy_from_slice(&block[..4]), low.copy_from_slice(&block[4..])).0,
        Q5_0 => {
            scale.copy_from_slice(&block[..2]);
            high.copy_from_slice(&block[2..6]);
            low.copy_from_slice(&block[6..]);
        }
        Q5_1 => {
            scale.copy_from_slice(&block[..4]);
            high.copy_from_slice(&block[4..8]);
            low.copy_from_slice(&block[8..]);
        }
        Q8_0 => (scale.copy_from_slice(&block[..2]), low.copy_from_slice(&block[2..])).0,
        MXFP4 => (scale.copy_from_slice(&block[..1]), low.copy_from_slice(&block[1..])).0,
        IQ4_XS => {
            scale.copy_from_slice(&block[..8]);
            low.copy_from_slice(&block[8..]);
        }
        Q4_K | Q5_K => {
            scale.copy_from_slice(&block[..16]);
            let quants = if ty == Q4_K { &block[16..] } else { &block[48..] };
            for g in 0..8 {
                pack4(fields(quants, 32 * (g / 2), 4 * (g % 2), 15), &mut low[16 * g..][..16]);
                if ty == Q5_K {
                    pack1(fields(block, 16, g, 1), &mut high[4 * g..][..4]);
                }
            }
        }
        Q6_K => {
            let (ql, qh) = (&block[..128], &block[128..192]);
            scale[..18].copy_from_slice(&block[192..]);
            scale[18..].fill(0);
            for g in 0..8 {
                let (half, quarter) = (g / 4, g % 4);
                let l = fields(ql, 64 * half + 32 * (quarter % 2), 4 * (quarter / 2), 15);
                pack4(l, &mut low[16 * g..][..16]);
                pack2(fields(qh, 32 * half, 2 * quarter, 3), &mut high[8 * g..][..8]);
            }
        }
        Q3_K => {
            let (hmask, qs, packed) = (&block[..32], &block[32..96], &block[96..108]);
            for j in 0..16 {
                let low4 = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
                let high2 = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
                scale[j] = (low4 | high2 << 4).wrapping_sub(32);
            }
            scale[16..18].copy_from_slice(&block[108..]);
            scale[18..].fill(0);
            for g in 0..8 {
                pack2(fields(qs, 32 * (g / 4), 2 * (g % 4), 3), &mut low[8 * g..][..8]);
                pack1(fields(hmask, 0, g, 1), &mut high[4 * g..][..4]);
            }
        }
        Q2_K => {
            scale[..16].copy_from_slice(&block[..16]);
            scale[16..].copy_from_slice(&block[80..]);
            for g in 0..8 {
                pack2(fields(block, 16 + 32 * (g / 4), 2 * (g % 4), 3), &mut low[8 * g..][..8]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_element_order() {
        let bytes: Vec<u8> = (0..40).map(|i| (i * 29 + i / 3 + 77) as u8).collect();
        for shift in 0..7 {
            let (mut ones, mut twos, mut fours) = ([0; 4], [0; 8], [0; 16]);
            pack1(fields(&bytes, 5, shift, 1), &mut ones);
            pack2(fields(&bytes, 5, shift, 3), &mut twos);
            pack4(fields(&bytes, 5, shift, 15), &mut fours);
            for i in 0..32 {
                let value = bytes[5 + i] >> shift;
                assert_eq!(ones[i / 8] >> (i % 8) & 1, value & 1, "element {i}");
                if shift < 7 {
                    assert_eq!(twos[i / 4] >> (2 * (i % 4)) & 3, value & 3, "element {i}");
                }
                if shift <= 4 {
                    assert_eq!(fours[i % 16] >> (4 * (i / 16)) & 15, value & 15, "element {i}");
                }
            }
        }
    }

    /// Every bit of a block is in its planes: flipping any byte of the block changes some plane.
    #[test]
    fn planes_keep_every_byte() {
        for ty in TensorType::ALL {
            let Some(p) = planes(ty) else { continue };
            let split = |block: &[u8]| {
                let (mut low, mut high) = (vec![0; p.low * p.groups], vec![0; p.high * p.groups]);
                let mut scale = vec![0; p.scale];
                split_block(ty, block, &mut low, &mut high, &mut scale);
                (low, high, scale)
            };
            let block: Vec<u8> = (0..ty.block_bytes()).map(|i| (i * 37 + 11) as u8).collect();
            for i in 0..block.len() {
                let mut flipped = block.clone();
                flipped[i] ^= 0xff;
                assert_ne!(split(&block), split(&flipped), "{ty}: byte {i}");
            }
            assert_eq!(p.groups * 32, ty.block_len().max(32), "{ty}");
        }
    }
}
