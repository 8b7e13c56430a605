//! The paged KV cache of one mixer.
//!
//! A page holds `page_tokens` positions of every KV head, head after head. Inside a head, keys come first, transposed in
//! tiles of [`TILE`] positions (`[tile][dim][TILE]`) so that scores vectorize over positions; values follow as rows
//! `[position][padded dim]`. Rows are padded to a multiple of 16 with zeros that nobody writes. `Q8_0` keeps its scales apart:
//! keys `[tile][dim / 32][TILE]`, values `[position][dim / 32]`, before the bytes of the tile and of the rows.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

use unicorn_core::{KvType, PageId};

use super::float_vector::FloatVector;
use crate::reference::KvLayout;

/// Positions per transposed tile of keys.
pub(crate) const TILE: usize = 16;
/// Elements that share a scale in `Q8_0`.
const QUANT: usize = 32;

/// Zeroed memory that the operating system commits as it is touched.
pub(crate) struct LazyBytes {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory, owned.
unsafe impl Send for LazyBytes {}
// SAFETY: shared access goes through unsafe methods of what holds it.
unsafe impl Sync for LazyBytes {}

/// Over-allocation that lets the cache start on a cache line. Asking the allocator for the alignment instead would make it
/// write the zeros, and so commit the memory.
const LINE: usize = 64;

impl LazyBytes {
    /// `None` when the memory cannot be had.
    pub(crate) fn new(bytes: usize) -> Option<LazyBytes> {
        let layout = Layout::from_size_align(bytes.checked_add(LINE)?, 16).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(LazyBytes { start, layout })
    }

    /// The first byte, on a cache line.
    pub(crate) fn aligned(&self) -> *mut u8 {
        let start = self.start.as_ptr();
        start.wrapping_add(start.align_offset(LINE))
    }
}

impl Drop for LazyBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Sizes inside a page, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvGeometry {
    pub(crate) ty: KvType,
    /// Index of the state group, whose page tables name the pages.
    pub(crate) group: usize,
    pub(crate) page_tokens: usize,
    pub(crate) pages: usize,
    kv_heads: usize,
    pub(crate) dim: usize,
    /// `dim` rounded up to 16.
    pub(crate) padded: usize,
    key_tile: usize,
    value_scales: usize,
    value_rows: usize,
    value_row: usize,
    head: usize,
    page: usize,
}

impl KvGeometry {
    /// `None` when sizes overflow, `page_tokens` is no multiple of 32, or `Q8_0` meets a head that is no multiple of 32.
    pub(crate) fn new(layout: KvLayout, kv_heads: usize, dim: usize) -> Option<KvGeometry> {
        if layout.page_tokens == 0 || !layout.page_tokens.is_multiple_of(32) || dim == 0 {
            return None;
        }
        let padded = dim.next_multiple_of(16);
        let (key_tile, scales, value_row) = match layout.ty {
            KvType::F32 => (dim * TILE * 4, 0, padded * 4),
            KvType::F16 => (dim * TILE * 2, 0, padded * 2),
            KvType::Q8_0 if dim.is_multiple_of(QUANT) => {
                (dim / QUANT * TILE * 2 + dim * TILE, dim / QUANT * 2, padded)
            }
            KvType::Q8_0 => return None,
        };
        let tokens = layout.page_tokens;
        let value_scales = tokens / TILE * key_tile;
        let value_rows = (value_scales + tokens.checked_mul(scales)?).next_multiple_of(64);
        let head = value_rows.checked_add(tokens.checked_mul(value_row)?)?.next_multiple_of(64);
        let page = head.checked_mul(kv_heads)?;
        page.checked_mul(layout.pages)?;
        Some(KvGeometry {
            ty: layout.ty,
            group: layout.group,
            page_tokens: tokens,
            pages: layout.pages,
            kv_heads,
            dim,
            padded,
            key_tile,
            value_scales,
            value_rows,
            value_row,
            head,
            page,
        })
    }

    /// Bytes of an element.
    fn element(&self) -> usize {
        match self.ty {
            KvType::F32 => 4,
            KvType::F16 => 2,
            KvType::Q8_0 => 1,
        }
    }

    /// Scales of a row.
    fn scales(&self) -> usize {
        if self.ty == KvType::Q8_0 { self.dim / QUANT } else { 0 }
    }

    /// KV heads.
    pub(crate) fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Bytes of the whole cache.
    pub(crate) fn bytes(&self) -> usize {
        self.page * self.pages
    }

