//! How the codes and scales of each integer type are read back from a panel: as vectors of 8 or 16 rows for the kernels,
//! or one row at a time for the portable path and for embedding lookups.

use half::f16;
use unicorn_core::TensorType;
use unicorn_core::quant::{IQ4_VALUES, MXFP4_VALUES, mxfp4_scale};

use super::kind::*;
use super::layout::{Format, GROUP, PANEL_ROWS, Panel, Scales};
use super::panel_vector::PanelVector;

/// What the kernels need to know about a type, all of it constant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coding {
    /// Codes and scales in memory.
    pub format: Format,
    /// Maps 4-bit codes to bytes.
    pub table: Option<[u8; 16]>,
    /// Subtracted from every code inside the dot product, which keeps its sums small.
    pub center: i32,
    /// Codes are signed bytes, too large for sums in 16 bits.
    pub wide: bool,
    /// Group scales apply to 16 columns.
    pub halves: bool,
    /// An offset is added to every element.
    pub offset: bool,
}

impl Coding {
    pub(super) const fn of(ty: TensorType) -> Coding {
        let format = Format::of(ty);
        let (table, center) = match ty {
            TensorType::Q4_0 => (None, 8),
            // Q5_1 and Q5_K are centered too: their minimum is raised to match.
            TensorType::Q5_0 | TensorType::Q5_1 | TensorType::Q5_K => (None, 16),
            TensorType::Q6_K => (None, 32),
            TensorType::Q3_K => (None, 4),
            TensorType::MXFP4 => (Some(shifted(&MXFP4_VALUES, 12)), 12),
            TensorType::IQ4_NL | TensorType::IQ4_XS => (Some(shifted(&IQ4_VALUES, 0)), 0),
            _ => (None, 0),
        };
        Coding {
            format,
            table,
            center,
            wide: matches!(ty, TensorType::Q8_0 | TensorType::IQ4_NL | TensorType::IQ4_XS),
            halves: matches!(format.scales, Scales::Signed16 | Scales::SubMin16),
            offset: matches!(format.scales, Scales::HalfMin | Scales::SubMin | Scales::SubMin16),
        }
    }

    /// The center that a level subtracts: where bytes must be unsigned, wide codes are raised by 128.
    pub(super) const fn center_at<S: PanelVector>(&self) -> i32 {
        if self.wide && !S::WORDS { 128 } else { self.center }
    }
}

const fn shifted(values: &[i8; 16], by: i8) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (values[i] + by) as u8;
        i += 1;
    }
    out
}

/// An integer type as a compile-time parameter.
pub(super) trait Encoding: Copy {
    /// Its constants.
    const CODING: Coding;
    /// How its codes are multiplied.
    type Kind: Kind;
}

macro_rules! encodings {
    ($($name:ident = $ty:ident, $kind:ty;)*) => {$(
        #[derive(Clone, Copy)]
        pub(super) struct $name;
        impl Encoding for $name {
            const CODING: Coding = Coding::of(TensorType::$ty);
            type Kind = $kind;
        }
        const _: () = {
            let c = Coding::of(TensorType::$ty);
            assert!(c.wide == <$kind>::WIDE && c.halves == <$kind>::HALVES && c.offset == <$kind>::OFFSET);
            assert!(c.wide || (c.center != 0) == <$kind>::CENTERED);
        };
    )*};
}

encodings!(
    Q40 = Q4_0, Centered;
    Q41 = Q4_1, Offset;
    Q50 = Q5_0, Centered;
    Q51 = Q5_1, CenteredOffset;
    Q80 = Q8_0, Wide;
    Q2K = Q2_K, HalvesOffset;
    Q3K = Q3_K, HalvesCentered;
    Q4K = Q4_K, Offset;
    Q5K = Q5_K, CenteredOffset;
    Q6K = Q6_K, HalvesCentered;
    Iq4Nl = IQ4_NL, Wide;
    Iq4Xs = IQ4_XS, Wide;
    Mxfp4 = MXFP4, Centered;
);

