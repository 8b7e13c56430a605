//! The packed layout of a weight matrix.
//!
//! Rows are gathered in panels of 16. Columns go in groups of 32, and a group in 8 quads of 4 consecutive columns. The
//! unit of every code plane is a line of 64 bytes, `[row 16][column of the quad 4]`: one AVX-512 register, or two AVX2
//! registers of 8 rows. A panel holds its planes one after the other:
//!
//! | plane | bytes per group | content |
//! |---|---|---|
//! | low | 64 x bits | 8-bit codes: line `q` is quad `q`. 4-bit: line `j` holds quad `j` in its low and quad `j + 4` in its high nibbles. 2-bit: line `j` holds quad `4 j + p` at bit `2 p` |
//! | high | 64 x bits | upper bits of 5, 6 and 3-bit codes. 1-bit: bit `q` belongs to quad `q`. 2-bit: as above |
//! | group scales | see [`Scales`] | per row of the panel |
//! | super scales | see [`Scales`] | per row of the panel and 256 columns |
//!
//! Float types have one plane `[column][row 16]`. Rows past the end of the matrix are zero.

use unicorn_core::TensorType;

/// Rows of a panel.
pub(crate) const PANEL_ROWS: usize = 16;
/// Columns that share one activation scale; the grain of all integer layouts.
pub(super) const GROUP: usize = 32;

/// Largest panel that is prefetched as a whole while the one before is read: a part of the L1 cache.
const PREFETCH_PANEL_MAX: usize = 12 << 10;
/// Prefetch distance otherwise.
const PREFETCH_BYTES: usize = 4 << 10;

/// What a type stores beside its codes. Counts are per panel (16 rows); halves are IEEE half floats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scales {
    /// Floats: nothing.
    None,
    /// Group: 16 halves `d`.
    Half,
    /// Group: 16 halves `d`, 16 halves `m`.
    HalfMin,
    /// Group: 16 exponents (E8M0).
    Exponent,
    /// Group: 16 signed scales. Super: 16 halves `d`.
    Signed,
    /// Group: 16 scales, 16 minimums. Super: 16 halves `d`, 16 halves `dmin`.
    SubMin,
    /// Group: 16 signed scales of columns 0-15, 16 of columns 16-31. Super: 16 halves `d`.
    Signed16,
    /// Group: as `Signed16`, scale in the low and minimum in the high nibble. Super: 16 halves `d`, 16 halves `dmin`.
    SubMin16,
}

impl Scales {
    const fn group_bytes(self) -> usize {
        match self {
            Scales::None => 0,
            Scales::Half => 32,
            Scales::HalfMin => 64,
            Scales::Exponent | Scales::Signed => 16,
            Scales::SubMin | Scales::Signed16 | Scales::SubMin16 => 32,
        }
    }

    const fn super_bytes(self) -> usize {
        match self {
            Scales::None | Scales::Half | Scales::HalfMin | Scales::Exponent => 0,
            Scales::Signed | Scales::Signed16 => 32,
            Scales::SubMin | Scales::SubMin16 => 64,
        }
    }
}

/// How a type's codes and scales are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Format {
    /// Bits per element in the low plane.
    pub low_bits: usize,
    /// Bits per element in the high plane.
    pub high_bits: usize,
    /// Scales.
    pub scales: Scales,
}

impl Format {
    pub(super) const fn of(ty: TensorType) -> Format {
        let (low_bits, high_bits, scales) = match ty {
            TensorType::F32 => (32, 0, Scales::None),
            TensorType::F16 | TensorType::BF16 => (16, 0, Scales::None),
            TensorType::Q4_0 | TensorType::IQ4_NL => (4, 0, Scales::Half),
            TensorType::Q4_1 => (4, 0, Scales::HalfMin),
            TensorType::Q5_0 => (4, 1, Scales::Half),
            TensorType::Q5_1 => (4, 1, Scales::HalfMin),
            TensorType::Q8_0 => (8, 0, Scales::Half),
            TensorType::Q2_K => (2, 0, Scales::SubMin16),
            TensorType::Q3_K => (2, 1, Scales::Signed16),
            TensorType::Q4_K => (4, 0, Scales::SubMin),
            TensorType::Q5_K => (4, 1, Scales::SubMin),
            TensorType::Q6_K => (4, 2, Scales::Signed16),
            TensorType::IQ4_XS => (4, 0, Scales::Signed),
            TensorType::MXFP4 => (4, 0, Scales::Exponent),
        };
        Format { low_bits, high_bits, scales }
    }
}