    /// Bytes of keys and values per position.
    pub(crate) fn bytes_per_position(&self) -> usize {
        self.page / self.page_tokens
    }
}

/// Keys and values of one mixer. Threads write and read disjoint heads or positions between two barriers.
pub(crate) struct KvCache {
    bytes: LazyBytes,
    geometry: KvGeometry,
}

impl KvCache {
    /// An empty cache; `None` when the memory cannot be had.
    pub(crate) fn new(geometry: KvGeometry) -> Option<KvCache> {
        Some(KvCache { bytes: LazyBytes::new(geometry.bytes())?, geometry })
    }

    /// Its sizes.
    pub(crate) fn geometry(&self) -> &KvGeometry {
        &self.geometry
    }

    /// One head of one sequence.
    ///
    /// # Panics
    /// When the head is out of range.
    pub(crate) fn head<'a>(&'a self, pages: &'a [PageId], head: usize) -> KvHead<'a> {
        assert!(head < self.geometry.kv_heads, "kv head {head} of {}", self.geometry.kv_heads);
        KvHead { cache: self, pages, head }
    }
}

/// One KV head of one sequence: positions are resolved through the sequence's pages.
#[derive(Clone, Copy)]
pub(crate) struct KvHead<'a> {
    cache: &'a KvCache,
    pages: &'a [PageId],
    head: usize,
}

