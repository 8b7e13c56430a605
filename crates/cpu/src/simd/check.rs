//! What must hold of work beside what its batch's type says.

use unicorn_core::{Crossing, DeviceError, StateLayout, Work};

use super::blocks::Loaded;
use super::errors::invalid;
use super::workspace::Stream;

/// Errors when the stream, the order of blocks, or the state that the batch was made for does not fit.
pub(super) fn check_work(
    blocks: &[&Loaded],
    work: &Work,
    stream: &Stream,
    layout: Option<&StateLayout>,
) -> Result<(), DeviceError> {
    let batch = &work.batch;
    let Some(first) = blocks.first() else { return Err(invalid("work without blocks")) };
    let Crossing { import, export } = work.crossing;
    let embeds = matches!(first, Loaded::Embedding(_));
    let width = match &stream.shared {
        Some(shared) if batch.rows() > shared.rows() => {
            let (rows, most) = (batch.rows(), shared.rows());
            return Err(invalid(format!("{rows} rows in a shared buffer of {most}")));
        }
        Some(shared) => shared.width(),
        None if import || export => return Err(invalid("a stream that crosses has no shared buffer")),
        None if embeds => first.width(),
        None => stream.width,
    };
    let vocab = batch.limits().vocab;
    for (index, block) in blocks.iter().enumerate() {
        if block.width() != width {
            return Err(invalid(format!("a block of width {} on a stream of width {width}", block.width())));
        }
        match block {
            Loaded::Embedding(_) if index > 0 => return Err(invalid("an embedding behind other blocks")),
            Loaded::Embedding(block) if vocab > block.spec.vocab => {
                return Err(invalid(format!("a batch for {vocab} tokens of {}", block.spec.vocab)));
            }
            Loaded::Head(block) if vocab != block.spec.vocab => {
                return Err(invalid(format!("a batch for {vocab} logits of {}", block.spec.vocab)));
            }
            Loaded::Attention(block) if block.kv.is_none() || batch.limits().state.as_ref() != layout => {
                return Err(invalid("the batch was made for other state than is reserved"));
            }
            Loaded::ShortConv(block) if block.states.is_none() || batch.limits().state.as_ref() != layout => {
                return Err(invalid("the batch was made for other state than is reserved"));
            }
            Loaded::Head(_) if index + 1 < blocks.len() => return Err(invalid("a head before other blocks")),
            Loaded::Embedding(_) | Loaded::Attention(_) | Loaded::ShortConv(_) => {}
            Loaded::Ffn(_) | Loaded::Head(_) => {}
        }
    }
    if !embeds && !import && (stream.rows, stream.width) != (batch.rows(), width) {
        let (held, rows) = (stream.rows, batch.rows());
        return Err(invalid(format!("a stream of {held} rows for a batch of {rows} rows of {width}")));
    }
    Ok(())
}
