//! The KV cache of one mixer, held as floats after rounding to the stored type.

use std::ops::Range;

use unicorn_core::{KvType, PageId, StateCopy, StateLayout, StateSpec, StateWay, quant};

/// Geometry of the pages of one state group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KvLayout {
    /// Index of the group: that of its page tables in a slice.
    pub(crate) group: usize,
    /// Positions per page.
    pub(crate) page_tokens: usize,
    /// Pages in the pool.
    pub(crate) pages: usize,
    /// Element type.
    pub(crate) ty: KvType,
}

impl KvLayout {
    /// The geometry for mixers that keep this.
    ///
    /// Errors when nothing is reserved for them, or the geometry cannot hold heads of this size.
    pub(crate) fn of(layout: &StateLayout, spec: StateSpec, head_dim: usize) -> Result<KvLayout, String> {
        if layout.page_tokens == 0 || !layout.page_tokens.is_multiple_of(32) {
            return Err(format!("pages of {} positions", layout.page_tokens));
        }
        if layout.ty == KvType::Q8_0 && !head_dim.is_multiple_of(32) {
            return Err(format!("a Q8_0 KV cache with heads of {head_dim}"));
        }
        let group = layout
            .group(spec)
            .ok_or_else(|| format!("a mixer that keeps {spec}, for which no pages are,"))?;
        let (page_tokens, pages, ty) = (layout.page_tokens, layout.groups[group].pages, layout.ty);
        Ok(KvLayout { group, page_tokens, pages, ty })
    }
}

/// Keys and values of one mixer, `[pages, page_tokens, kv_heads * head_dim]` each.
pub(super) struct KvCache {
    layout: KvLayout,
    row: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// An empty cache for rows of `row = kv_heads * head_dim` elements.
    pub fn new(layout: KvLayout, row: usize) -> KvCache {
        let len = layout.pages * layout.page_tokens * row;
        KvCache { layout, row, keys: vec![0.0; len], values: vec![0.0; len] }
    }

    /// Bytes of a cache for rows of `row` elements.
    pub fn bytes_of(layout: &KvLayout, row: usize) -> u64 {
        let elements = (layout.pages as u64).saturating_mul(layout.page_tokens as u64);
        elements.saturating_mul(row as u64 * 8)
    }

    /// Geometry.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        (self.keys.len() + self.values.len()) as u64 * 4
    }

    fn range(&self, pages: &[PageId], position: usize) -> Range<usize> {
        let page = pages[position / self.layout.page_tokens] as usize;
        let slot = page * self.layout.page_tokens + position % self.layout.page_tokens;
        slot * self.row..(slot + 1) * self.row
    }

    /// Rounds and stores the keys and values of one position.
    pub fn store(&mut self, pages: &[PageId], position: usize, key: &[f64], value: &[f64]) {
        let range = self.range(pages, position);
        round_to(self.layout.ty, key, &mut self.keys[range.clone()]);
        round_to(self.layout.ty, value, &mut self.values[range]);
    }

    /// Copies pages to the host or from it; returns the bytes. Heads have `dim` elements.
    pub fn copy(&mut self, dim: usize, copy: &StateCopy) -> Result<u64, String> {
        let KvLayout { page_tokens: tokens, pages, ty, .. } = self.layout;
        if let Some(page) = copy.pages.iter().find(|p| **p as usize >= pages) {
            return Err(format!("page {page} of {pages}"));
        }
        let (heads, row) = (self.row / dim, self.row);
        let row_bytes = ty.tensor_type().row_bytes(dim).ok_or("heads that the type does not divide")?;
        let half = tokens * row_bytes;
        let host = match &copy.way {
            StateWay::Save(host) | StateWay::Restore(host) => host,
        };
        let words = 2 * heads * half / 4;
        if host.rows() < copy.pages.len() || host.width() != words {
            return Err(format!("{} pages of {words} words in {host:?}", copy.pages.len()));
        }
        for (i, page) in copy.pages.iter().enumerate() {
            for (plane, values) in [&mut self.keys, &mut self.values].into_iter().enumerate() {
                for head in 0..heads {
                    let at = |slot: usize| (*page as usize * tokens + slot) * row + head * dim;
                    let mut bytes = vec![0; half];
                    let byte = (plane * heads + head) * half;
                    if matches!(copy.way, StateWay::Restore(_)) {
                        host.read_part(i, byte, &mut bytes);
                        for slot in 0..tokens {
                            let stored = stored_row(ty, &bytes, slot, tokens, dim);
                            quant::dequantize(
                                ty.tensor_type(),
                                &stored,
                                &mut values[at(slot)..at(slot) + dim],
                            );
                        }
                    } else {
                        for slot in 0..tokens {
                            let mut stored = Vec::new();
                            quant::quantize(ty.tensor_type(), &values[at(slot)..at(slot) + dim], &mut stored);
                            put_row(ty, &stored, &mut bytes, slot, tokens, dim);
                        }
                        host.write_part(i, byte, &bytes);
                    }
                }
            }
        }
        Ok((copy.pages.len() * words * 4) as u64)
    }

    /// Keys of one position, all heads.
    pub fn key(&self, pages: &[PageId], position: usize) -> &[f32] {
        &self.keys[self.range(pages, position)]
    }

    /// Values of one position, all heads.
    pub fn value(&self, pages: &[PageId], position: usize) -> &[f32] {
        &self.values[self.range(pages, position)]
    }
}

/// Scales and codes of the blocks of a row in a head of a page, as ranges of its bytes: with `Q8_0` the scales of all rows lie behind the
/// codes of all.
fn blocks(slot: usize, tokens: usize, dim: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let scales = tokens * dim + slot * (dim / 32) * 2;
    (0..dim / 32).map(move |b| {
        let code = slot * dim + b * 32;
        (scales + b * 2..scales + b * 2 + 2, code..code + 32)
    })
}

/// A row out of a head of a page, as the tensor type stores it.
fn stored_row(ty: KvType, page: &[u8], slot: usize, tokens: usize, dim: usize) -> Vec<u8> {
    match ty {
        KvType::Q8_0 => {
            let block = |(scale, codes): (Range<usize>, Range<usize>)| [&page[scale], &page[codes]].concat();
            blocks(slot, tokens, dim).flat_map(block).collect()
        }
        KvType::F32 | KvType::F16 => {
            let bytes = page.len() / tokens;
            page[slot * bytes..(slot + 1) * bytes].to_vec()
        }
    }
}

/// The way back of [`stored_row`].
fn put_row(ty: KvType, stored: &[u8], page: &mut [u8], slot: usize, tokens: usize, dim: usize) {
    match ty {
        KvType::Q8_0 => {
            for ((scale, codes), block) in blocks(slot, tokens, dim).zip(stored.chunks_exact(34)) {
                page[scale].copy_from_slice(&block[..2]);
                page[codes].copy_from_slice(&block[2..]);
            }
        }
        KvType::F32 | KvType::F16 => page[slot * stored.len()..][..stored.len()].copy_from_slice(stored),
    }
}

/// What `x` reads back as after being stored with this type. For `Q8_0` the length is a multiple of 32, and blocks start at
/// the first element of each head.
pub(crate) fn round_to(ty: KvType, x: &[f64], out: &mut [f32]) {
    let x: Vec<f32> = x.iter().map(|v| *v as f32).collect();
    let mut bytes = Vec::new();
    quant::quantize(ty.tensor_type(), &x, &mut bytes);
    quant::dequantize(ty.tensor_type(), &bytes, out);
}