impl KvHead<'_> {
    /// Sizes of the cache.
    pub(crate) fn geometry(&self) -> &KvGeometry {
        &self.cache.geometry
    }

    /// This head's part of the page that holds `position`, and the position inside it.
    ///
    /// # Panics
    /// When the sequence has no page for the position, or the page lies outside the cache.
    fn page(&self, position: usize) -> (*mut u8, usize) {
        let g = &self.cache.geometry;
        let page = self.pages[position / g.page_tokens] as usize;
        assert!(page < g.pages, "page {page} of {}", g.pages);
        // SAFETY: the page was checked now, the head when `self` was made.
        let start = unsafe { self.cache.bytes.aligned().add(page * g.page + self.head * g.head) };
        (start, position % g.page_tokens)
    }

    /// The tile of keys that holds `position`.
    pub(crate) fn key_tile(&self, position: usize) -> *mut u8 {
        let (page, slot) = self.page(position);
        // SAFETY: inside the page.
        unsafe { page.add(slot / TILE * self.cache.geometry.key_tile) }
    }

    /// The row of values of `position`; the rest of its 32 positions follow it.
    pub(crate) fn value_row(&self, position: usize) -> *mut u8 {
        let (page, slot) = self.page(position);
        let g = &self.cache.geometry;
        // SAFETY: inside the page.
        unsafe { page.add(g.value_rows + slot * g.value_row) }
    }

    fn value_scales(&self, position: usize) -> *mut u16 {
        let (page, slot) = self.page(position);
        let g = &self.cache.geometry;
        // SAFETY: inside the page; scales start on an even offset.
        unsafe { page.add(g.value_scales + slot * (g.dim / QUANT) * 2).cast() }
    }

    /// Asks for keys and values of `positions` ahead of their use; the first is a multiple of [`TILE`].
    pub(crate) fn prefetch(&self, positions: Range<usize>) {
        let (g, end) = (&self.cache.geometry, positions.end);
        for position in positions.clone().step_by(TILE) {
            prefetch(self.key_tile(position), g.key_tile);
        }
        for position in positions.step_by(TILE) {
            prefetch(self.value_row(position), TILE.min(end - position) * g.value_row);
        }
    }

    /// Stores the key and the value of a position; both hold `dim` elements.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`, and no other thread touches this head at this position.
    ///
    /// # Panics
    /// When the lengths are not `dim`.
    #[inline(always)]
    pub(crate) unsafe fn store<S: FloatVector>(&self, position: usize, key: &[f32], value: &[f32]) {
        let dim = self.cache.geometry.dim;
        assert!(key.len() == dim && value.len() == dim, "a KV row of another length");
        let lane = position % TILE;
        let (tile, row) = (self.key_tile(position), self.value_row(position));
        // SAFETY: tile and row have room for `dim` elements at this position, and are this thread's.
        unsafe {
            match self.cache.geometry.ty {
                KvType::F32 => {
                    for (d, v) in key.iter().enumerate() {
                        *tile.cast::<f32>().add(d * TILE + lane) = *v;
                    }
                    std::ptr::copy_nonoverlapping(value.as_ptr(), row.cast(), dim);
                }
                KvType::F16 => {
                    let mut bits = [0u16; 16];
                    for (c, part) in key.chunks(S::LANES).enumerate() {
                        store_half::<S>(part, &mut bits);
                        for i in 0..part.len() {
                            *tile.cast::<u16>().add((c * S::LANES + i) * TILE + lane) = bits[i];
                        }
                    }
                    for (c, part) in value.chunks(S::LANES).enumerate() {
                        store_half::<S>(part, &mut bits);
                        let to = row.cast::<u16>().add(c * S::LANES);
                        std::ptr::copy_nonoverlapping(bits.as_ptr(), to, part.len());
                    }
                }
                KvType::Q8_0 => {
                    let codes = tile.add(dim / QUANT * TILE * 2).cast::<i8>();
                    let scales = self.value_scales(position);
                    for (b, part) in key.as_chunks::<QUANT>().0.iter().enumerate() {
                        let (scale, q) = quantize(part);
                        tile.cast::<u16>().add(b * TILE + lane).write_unaligned(scale);
                        for i in 0..QUANT {
                            *codes.add((b * QUANT + i) * TILE + lane) = q[i];
                        }
                    }
                    for (b, part) in value.as_chunks::<QUANT>().0.iter().enumerate() {
                        let (scale, q) = quantize(part);
                        scales.add(b).write_unaligned(scale);
                        std::ptr::copy_nonoverlapping(q.as_ptr(), row.cast::<i8>().add(b * QUANT), QUANT);
                    }
                }
            }
        }
    }

    /// Expands the tile of keys that holds `position` to `[dim][TILE]` floats.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`; nobody writes this head now; `out` has `dim * TILE` elements.
    #[inline(always)]
    pub(crate) unsafe fn expand_keys<S: FloatVector>(&self, position: usize, out: *mut f32) {
        let g = &self.cache.geometry;
        let tile = self.key_tile(position);
        // SAFETY: the tile has `dim * TILE` elements in the layout of its type.
        unsafe {
            match g.ty {
                KvType::F32 => std::ptr::copy_nonoverlapping(tile.cast::<f32>(), out, g.dim * TILE),
                KvType::F16 => expand_halves::<S>(tile.cast(), out, g.dim * TILE),
                KvType::Q8_0 => {
                    let codes = tile.add(g.dim / QUANT * TILE * 2).cast::<i8>();
                    for d in 0..g.dim {
                        let scales = tile.cast::<u16>().add(d / QUANT * TILE);
                        for lane in (0..TILE).step_by(S::LANES) {
                            let at = d * TILE + lane;
                            let v = S::mul(S::load_i8(codes.add(at)), S::load_f16(scales.add(lane)));
                            S::store(out.add(at), v);
                        }
                    }
                }
            }
        }
    }

    /// Expands `count` rows of values from `position` on, inside one run of 32 positions, to `[count][padded]` floats.
    ///
    /// # Safety
    /// As for [`KvHead::expand_keys`]; `out` has `count * padded` elements.
    #[inline(always)]
    pub(crate) unsafe fn expand_values<S: FloatVector>(&self, position: usize, count: usize, out: *mut f32) {
        let g = &self.cache.geometry;
        let rows = self.value_row(position);
        // SAFETY: the page holds `count` rows from this position on.
        unsafe {
            match g.ty {
                KvType::F32 => std::ptr::copy_nonoverlapping(rows.cast::<f32>(), out, count * g.padded),
                KvType::F16 => expand_halves::<S>(rows.cast(), out, count * g.padded),
                KvType::Q8_0 => {
                    let scales = self.value_scales(position);
                    for at in (0..count * g.dim).step_by(S::LANES) {
                        let scale = half::f16::from_bits(scales.add(at / QUANT).read_unaligned()).to_f32();
                        S::store(out.add(at), S::mul(S::load_i8(rows.cast::<i8>().add(at)), S::splat(scale)));
                    }
                }
            }
        }
    }
}