/// The codes of group `g` in rows `v * LANES ..`, one vector per quad. Unsigned bytes, except for wide codes where
/// `S::WORDS`: those are signed.
///
/// # Safety
/// `g` must lie in the panel and the processor have the level of `S`.
#[inline(always)]
pub(super) unsafe fn codes<S: PanelVector, E: Encoding>(panel: &Panel, g: usize, v: usize) -> [S::I; 8] {
    let c = &E::CODING;
    // SAFETY: lines are 64 bytes, vector `v` starts at byte `4 LANES v` of each.
    unsafe {
        let low = panel.low(g).add(v * S::LANES * 4);
        let high = panel.high(g).add(v * S::LANES * 4);
        let mut q = [S::zero(); 8];
        match c.format.low_bits {
            8 => {
                for j in 0..8 {
                    q[j] = S::load(low.add(64 * j));
                }
            }
            4 => {
                let mask = S::splat(0x0f0f_0f0f);
                for j in 0..4 {
                    let line = S::load(low.add(64 * j));
                    q[j] = S::and(line, mask);
                    q[j + 4] = S::and(S::shift16(line, -4), mask);
                }
            }
            _ => {
                let mask = S::splat(0x0303_0303);
                for s in 0..2 {
                    let line = S::load(low.add(64 * s));
                    for p in 0..4 {
                        q[4 * s + p] = S::and(S::shift16(line, -2 * p as i32), mask);
                    }
                }
            }
        }
        let position = c.format.low_bits as i32;
        match c.format.high_bits {
            1 => {
                let mask = S::splat(0x0101_0101 << position);
                let line = S::load(high);
                for j in 0..8 {
                    q[j] = S::or(q[j], S::and(S::shift16(line, position - j as i32), mask));
                }
            }
            2 => {
                let mask = S::splat(0x0303_0303 << position);
                for s in 0..2 {
                    let line = S::load(high.add(64 * s));
                    for p in 0..4 {
                        let bits = S::and(S::shift16(line, position - 2 * p as i32), mask);
                        q[4 * s + p] = S::or(q[4 * s + p], bits);
                    }
                }
            }
            _ => {}
        }
        if let Some(table) = &c.table {
            for j in 0..8 {
                q[j] = S::lookup(table, q[j]);
            }
        }
        if c.wide && !S::WORDS {
            let flip = S::splat(0x8080_8080_u32 as i32);
            for j in 0..8 {
                q[j] = S::xor(q[j], flip);
            }
        }
        q
    }
}

/// The scales of one group: `value = d * code + m`, or with scales per half, integer factors on the sums of the halves
/// (prepared by [`PanelVector::sub_scale`]) before `d`, and pairs of minimums for the sums of activations before `m`.
#[derive(Clone, Copy)]
pub(super) struct GroupScales<S: PanelVector> {
    pub d: S::F,
    pub m: S::F,
    pub half: [S::I; 2],
    pub half_min: S::I,
}

/// The scales of group `g` in rows `v * LANES ..`.
///
/// # Safety
/// As [`codes`].
#[inline(always)]
pub(super) unsafe fn scales<S: PanelVector, E: Encoding>(
    panel: &Panel,
    g: usize,
    v: usize,
) -> GroupScales<S> {
    // SAFETY: 16 rows per field; see the table of fields in `Scales`.
    unsafe {
        let group = panel.scales(g);
        let supers = panel.supers(g);
        let byte = v * S::LANES;
        let half = 2 * byte;
        let mut out =
            GroupScales::<S> { d: S::zero_f(), m: S::zero_f(), half: [S::zero(); 2], half_min: S::zero() };
        match E::CODING.format.scales {
            Scales::None => {}
            Scales::Half => out.d = S::load_f16(group.add(half)),
            Scales::HalfMin => {
                out.d = S::load_f16(group.add(half));
                out.m = S::load_f16(group.add(32 + half));
            }
            Scales::Exponent => out.d = S::exponent(S::load_u8(group.add(byte))),
            Scales::Signed => {
                out.d = S::mul_f(S::load_f16(supers.add(half)), S::to_f32(S::load_i8(group.add(byte))));
            }
            Scales::SubMin => {
                out.d = S::mul_f(S::load_f16(supers.add(half)), S::to_f32(S::load_u8(group.add(byte))));
                let min = S::mul_f(S::load_f16(supers.add(32 + half)), S::splat_f(-1.0));
                out.m = S::mul_f(min, S::to_f32(S::load_u8(group.add(PANEL_ROWS + byte))));
            }
            Scales::Signed16 => {
                out.d = S::load_f16(supers.add(half));
                for h in 0..2 {
                    out.half[h] = S::sub_scale(S::load_i8(group.add(h * PANEL_ROWS + byte)));
                }
            }
            Scales::SubMin16 => {
                out.d = S::load_f16(supers.add(half));
                out.m = S::mul_f(S::load_f16(supers.add(32 + half)), S::splat_f(-1.0));
                let first = S::load_u8(group.add(byte));
                let last = S::load_u8(group.add(PANEL_ROWS + byte));
                let nibble = S::splat(15);
                out.half = [S::sub_scale(S::and(first, nibble)), S::sub_scale(S::and(last, nibble))];
                out.half_min = S::or(S::shift16(first, -4), S::shl32_16(S::shift16(last, -4)));
            }
        }
        if E::CODING.offset && E::CODING.center != 0 {
            out.m = S::fma(out.d, S::splat_f(E::CODING.center as f32), out.m);
        }
        out
    }
}

