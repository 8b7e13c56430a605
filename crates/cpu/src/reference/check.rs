//! Preconditions of the [`Device`](unicorn_core::Device) trait, as messages for people.

use unicorn_core::{Batch, Block, KvLayout, KvType, Weight};

/// Errors when a tensor's shape, byte count or presence contradicts the block's spec.
pub fn check_block(block: &Block) -> Result<(), String> {
    match block {
        Block::Embedding { spec, table } => shape(table, spec.vocab, spec.width),
        Block::Head { spec, norm, weight } => {
            shape(norm, 1, spec.width)?;
            shape(weight, spec.vocab, spec.width)
        }
        Block::Ffn { spec, weights: w } => {
            shape(&w.norm, 1, spec.width)?;
            shape(&w.gate, spec.hidden, spec.width)?;
            shape(&w.up, spec.hidden, spec.width)?;
            shape(&w.down, spec.width, spec.hidden)?;
            paired("post_norm", spec.post_norm.is_some(), &w.post_norm, spec.width)
        }
        Block::Attention { spec, weights: w } => {
            if spec.kv_heads == 0 || !spec.heads.is_multiple_of(spec.kv_heads) {
                return Err(format!("{} heads do not share {} key heads", spec.heads, spec.kv_heads));
            }
            if 2 * spec.rope.frequencies.len() > spec.head_dim {
                return Err(format!(
                    "{} rope pairs in a head of {}",
                    spec.rope.frequencies.len(),
                    spec.head_dim
                ));
            }
            if spec.window == Some(0) {
                return Err("a sliding window of 0 positions".into());
            }
            let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
            shape(&w.norm, 1, spec.width)?;
            shape(&w.q, q, spec.width)?;
            shape(&w.k, kv, spec.width)?;
            shape(&w.v, kv, spec.width)?;
            shape(&w.o, spec.width, q)?;
            for (bias, len) in [(&w.q_bias, q), (&w.k_bias, kv), (&w.v_bias, kv), (&w.o_bias, spec.width)] {
                if let Some(bias) = bias {
                    shape(bias, 1, len)?;
                }
            }
            paired("q_norm", spec.qk_norm.is_some(), &w.q_norm, spec.head_dim)?;
            paired("k_norm", spec.qk_norm.is_some(), &w.k_norm, spec.head_dim)?;
            paired("post_norm", spec.post_norm.is_some(), &w.post_norm, spec.width)
        }
    }
}

fn shape(weight: &Weight, rows: usize, cols: usize) -> Result<(), String> {
    if (weight.rows, weight.cols) != (rows, cols) {
        let (have_rows, have_cols) = (weight.rows, weight.cols);
        return Err(format!("{}: shape [{have_rows}, {have_cols}], wanted [{rows}, {cols}]", weight.name));
    }
    let bytes = weight.ty.row_bytes(cols).and_then(|b| b.checked_mul(rows));
    if bytes.map(|b| b as u64) != Some(weight.span.bytes) {
        return Err(format!(
            "{}: {} bytes do not hold [{rows}, {cols}] of {}",
            weight.name, weight.span.bytes, weight.ty
        ));
    }
    Ok(())
}

fn paired(what: &str, wanted: bool, weight: &Option<Weight>, cols: usize) -> Result<(), String> {
    match weight {
        Some(weight) if wanted => shape(weight, 1, cols),
        None if !wanted => Ok(()),
        Some(weight) => Err(format!("{}: the spec has no {what}", weight.name)),
        None => Err(format!("the tensor for {what} is missing")),
    }
}

/// Errors when slices lack pages, pages lie outside the pool, or a layout cannot hold heads of this size.
pub fn check_pages(batch: &Batch, layout: &KvLayout) -> Result<(), String> {
    for slice in &batch.slices {
        let end = slice.start as usize + slice.tokens.len();
        if slice.pages.len() * layout.page_tokens < end {
            let (id, pages, size) = (slice.sequence.0, slice.pages.len(), layout.page_tokens);
            return Err(format!("sequence {id}: {pages} pages of {size} positions for {end} positions"));
        }
        if let Some(page) = slice.pages.iter().find(|p| **p as usize >= layout.pages) {
            return Err(format!("sequence {}: page {page} of {}", slice.sequence.0, layout.pages));
        }
    }
    Ok(())
}

/// Errors when the geometry is outside what the trait allows. `Q8_0` needs heads of whole 32-element blocks.
pub fn check_layout(layout: &KvLayout, head_dim: usize) -> Result<(), String> {
    if layout.page_tokens == 0 || !layout.page_tokens.is_multiple_of(32) {
        return Err(format!("pages of {} positions", layout.page_tokens));
    }
    if layout.ty == KvType::Q8_0 && !head_dim.is_multiple_of(32) {
        return Err(format!("a Q8_0 KV cache with heads of {head_dim}"));
    }
    Ok(())
}

/// Errors when output rows are not ascending or lie outside the batch.
pub fn check_outputs(batch: &Batch) -> Result<(), String> {
    if !batch.outputs.is_sorted_by(|a, b| a < b) {
        return Err("output rows are not ascending".into());
    }
    match batch.outputs.last() {
        Some(last) if *last as usize >= batch.rows() => Err(format!("output row {last} of {}", batch.rows())),
        _ => Ok(()),
    }
}

/// Errors when a token id is outside the vocabulary.
pub fn check_tokens(batch: &Batch, vocab: usize) -> Result<(), String> {
    match batch.slices.iter().flat_map(|s| &s.tokens).find(|t| **t as usize >= vocab) {
        Some(token) => Err(format!("token {token} in a vocabulary of {vocab}")),
        None => Ok(()),
    }
}