/// Offsets inside a panel of a matrix with a given type and width.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Storage of codes and scales.
    pub format: Format,
    /// Bytes of the low plane per group; per column for floats.
    pub low_stride: usize,
    /// Bytes of the high plane per group.
    pub high_stride: usize,
    /// Bytes of group scales per group.
    pub scale_stride: usize,
    /// Bytes of super scales per 256 columns.
    pub super_stride: usize,
    /// Offset of the high plane.
    pub high_at: usize,
    /// Offset of the group scales.
    pub scale_at: usize,
    /// Offset of the super scales.
    pub super_at: usize,
    /// Bytes of a panel, a multiple of 64.
    pub panel_bytes: usize,
}

impl Layout {
    /// The layout for rows of `cols` elements, which the caller has checked to be whole blocks. `None` on overflow.
    pub(super) fn new(ty: TensorType, cols: usize) -> Option<Layout> {
        let format = Format::of(ty);
        let unit = if ty.is_quantized() { GROUP } else { 1 };
        let units = cols / unit;
        let low_stride = PANEL_ROWS * unit * format.low_bits / 8;
        let high_stride = PANEL_ROWS * unit * format.high_bits / 8;
        let scale_stride = format.scales.group_bytes();
        let super_stride = format.scales.super_bytes();
        let high_at = units.checked_mul(low_stride)?;
        let scale_at = high_at.checked_add(units.checked_mul(high_stride)?)?;
        let super_at = scale_at.checked_add(units.checked_mul(scale_stride)?)?;
        let end = super_at.checked_add((cols / 256).checked_mul(super_stride)?)?;
        let panel_bytes = end.checked_next_multiple_of(64)?;
        Some(Layout {
            format,
            low_stride,
            high_stride,
            scale_stride,
            super_stride,
            high_at,
            scale_at,
            super_at,
            panel_bytes,
        })
    }
}

/// Pointers to the planes of one panel.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    base: *const u8,
    layout: Layout,
}

impl Panel {
    /// # Safety
    /// `base` must point to a whole panel of this layout.
    #[inline(always)]
    pub(super) unsafe fn new(base: *const u8, layout: Layout) -> Panel {
        Panel { base, layout }
    }

    /// True when a panel ends before hardware prefetchers have caught up with it.
    #[inline(always)]
    pub(super) fn is_short(&self) -> bool {
        self.layout.panel_bytes <= PREFETCH_PANEL_MAX
    }

    /// How far ahead a loop over groups should prefetch: the same group of the next panel, unless that is far.
    #[inline(always)]
    pub(super) fn ahead(&self) -> usize {
        if self.is_short() { self.layout.panel_bytes } else { PREFETCH_BYTES }
    }

    /// Low plane of group (floats: column) `g`.
    ///
    /// # Safety
    /// `g` must be inside the panel; so for the other planes.
    #[inline(always)]
    pub(super) unsafe fn low(&self, g: usize) -> *const u8 {
        // SAFETY: inside the panel by the caller's contract.
        unsafe { self.base.add(g * self.layout.low_stride) }
    }

    /// High plane of group `g`.
    ///
    /// # Safety
    /// As [`Panel::low`].
    #[inline(always)]
    pub(super) unsafe fn high(&self, g: usize) -> *const u8 {
        // SAFETY: as above.
        unsafe { self.base.add(self.layout.high_at + g * self.layout.high_stride) }
    }

    /// Scales of group `g`.
    ///
    /// # Safety
    /// As [`Panel::low`].
    #[inline(always)]
    pub(super) unsafe fn scales(&self, g: usize) -> *const u8 {
        // SAFETY: as above.
        unsafe { self.base.add(self.layout.scale_at + g * self.layout.scale_stride) }
    }

    /// Super scales of the 256 columns that group `g` belongs to.
    ///
    /// # Safety
    /// As [`Panel::low`].
    #[inline(always)]
    pub(super) unsafe fn supers(&self, g: usize) -> *const u8 {
        // SAFETY: as above.
        unsafe { self.base.add(self.layout.super_at + g / 8 * self.layout.super_stride) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_size_is_close_to_the_file() {
        for ty in TensorType::ALL {
            let cols = 1536;
            let file = (16 * ty.row_bytes(cols).unwrap()) as f64;
            let packed = Layout::new(ty, cols).unwrap().panel_bytes as f64;
            // Q3_K keeps its 6-bit scales in bytes.
            let limit = if ty == TensorType::Q3_K { 1.04 } else { 1.03 };
            assert!(packed >= file * 0.999 && packed <= file * limit, "{ty}: {}", packed / file);
        }
    }

    #[test]
    fn absurd_widths_are_refused() {
        assert!(Layout::new(TensorType::F32, usize::MAX).is_none());
        assert!(Layout::new(TensorType::Q8_0, usize::MAX / 32 * 32).is_none());
    }
}