/// One row's group: `value = scale[half] * code + offset[half]`, halves of 16 columns.
pub(super) struct RowGroup {
    /// Codes in element order, centered where the type has no offset.
    pub codes: [i8; GROUP],
    /// Factor on the codes of each half.
    pub scale: [f32; 2],
    /// Added to each half.
    pub offset: [f32; 2],
}

/// Reads group `g` of row `lane` of a panel.
///
/// # Safety
/// `g` must lie in the panel and `lane` be below 16.
pub(super) unsafe fn row_group(coding: &Coding, panel: &Panel, g: usize, lane: usize) -> RowGroup {
    // SAFETY: planes are read inside this group, at the lane's place.
    unsafe {
        let low = panel.low(g).add(lane * 4);
        let high = panel.high(g).add(lane * 4);
        let center = if coding.offset { 0 } else { coding.center };
        let codes = std::array::from_fn(|k| {
            let (q, i) = (k / 4, k % 4);
            let low_code = match coding.format.low_bits {
                8 => *low.add(64 * q + i),
                4 => *low.add(64 * (q % 4) + i) >> (4 * (q / 4)) & 15,
                _ => *low.add(64 * (q / 4) + i) >> (2 * (q % 4)) & 3,
            };
            let high_code = match coding.format.high_bits {
                1 => *high.add(i) >> q & 1,
                2 => *high.add(64 * (q / 4) + i) >> (2 * (q % 4)) & 3,
                _ => 0,
            };
            // Bits past the eighth cannot occur: 8-bit codes have no high plane.
            let code = low_code | (high_code as u32).wrapping_shl(coding.format.low_bits as u32) as u8;
            let code = coding.table.map_or(code, |table| table[code as usize & 15]);
            (code as i8).wrapping_sub(center as i8)
        });
        let group = panel.scales(g);
        let supers = panel.supers(g);
        let byte = |n: usize| *group.add(n * PANEL_ROWS + lane);
        let half =
            |p: *const u8, n: usize| f16::from_bits(p.add(n * 32 + lane * 2).cast::<u16>().read_unaligned());
        let (scale, offset) = match coding.format.scales {
            Scales::None => ([1.0; 2], [0.0; 2]),
            Scales::Half => ([half(group, 0).to_f32(); 2], [0.0; 2]),
            Scales::HalfMin => ([half(group, 0).to_f32(); 2], [half(group, 1).to_f32(); 2]),
            Scales::Exponent => ([mxfp4_scale(byte(0)); 2], [0.0; 2]),
            Scales::Signed => ([half(supers, 0).to_f32() * byte(0) as i8 as f32; 2], [0.0; 2]),
            Scales::SubMin => {
                let d = half(supers, 0).to_f32() * byte(0) as f32;
                ([d; 2], [-(half(supers, 1).to_f32() * byte(1) as f32); 2])
            }
            Scales::Signed16 => {
                let d = half(supers, 0).to_f32();
                ([d * byte(0) as i8 as f32, d * byte(1) as i8 as f32], [0.0; 2])
            }
            Scales::SubMin16 => {
                let (d, min) = (half(supers, 0).to_f32(), half(supers, 1).to_f32());
                let (a, b) = (byte(0), byte(1));
                (
                    [d * (a & 15) as f32, d * (b & 15) as f32],
                    [-(min * (a >> 4) as f32), -(min * (b >> 4) as f32)],
                )
            }
        };
        RowGroup { codes, scale, offset }
    }
}
