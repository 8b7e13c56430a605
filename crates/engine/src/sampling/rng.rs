//! A counter-based generator: the draw at a position needs no draws before it.

/// Philox4x32-10 (Salmon et al. 2011): a keyed bijection on 128-bit counters.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = counter[0] as u64 * 0xD251_1F53;
        let b = counter[2] as u64 * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// A number in `[0, 1)` with 53 random bits, a pure function of seed and index.
pub(crate) fn uniform(seed: u64, index: u64) -> f64 {
    let out = philox([index as u32, (index >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (out[1] as u64) << 32 | out[0] as u64;
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library.
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn uniform_fills_the_unit_interval_evenly() {
        const BINS: usize = 64;
        const DRAWS: usize = 64_000;
        let mut bins = [0usize; BINS];
        for i in 0..DRAWS as u64 {
            let u = uniform(7, i);
            assert!((0.0..1.0).contains(&u));
            bins[(u * BINS as f64) as usize] += 1;
        }
        let expected = DRAWS as f64 / BINS as f64;
        let chi: f64 = bins.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum();
        // 99.99 % point of chi-square with 63 degrees of freedom.
        assert!(chi < 113.5, "chi-square {chi}");
        assert_ne!(uniform(7, 1), uniform(8, 1));
    }
}
