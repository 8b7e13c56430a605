//! Random weights, made directly in the block layouts.

use crate::TensorType;

/// SplitMix64 (Steele et al. 2014): a small, fast, seedable generator for tests and synthetic weights. Not for sampling.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that always gives the same sequence for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0 .. n`; `n` must be positive and far below 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform() as f64).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform() as f64).cos()) as f32
    }

    /// `n` normal values with this standard deviation.
    pub fn normals(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * deviation).collect()
    }

    /// Fills bytes with random bits.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let (chunks, rest) = bytes.as_chunks_mut::<8>();
        for chunk in chunks {
            *chunk = self.bits().to_le_bytes();
        }
        let tail = self.bits().to_le_bytes();
        rest.copy_from_slice(&tail[..rest.len()]);
    }
}

/// Random valid weights `[rows, cols]` of about 0.01 to 0.03 standard deviation: random codes under scales drawn from a
/// factor of two. No per-element arithmetic, so it runs at memory speed.
///
/// # Panics
/// When `cols` is no multiple of the block length.
pub fn random_blocks(ty: TensorType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let row_bytes = ty.row_bytes(cols);
    assert!(row_bytes.is_some(), "{ty}: {cols} columns are no whole number of blocks");
    let mut bytes = vec![0; rows * row_bytes.unwrap_or(0)];
    let mut random = Random::new(seed);
    random.fill(&mut bytes);
    match ty {
        // Keep sign, lowest exponent bit and mantissa: magnitudes of 2^-7 to 2^-5.
        TensorType::F32 => keep(&mut bytes, [0xff, 0xff, 0xff, 0x80], [0, 0, 0, 0x3c]),
        TensorType::F16 => keep(&mut bytes, [0xff, 0x87], [0, 0x20]),
        TensorType::BF16 => keep(&mut bytes, [0xff, 0x80], [0, 0x3c]),
        TensorType::Q4_0 => scales::<18>(&mut bytes, &[(0, -8, true)]),
        TensorType::Q4_1 => {
            scales::<20>(&mut bytes, &[(0, -8, false), (2, -5, false)]);
            // The minimum is negative in practice: set its sign.
            bytes.chunks_exact_mut(20).for_each(|b| b[3] |= 0x80);
        }
        TensorType::Q5_0 => scales::<22>(&mut bytes, &[(0, -9, true)]),
        TensorType::Q5_1 => {
            scales::<24>(&mut bytes, &[(0, -9, false), (2, -5, false)]);
            bytes.chunks_exact_mut(24).for_each(|b| b[3] |= 0x80);
        }
        TensorType::Q8_0 => scales::<34>(&mut bytes, &[(0, -12, false)]),
        TensorType::Q2_K => scales::<84>(&mut bytes, &[(80, -10, false), (82, -10, false)]),
        TensorType::Q3_K => scales::<110>(&mut bytes, &[(108, -12, true)]),
        TensorType::Q4_K => scales::<144>(&mut bytes, &[(0, -15, false), (2, -12, false)]),
        TensorType::Q5_K => scales::<176>(&mut bytes, &[(0, -16, false), (2, -12, false)]),
        TensorType::Q6_K => scales::<210>(&mut bytes, &[(208, -17, true)]),
        TensorType::IQ4_NL => scales::<18>(&mut bytes, &[(0, -12, true)]),
        TensorType::IQ4_XS => scales::<136>(&mut bytes, &[(0, -17, true)]),
        TensorType::MXFP4 => bytes.chunks_exact_mut(17).for_each(|b| b[0] = 119 + (b[0] & 1)),
    }
    bytes
}

/// `byte = byte & mask | set`, for every element of `N` bytes.
fn keep<const N: usize>(bytes: &mut [u8], mask: [u8; N], set: [u8; N]) {
    for element in bytes.as_chunks_mut::<N>().0 {
        for i in 0..N {
            element[i] = element[i] & mask[i] | set[i];
        }
    }
}

/// Turns the random half floats at the given offsets of every block into values from `2^exponent` to twice that, keeping
/// the random sign where asked. Exponents below -14 give subnormal half floats, as real files have them.
fn scales<const BYTES: usize>(bytes: &mut [u8], fields: &[(usize, i32, bool)]) {
    for (at, exponent, signed) in fields {
        let (leading, mantissa) = match exponent {
            -14.. => (((exponent + 15) as u16) << 10, 0x3ff),
            _ => (1 << (exponent + 24), (1 << (exponent + 24)) - 1),
        };
        let keep = mantissa | if *signed { 0x8000 } else { 0 };
        for block in bytes.as_chunks_mut::<BYTES>().0 {
            let half = u16::from_le_bytes([block[*at], block[at + 1]]) & keep | leading;
            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
}
