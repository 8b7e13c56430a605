//! PackedActivations in the forms that the kernels read.
//!
//! Rows (tokens) go in tiles of [`INT_TILE`] or [`FLOAT_TILE`]; the last tile is as wide as rows are left. In a tile of `w`
//! rows, bytes are `[column / 4][row w][4]`; words `[column / 4][2][row w][2]`, columns 0 and 2 of a quad before 1 and 3;
//! floats `[column][row w]`. Beside the integer forms lie, per tile and
//! group of 32 columns, the [`AUX_WORDS`] words `[word][row w]` named in [`super::group_words`].

use std::ops::{BitOr, Range};

use super::group_words::AUX_WORDS;
use super::layout::GROUP;

/// Rows per tile of the integer forms.
pub(super) const INT_TILE: usize = 4;
/// Rows per tile of the float form.
pub(super) const FLOAT_TILE: usize = 6;

/// The forms of activations that a set of matrices reads. Join with `|`: one [`PackedActivations`] then serves them all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ActivationForms(u8);

impl ActivationForms {
    /// Signed bytes with one f32 scale per 32 columns.
    pub(crate) const BYTES: ActivationForms = ActivationForms(1);
    /// The same integers as 16-bit words.
    pub(crate) const WORDS: ActivationForms = ActivationForms(2);
    /// f32.
    pub(crate) const FLOATS: ActivationForms = ActivationForms(4);

    /// True when every form of `other` is in this set.
    pub fn contains(self, other: ActivationForms) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when integers are needed.
    fn quantized(self) -> bool {
        self.0 & 3 != 0
    }
}

impl BitOr for ActivationForms {
    type Output = ActivationForms;
    fn bitor(self, other: ActivationForms) -> ActivationForms {
        ActivationForms(self.0 | other.0)
    }
}