/// A copy of a head of a page, to or from the layout of [`unicorn_core::StateCopy`]: `[position][dim]` as stored, with `Q8_0` the scales of
/// all positions behind the bytes of all.
impl KvHead<'_> {
    /// Bytes of the keys, and as many of the values, of a head of a page.
    pub(crate) fn half_page_bytes(&self) -> usize {
        let g = &self.cache.geometry;
        g.page_tokens * g.dim * g.element() + g.scales() * g.page_tokens * 2
    }

    /// Copies the page that holds `position` between the cache and `keys` and `values`.
    ///
    /// # Safety
    /// No other thread touches this head's page now, but for reading it where `to_cache` is false.
    ///
    /// # Panics
    /// When `keys` or `values` is not of [`KvHead::half_page_bytes`].
    pub(crate) unsafe fn copy_page(
        &self,
        position: usize,
        keys: &mut [u8],
        values: &mut [u8],
        to_cache: bool,
    ) {
        let g = &self.cache.geometry;
        let half = self.half_page_bytes();
        assert!(keys.len() == half && values.len() == half, "a page of another size");
        let (row, scales) = (g.dim * g.element(), g.scales() * 2);
        let (key_rows, key_scales) = keys.split_at_mut(g.page_tokens * row);
        let (value_rows, value_scales) = values.split_at_mut(g.page_tokens * row);
        let start = position - position % g.page_tokens;
        for slot in 0..g.page_tokens {
            let (tile, lane) = (self.key_tile(start + slot), slot % TILE);
            let codes = tile.wrapping_add(scales * TILE);
            let rows = slot * row..(slot + 1) * row;
            let key = &mut key_rows[rows.clone()];
            let part = slot * scales..(slot + 1) * scales;
            // SAFETY: tile and rows have these elements at this position, and are this thread's, or only read.
            unsafe {
                match g.ty {
                    KvType::F32 => copy_column::<4>(codes, lane, key, to_cache),
                    KvType::F16 => copy_column::<2>(codes, lane, key, to_cache),
                    KvType::Q8_0 => copy_column::<1>(codes, lane, key, to_cache),
                }
                copy_column::<2>(tile, lane, &mut key_scales[part.clone()], to_cache);
                copy_row(self.value_row(start + slot), &mut value_rows[rows], to_cache);
                if scales > 0 {
                    copy_row(self.value_scales(start + slot).cast(), &mut value_scales[part], to_cache);
                }
            }
        }
    }
}

/// Copies elements of `E` bytes that lie [`TILE`] elements apart, from `lane` on.
///
/// # Safety
/// There are as many as `host` has, and nobody else touches them.
unsafe fn copy_column<const E: usize>(tile: *mut u8, lane: usize, host: &mut [u8], to_cache: bool) {
    for (i, element) in host.as_chunks_mut::<E>().0.iter_mut().enumerate() {
        // SAFETY: by this function's contract; elements are bytes, which need no alignment.
        unsafe {
            let cached = tile.add((i * TILE + lane) * E).cast::<[u8; E]>();
            if to_cache { *cached = *element } else { *element = *cached }
        }
    }
}

/// Copies bytes that follow each other.
///
/// # Safety
/// There are as many as `host` has, and nobody else touches them.
unsafe fn copy_row(cached: *mut u8, host: &mut [u8], to_cache: bool) {
    // SAFETY: by this function's contract.
    unsafe {
        match to_cache {
            true => std::ptr::copy_nonoverlapping(host.as_ptr(), cached, host.len()),
            false => std::ptr::copy_nonoverlapping(cached, host.as_mut_ptr(), host.len()),
        }
    }
}

/// Hints that `bytes` bytes will be read.
fn prefetch(start: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..bytes).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (start, bytes);
}

/// Converts `part` (at most `LANES` elements) to half floats at the front of `bits`.
#[inline(always)]
unsafe fn store_half<S: FloatVector>(part: &[f32], bits: &mut [u16; 16]) {
    let mut full = [0f32; 16];
    full[..part.len()].copy_from_slice(part);
    // SAFETY: both arrays have 16 elements, at least LANES.
    unsafe { S::store_f16(bits.as_mut_ptr(), S::load(full.as_ptr())) }
}

#[inline(always)]
unsafe fn expand_halves<S: FloatVector>(from: *const u16, to: *mut f32, count: usize) {
    for at in (0..count).step_by(S::LANES) {
        // SAFETY: `count` is a multiple of 16, and so of LANES.
        unsafe { S::store(to.add(at), S::load_f16(from.add(at))) }
    }
}

/// One `Q8_0` block: the scale as half float bits, and the codes.
fn quantize(values: &[f32; QUANT]) -> (u16, [i8; QUANT]) {
    let bytes = unicorn_core::quant::quantize_q8_0(values);
    let mut codes = [0; QUANT];
    for i in 0..QUANT {
        codes[i] = bytes[2 + i] as i8;
    }
    (u16::from_le_bytes([bytes[0], bytes[1]]), codes)
}
