//! What must hold of a batch before it runs.

use unicorn_core::{Batch, DeviceError, KvLayout, Slice};

use super::blocks::Loaded;
use super::errors::invalid;
use super::workspace::Stream;
use crate::reference::{check_outputs, check_pages, check_tokens};

/// Errors when the batch, the stream or the order of blocks breaks a precondition.
pub(super) fn check_batch(
    blocks: &[&Loaded],
    batch: &Batch,
    stream: &Stream,
    layout: Option<KvLayout>,
    writers: &mut Vec<u32>,
) -> Result<(), DeviceError> {
    let too_long = |s: &Slice| (s.start as usize).saturating_add(s.tokens.len()) > u32::MAX as usize;
    if batch.slices.iter().any(too_long) {
        return Err(invalid("positions past 2^32"));
    }
    let rows = batch.rows();
    let embeds = matches!(blocks.first(), Some(Loaded::Embedding(_)));
    let width = if embeds { blocks[0].width() } else { stream.width };
    let mut pages_checked = false;
    for (index, block) in blocks.iter().enumerate() {
        if block.width() != width {
            return Err(invalid(format!("a block of width {} on a stream of width {width}", block.width())));
        }
        match block {
            Loaded::Embedding(_) if index > 0 => return Err(invalid("an embedding behind other blocks")),
            Loaded::Embedding(block) => check_tokens(batch, block.spec.vocab).map_err(invalid)?,
            Loaded::Attention(block) if block.kv.is_some() => {
                let layout = layout.ok_or_else(|| invalid("no KV cache was reserved"))?;
                if !pages_checked {
                    check_pages(batch, &layout).map_err(invalid)?;
                    check_writers(batch, &layout, writers)?;
                    pages_checked = true;
                }
            }
            Loaded::Attention(_) => return Err(invalid("no KV cache was reserved")),
            Loaded::Ffn(_) => {}
            Loaded::Head(_) if index + 1 < blocks.len() => return Err(invalid("a head before other blocks")),
            Loaded::Head(_) => check_outputs(batch).map_err(invalid)?,
        }
    }
    if !embeds && !blocks.is_empty() && stream.x.len() != rows * width {
        let held = stream.x.len();
        return Err(invalid(format!("a stream of {held} values for a batch of {rows} rows of {width}")));
    }
    Ok(())
}

/// Errors when a page that one slice writes is used by another, or twice by itself: threads would race on it.
fn check_writers(batch: &Batch, layout: &KvLayout, writers: &mut Vec<u32>) -> Result<(), DeviceError> {
    writers.resize(layout.pages, 0);
    let written = |slice: &Slice| {
        let end = slice.start as usize + slice.tokens.len();
        (slice.start as usize / layout.page_tokens, end.div_ceil(layout.page_tokens))
    };
    let used = |slice: &Slice| if slice.tokens.is_empty() { 0 } else { written(slice).1 };
    let mut clash = None;
    for (index, slice) in batch.slices.iter().enumerate() {
        for page in &slice.pages[written(slice).0.min(used(slice))..used(slice)] {
            if std::mem::replace(&mut writers[*page as usize], index as u32 + 1) != 0 {
                clash = Some((slice.sequence, *page));
            }
        }
    }
    for (index, slice) in batch.slices.iter().enumerate() {
        for (at, page) in slice.pages[..used(slice)].iter().enumerate() {
            let writer = writers[*page as usize];
            if writer != 0 && (writer != index as u32 + 1 || at < written(slice).0) {
                clash = Some((slice.sequence, *page));
            }
        }
    }
    for slice in &batch.slices {
        slice.pages[..used(slice)].iter().for_each(|page| writers[*page as usize] = 0);
    }
    match clash {
        Some((sequence, page)) => Err(invalid(format!(
            "sequence {}: page {page} is written and used twice in one batch",
            sequence.0
        ))),
        None => Ok(()),
    }
}