/// A growing, 64-byte aligned buffer.
#[derive(Default)]
struct Buffer(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

impl Buffer {
    /// Makes room for `bytes` and returns the start.
    fn reset(&mut self, bytes: usize) -> *mut u8 {
        let lines = bytes.div_ceil(64);
        if self.0.len() < lines {
            self.0 = Vec::new();
            self.0 = vec![Line([0; 64]); lines];
        }
        self.0.as_mut_ptr().cast()
    }

    fn bytes(&self) -> usize {
        self.0.len() * 64
    }
}

/// A reusable buffer of activations `[rows, cols]`, ready for [`super::linear`].
pub struct PackedActivations {
    rows: usize,
    cols: usize,
    forms: ActivationForms,
    buffers: [Buffer; 4],
    bytes: *mut u8,
    words: *mut i16,
    aux: *mut u32,
    floats: *mut f32,
}

// SAFETY: the pointers lead into the owned buffers; shared writes happen only in `quantize_row`, whose contract keeps
// them disjoint and apart from reads.
unsafe impl Send for PackedActivations {}
// SAFETY: as above.
unsafe impl Sync for PackedActivations {}

impl Default for PackedActivations {
    fn default() -> PackedActivations {
        PackedActivations::new()
    }
}

impl PackedActivations {
    /// An empty buffer.
    pub fn new() -> PackedActivations {
        let null = std::ptr::null_mut();
        PackedActivations {
            rows: 0,
            cols: 0,
            forms: ActivationForms::default(),
            buffers: Default::default(),
            bytes: null,
            words: null.cast(),
            aux: null.cast(),
            floats: null.cast(),
        }
    }

    /// Makes room for `rows` rows of `cols` elements in these forms; memory is kept for reuse. The content is undefined until
    /// every row was given to [`PackedActivations::quantize_row`].
    ///
    /// # Panics
    /// When `forms` has integers and `cols` is no multiple of 32.
    pub fn reset(&mut self, rows: usize, cols: usize, forms: ActivationForms) {
        assert!(
            !forms.quantized() || cols.is_multiple_of(GROUP),
            "{cols} columns are no whole number of groups"
        );
        (self.rows, self.cols, self.forms) = (rows, cols, forms);
        let [bytes, words, aux, floats] = PackedActivations::sizes(rows, cols, forms);
        self.bytes = self.buffers[0].reset(bytes);
        self.words = self.buffers[1].reset(words).cast();
        self.aux = self.buffers[2].reset(aux).cast();
        self.floats = self.buffers[3].reset(floats).cast();
    }

    /// Bytes of the bytes, words, auxiliary words and floats of `rows` rows of `cols` elements in these forms.
    pub(crate) fn sizes(rows: usize, cols: usize, forms: ActivationForms) -> [usize; 4] {
        let elements = rows.saturating_mul(cols);
        let size = |form: ActivationForms, bytes: usize| match forms.contains(form) {
            true => elements.saturating_mul(bytes),
            false => 0,
        };
        let aux = if forms.quantized() { elements / GROUP * AUX_WORDS * 4 } else { 0 };
        [
            size(ActivationForms::BYTES, 1),
            size(ActivationForms::WORDS, 2),
            aux,
            size(ActivationForms::FLOATS, 4),
        ]
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The forms that are filled.
    pub(crate) fn forms(&self) -> ActivationForms {
        self.forms
    }

    /// Bytes of memory held.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::bytes).sum()
    }

    /// Writes row `row` in all forms. Integers are rounded to nearest with the group's largest magnitude at 127; every SIMD level
    /// gives the same bits. A row with NaN or infinities gives NaN or infinite products.
    ///
    /// # Safety
    /// No other thread may use the same row at the same time, nor read the buffer.
    ///
    /// # Panics
    /// When `row` or the length of `x` does not fit the shape given to [`PackedActivations::reset`].
    pub unsafe fn quantize_row(&self, row: usize, x: &[f32]) {
        assert!(row < self.rows && x.len() == self.cols, "row {row} of {} x {}", self.rows, self.cols);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 is there; the rest by the caller's contract.
            unsafe { self.write_row_avx2(row, x) };
            return;
        }
        // SAFETY: by the caller's contract.
        unsafe { self.write_row(row, x) };
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn write_row_avx2(&self, row: usize, x: &[f32]) {
        // SAFETY: by the caller's contract.
        unsafe { self.write_row(row, x) }
    }

    /// # Safety
    /// The row must be in range and not in use elsewhere.
    #[inline(always)]
    unsafe fn write_row(&self, row: usize, x: &[f32]) {
        if self.forms.contains(ActivationForms::FLOATS) {
            let (start, width, t) = self.place(row, FLOAT_TILE);
            // SAFETY: element `k` of this row's place in its tile.
            unsafe {
                let out = self.floats.add(start * self.cols + t);
                for (k, v) in x.iter().enumerate() {
                    *out.add(k * width) = *v;
                }
            }
        }
        if !self.forms.quantized() {
            return;
        }
        let (start, width, t) = self.place(row, INT_TILE);
        for (g, values) in x.as_chunks::<GROUP>().0.iter().enumerate() {
            let group = quantize_group(values);
            // SAFETY: group `g` of this row's place in its tile.
            unsafe {
                if self.forms.contains(ActivationForms::BYTES) {
                    let out = self.bytes.add(start * self.cols + (g * 8 * width + t) * 4);
                    for (q, quad) in group.codes.as_chunks::<4>().0.iter().enumerate() {
                        out.add(q * width * 4).cast::<[i8; 4]>().write(*quad);
                    }
                }
                if self.forms.contains(ActivationForms::WORDS) {
                    let out = self.words.add(start * self.cols + g * GROUP * width + 2 * t);
                    for (q, [a, b, c, d]) in group.codes.as_chunks::<4>().0.iter().enumerate() {
                        let even = out.add(q * 4 * width).cast::<[i16; 2]>();
                        even.write_unaligned([*a as i16, *c as i16]);
                        even.add(width).write_unaligned([*b as i16, *d as i16]);
                    }
                }
                let aux = self.aux.add(start * (self.cols / GROUP) * AUX_WORDS + g * AUX_WORDS * width + t);
                for (n, word) in group.aux.iter().enumerate() {
                    *aux.add(n * width) = *word;
                }
            }
        }
    }

    /// First row and width of the row's tile, and the row's place in it.
    #[inline(always)]
    fn place(&self, row: usize, tile: usize) -> (usize, usize, usize) {
        let start = row / tile * tile;
        (start, tile.min(self.rows - start), row - start)
    }

    /// A tile's integer data from group `g` on.
    ///
    /// # Safety
    /// Tile and group must exist, and the form must be filled where it is read.
    #[inline(always)]
    pub(super) unsafe fn int_tile(&self, tile: usize, g: usize) -> IntTile {
        let start = tile * INT_TILE;
        let width = INT_TILE.min(self.rows - start);
        // SAFETY: inside the buffers, or never read; `wrapping_add` because absent forms have no buffer.
        IntTile {
            width,
            bytes: self.bytes.wrapping_add(start * self.cols + g * GROUP * width),
            words: self.words.wrapping_add(start * self.cols + g * GROUP * width).cast(),
            aux: self
                .aux
                .wrapping_add(start * (self.cols / GROUP) * AUX_WORDS + g * AUX_WORDS * width)
                .cast(),
        }
    }

    /// A float tile's width and its data from column `k` on.
    ///
    /// # Safety
    /// Tile and column must exist and floats be filled.
    #[inline(always)]
    pub(super) unsafe fn float_tile(&self, tile: usize, k: usize) -> (usize, *const f32) {
        let start = tile * FLOAT_TILE;
        let width = FLOAT_TILE.min(self.rows - start);
        (width, self.floats.wrapping_add(start * self.cols + k * width))
    }

    /// Tiles that hold these rows.
    pub(super) fn tiles(rows: &Range<usize>, tile: usize) -> Range<usize> {
        rows.start / tile..rows.end.div_ceil(tile)
    }
}

/// Where a tile's integer activations lie.
#[derive(Clone, Copy)]
pub(super) struct IntTile {
    pub width: usize,
    pub bytes: *const u8,
    pub words: *const u8,
    pub aux: *const i32,
}

struct Group {
    codes: [i8; GROUP],
    aux: [u32; AUX_WORDS],
}

/// Written in lanes so that it vectorizes; the same operations at every level.
#[inline(always)]
fn quantize_group(values: &[f32; GROUP]) -> Group {
    // The magnitudes' bits order like the magnitudes, with NaN on top, so that NaN reaches the scale.
    let mut lanes = [0i32; 8];
    for chunk in values.as_chunks::<8>().0 {
        for i in 0..8 {
            lanes[i] = lanes[i].max((chunk[i].to_bits() & 0x7fff_ffff) as i32);
        }
    }
    let largest = f32::from_bits(lanes.into_iter().fold(0, i32::max) as u32);
    // Below this the inverse would overflow; such groups are zero for all purposes.
    let (scale, inverse) = if largest < 1e-30 { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
    // Adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let mut rounded = [0i32; GROUP];
    for i in 0..GROUP {
        rounded[i] = (values[i] * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    }
    let mut codes = [0i8; GROUP];
    for i in 0..GROUP {
        codes[i] = rounded[i] as i8;
    }
    // Column sums of the quads in each half.
    let mut sums = [[0i32; 4]; 2];
    for (q, quad) in codes.as_chunks::<4>().0.iter().enumerate() {
        for i in 0..4 {
            sums[q / 4][i] += quad[i] as i32;
        }
    }
    let pairs = sums.map(|s| [s[0] + s[1], s[2] + s[3]]);
    let halves = pairs.map(|p| p[0] + p[1]);
    let two = |a: i32, b: i32| a as u16 as u32 | (b as u16 as u32) << 16;
    let aux = [
        scale.to_bits(),
        (scale * (halves[0] + halves[1]) as f32).to_bits(),
        two(-pairs[0][0] - pairs[1][0], -pairs[0][1] - pairs[1][1]),
        two(-pairs[0][0], -pairs[0][1]),
        two(-pairs[1][0], -pairs[1][1]),
        two(halves[0], halves[1]),
    ];
    Group { codes, aux }
}
