//! From file rows to panels. Every block is first decoded to the codes of its 32-column groups, four per word, in element
//! order, and these are stored plane by plane: plain word arithmetic, which compilers vectorize.

use unicorn_core::TensorType;
use unicorn_core::quant::{iq4_xs_scale, q3_k_scale, scale_min_6bit};

use super::layout::{Layout, PANEL_ROWS};

/// Codes of one row's group: word `q` holds columns `4 q .. 4 q + 4`.
type Codes = [u32; 8];

const NIBBLES: u32 = 0x0f0f_0f0f;
const PAIRS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;

/// Columns of floats that are moved together: the lines they touch stay in the L1 cache.
const FLOAT_COLUMNS: usize = 64;

/// Writes up to 16 rows into a panel.
///
/// # Safety
/// `panel` must point to a writable panel of this layout that no other thread uses, and `rows` must hold whole rows of
/// `row_bytes`.
pub(super) unsafe fn pack_panel(
    ty: TensorType,
    layout: &Layout,
    panel: *mut u8,
    rows: &[u8],
    row_bytes: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 is there; the rest by the caller's contract.
        unsafe { pack_panel_avx2(ty, layout, panel, rows, row_bytes) };
        return;
    }
    // SAFETY: by the caller's contract.
    unsafe { pack_rows(ty, layout, panel, rows, row_bytes) }
}

/// The same code, in wider words.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn pack_panel_avx2(ty: TensorType, layout: &Layout, panel: *mut u8, rows: &[u8], row_bytes: usize) {
    // SAFETY: by the caller's contract.
    unsafe { pack_rows(ty, layout, panel, rows, row_bytes) }
}

#[inline(always)]
unsafe fn pack_rows(ty: TensorType, layout: &Layout, panel: *mut u8, rows: &[u8], row_bytes: usize) {
    let element = ty.block_bytes();
    // SAFETY: by the caller's contract.
    unsafe {
        if ty.is_quantized() {
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                pack_row(ty, layout, panel, lane, row);
            }
            return;
        }
        for from in (0..row_bytes).step_by(FLOAT_COLUMNS * element) {
            let to = row_bytes.min(from + FLOAT_COLUMNS * element);
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                let out = Lane { panel, layout, lane };
                match element {
                    4 => out.floats::<4>(from / 4, &row[from..to]),
                    _ => out.floats::<2>(from / 2, &row[from..to]),
                }
            }
        }
    }
}

