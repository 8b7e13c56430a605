//! The KV cache of one mixer, held as floats after rounding to the stored type.

use unicorn_core::{KvType, PageId, StateLayout, StateSpec, quant};

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

    fn range(&self, pages: &[PageId], position: usize) -> std::ops::Range<usize> {
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

    /// Keys of one position, all heads.
    pub fn key(&self, pages: &[PageId], position: usize) -> &[f32] {
        &self.keys[self.range(pages, position)]
    }

    /// Values of one position, all heads.
    pub fn value(&self, pages: &[PageId], position: usize) -> &[f32] {
        &self.values[self.range(pages, position)]
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