/// Writes one row of a quantized type into a panel.
///
/// # Safety
/// `panel` must point to a writable panel of this layout that no other thread writes in row `lane`, and `row` must
/// hold the whole row.
#[inline(always)]
unsafe fn pack_row(ty: TensorType, layout: &Layout, panel: *mut u8, lane: usize, row: &[u8]) {
    let out = Lane { panel, layout, lane };
    // SAFETY: groups and supers stay inside the row, hence inside the panel.
    unsafe {
        match ty {
            // Floats have no blocks; `pack_rows` has dealt with them.
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {}
            TensorType::Q4_0 | TensorType::IQ4_NL => {
                for (g, b) in row.as_chunks::<18>().0.iter().enumerate() {
                    out.scale16(g, 0, b, 0);
                    out.nibbles(g, &b[2..]);
                }
            }
            TensorType::Q4_1 => {
                for (g, b) in row.as_chunks::<20>().0.iter().enumerate() {
                    out.scale16(g, 0, b, 0);
                    out.scale16(g, 1, b, 2);
                    out.nibbles(g, &b[4..]);
                }
            }
            TensorType::Q5_0 => {
                for (g, b) in row.as_chunks::<22>().0.iter().enumerate() {
                    out.scale16(g, 0, b, 0);
                    out.nibbles(g, &b[6..]);
                    out.fifth_bits(g, word(b, 2));
                }
            }
            TensorType::Q5_1 => {
                for (g, b) in row.as_chunks::<24>().0.iter().enumerate() {
                    out.scale16(g, 0, b, 0);
                    out.scale16(g, 1, b, 2);
                    out.nibbles(g, &b[8..]);
                    out.fifth_bits(g, word(b, 4));
                }
            }
            TensorType::Q8_0 => {
                for (g, b) in row.as_chunks::<34>().0.iter().enumerate() {
                    out.scale16(g, 0, b, 0);
                    out.codes(g, &std::array::from_fn(|q| word(b, 2 + 4 * q)));
                }
            }
            TensorType::MXFP4 => {
                for (g, b) in row.as_chunks::<17>().0.iter().enumerate() {
                    out.scale8(g, 0, b[0]);
                    out.nibbles(g, &b[1..]);
                }
            }
            TensorType::Q2_K => row.as_chunks().0.iter().enumerate().for_each(|(s, b)| out.q2_k(s, b)),
            TensorType::Q3_K => row.as_chunks().0.iter().enumerate().for_each(|(s, b)| out.q3_k(s, b)),
            TensorType::Q4_K => row.as_chunks().0.iter().enumerate().for_each(|(s, b)| out.q4_k(s, b)),
            TensorType::Q5_K => row.as_chunks().0.iter().enumerate().for_each(|(s, b)| out.q5_k(s, b)),
            TensorType::Q6_K => row.as_chunks().0.iter().enumerate().for_each(|(s, b)| out.q6_k(s, b)),
            TensorType::IQ4_XS => row.as_chunks().0.iter().enumerate().for_each(|(s, b)| out.iq4_xs(s, b)),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes the elements of one row of a panel.
///
/// # Safety
/// Of all methods: group or super must lie inside the row. See [`pack_row`].
struct Lane<'a> {
    panel: *mut u8,
    layout: &'a Layout,
    lane: usize,
}

impl Lane<'_> {
    #[inline(always)]
    unsafe fn put_word(&self, at: usize, v: u32) {
        // SAFETY: every caller stays inside the panel.
        unsafe { self.panel.add(at + self.lane * 4).cast::<u32>().write_unaligned(v.to_le()) }
    }

    /// Half number `which` of the group's scales.
    #[inline(always)]
    unsafe fn scale16(&self, g: usize, which: usize, block: &[u8], from: usize) {
        let at = self.layout.scale_at + g * self.layout.scale_stride + which * 32 + self.lane * 2;
        let half = u16::from_le_bytes([block[from], block[from + 1]]);
        // SAFETY: inside the panel.
        unsafe { self.panel.add(at).cast::<u16>().write_unaligned(half.to_le()) }
    }

    /// Byte number `which` of the group's scales.
    #[inline(always)]
    unsafe fn scale8(&self, g: usize, which: usize, v: u8) {
        let at = self.layout.scale_at + g * self.layout.scale_stride + which * PANEL_ROWS + self.lane;
        // SAFETY: inside the panel.
        unsafe { *self.panel.add(at) = v }
    }

    /// Half number `which` of the super scales.
    #[inline(always)]
    unsafe fn super16(&self, s: usize, which: usize, block: &[u8], from: usize) {
        let at = self.layout.super_at + s * self.layout.super_stride + which * 32 + self.lane * 2;
        let half = u16::from_le_bytes([block[from], block[from + 1]]);
        // SAFETY: inside the panel.
        unsafe { self.panel.add(at).cast::<u16>().write_unaligned(half.to_le()) }
    }

    /// 16 bytes that are already in the order of the low plane: byte `i` holds columns `i` and `i + 16`.
    #[inline(always)]
    unsafe fn nibbles(&self, g: usize, bytes: &[u8]) {
        let at = g * self.layout.low_stride;
        for j in 0..4 {
            // SAFETY: inside the panel.
            unsafe { self.put_word(at + 64 * j, word(bytes, 4 * j)) }
        }
    }

    /// The fifth bits of a group, bit `i` for column `i`, to the high plane.
    #[inline(always)]
    unsafe fn fifth_bits(&self, g: usize, bits: u32) {
        let mut out = 0;
        for i in 0..4 {
            // Gathers every fourth bit.
            let mut x = (bits >> i) & 0x1111_1111;
            x = (x | x >> 3) & 0x0303_0303;
            x = (x | x >> 6) & 0x000f_000f;
            x = (x | x >> 12) & 0xff;
            out |= x << (8 * i);
        }
        // SAFETY: inside the panel.
        unsafe { self.put_word(self.layout.high_at + g * self.layout.high_stride, out) }
    }

    /// Codes of one group to whatever planes the type has.
    #[inline(always)]
    unsafe fn codes(&self, g: usize, c: &Codes) {
        let at = g * self.layout.low_stride;
        let high_at = self.layout.high_at + g * self.layout.high_stride;
        let two_bits = |s: usize, shift: u32| {
            (0..4).fold(0, |w, p| w | ((c[4 * s + p] >> shift) & PAIRS) << (2 * p as u32))
        };
        let one_bit = |shift: u32| (0..8).fold(0, |w, q| w | ((c[q] >> shift) & BITS) << q);
        // SAFETY: inside the panel.
        unsafe {
            match self.layout.format.low_bits {
                8 => (0..8).for_each(|q| self.put_word(at + 64 * q, c[q])),
                4 => (0..4)
                    .for_each(|j| self.put_word(at + 64 * j, c[j] & NIBBLES | (c[j + 4] & NIBBLES) << 4)),
                _ => (0..2).for_each(|s| self.put_word(at + 64 * s, two_bits(s, 0))),
            }
            let low_bits = self.layout.format.low_bits as u32;
            match self.layout.format.high_bits {
                1 => self.put_word(high_at, one_bit(low_bits)),
                2 => (0..2).for_each(|s| self.put_word(high_at + 64 * s, two_bits(s, low_bits))),
                _ => {}
            }
        }
    }

    /// Elements from column `first` on.
    #[inline(always)]
    unsafe fn floats<const BYTES: usize>(&self, first: usize, row: &[u8]) {
        for (k, v) in row.as_chunks::<BYTES>().0.iter().enumerate() {
            let at = (first + k) * self.layout.low_stride + self.lane * BYTES;
            // SAFETY: inside the panel.
            unsafe { self.panel.add(at).cast::<[u8; BYTES]>().write(*v) }
        }
    }

    #[inline(always)]
    unsafe fn q2_k(&self, s: usize, b: &[u8; 84]) {
        // SAFETY: groups of this super.
        unsafe {
            for g in 0..8 {
                let c = std::array::from_fn(|q| word(b, 16 + g / 4 * 32 + 4 * q) >> (2 * (g % 4)) & PAIRS);
                self.codes(s * 8 + g, &c);
                self.scale8(s * 8 + g, 0, b[2 * g]);
                self.scale8(s * 8 + g, 1, b[2 * g + 1]);
            }
            self.super16(s, 0, b, 80);
            self.super16(s, 1, b, 82);
        }
    }

    #[inline(always)]
    unsafe fn q3_k(&self, s: usize, b: &[u8; 110]) {
        // SAFETY: groups of this super.
        unsafe {
            for g in 0..8 {
                let c = std::array::from_fn(|q| {
                    let low = word(b, 32 + g / 4 * 32 + 4 * q) >> (2 * (g % 4)) & PAIRS;
                    low | (word(b, 4 * q) >> g & BITS) << 2
                });
                self.codes(s * 8 + g, &c);
                self.scale8(s * 8 + g, 0, q3_k_scale(&b[96..108], 2 * g) as i8 as u8);
                self.scale8(s * 8 + g, 1, q3_k_scale(&b[96..108], 2 * g + 1) as i8 as u8);
            }
            self.super16(s, 0, b, 108);
        }
    }

    #[inline(always)]
    unsafe fn q4_k(&self, s: usize, b: &[u8; 144]) {
        // SAFETY: groups of this super.
        unsafe {
            for g in 0..8 {
                let shift = 4 * (g % 2);
                let c = std::array::from_fn(|q| word(b, 16 + g / 2 * 32 + 4 * q) >> shift & NIBBLES);
                self.codes(s * 8 + g, &c);
                let (scale, min) = scale_min_6bit(&b[4..16], g);
                self.scale8(s * 8 + g, 0, scale);
                self.scale8(s * 8 + g, 1, min);
            }
            self.super16(s, 0, b, 0);
            self.super16(s, 1, b, 2);
        }
    }

    #[inline(always)]
    unsafe fn q5_k(&self, s: usize, b: &[u8; 176]) {
        // SAFETY: groups of this super.
        unsafe {
            for g in 0..8 {
                let shift = 4 * (g % 2);
                let c = std::array::from_fn(|q| {
                    let low = word(b, 48 + g / 2 * 32 + 4 * q) >> shift & NIBBLES;
                    low | (word(b, 16 + 4 * q) >> g & BITS) << 4
                });
                self.codes(s * 8 + g, &c);
                let (scale, min) = scale_min_6bit(&b[4..16], g);
                self.scale8(s * 8 + g, 0, scale);
                self.scale8(s * 8 + g, 1, min);
            }
            self.super16(s, 0, b, 0);
            self.super16(s, 1, b, 2);
        }
    }

    #[inline(always)]
    unsafe fn q6_k(&self, s: usize, b: &[u8; 210]) {
        // SAFETY: groups of this super.
        unsafe {
            for g in 0..8 {
                let (half, k) = (g / 4, g % 4);
                let c = std::array::from_fn(|q| {
                    let low = word(b, half * 64 + k % 2 * 32 + 4 * q) >> (4 * (k / 2)) & NIBBLES;
                    low | (word(b, 128 + half * 32 + 4 * q) >> (2 * k) & PAIRS) << 4
                });
                self.codes(s * 8 + g, &c);
                self.scale8(s * 8 + g, 0, b[192 + 2 * g]);
                self.scale8(s * 8 + g, 1, b[192 + 2 * g + 1]);
            }
            self.super16(s, 0, b, 208);
        }
    }

    #[inline(always)]
    unsafe fn iq4_xs(&self, s: usize, b: &[u8; 136]) {
        // SAFETY: groups of this super.
        unsafe {
            for g in 0..8 {
                self.nibbles(s * 8 + g, &b[8 + 16 * g..24 + 16 * g]);
                self.scale8(s * 8 + g, 0, iq4_xs_scale(&b[2..8], g) as i8 as u8);
            }
            self.super16(s, 0, b, 0);
        }
    }
}
