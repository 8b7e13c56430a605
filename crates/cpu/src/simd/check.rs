//! What must hold of work beside what its batch's type says.

use unicorn_core::{Batch, Crossing, DeviceError, StateLayout, Work};

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
    let embeds = matches!(first, Loaded::Embedding(_) | Loaded::EncoderEmbedding(_));
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
            Loaded::Embedding(_) | Loaded::EncoderEmbedding(_) if index > 0 => {
                return Err(invalid("an embedding behind other blocks"));
            }
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
            Loaded::EncoderEmbedding(block) => check_whole(batch, block.spec.vocab, block.spec.positions)?,
            Loaded::EncoderAttention(_) if batch.whole().is_none() => {
                return Err(invalid("an encoder's attention over a batch of parts of sequences"));
            }
            Loaded::EncoderHead(_) if batch.hidden_rows() != batch.outputs().len() => {
                return Err(invalid("logits of an encoder, which has none"));
            }
            Loaded::Head(_) | Loaded::EncoderHead(_) if index + 1 < blocks.len() => {
                return Err(invalid("a head before other blocks"));
            }
            Loaded::Embedding(_) | Loaded::Attention(_) | Loaded::ShortConv(_) => {}
            Loaded::Ffn(_) | Loaded::Head(_) => {}
            Loaded::EncoderAttention(_) | Loaded::EncoderFfn(_) | Loaded::EncoderHead(_) => {}
        }
    }
    if !embeds && !import && (stream.rows, stream.width) != (batch.rows(), width) {
        let (held, rows) = (stream.rows, batch.rows());
        return Err(invalid(format!("a stream of {held} rows for a batch of {rows} rows of {width}")));
    }
    Ok(())
}

/// Errors when an encoder's tables lack a token or a position of the batch, or its slices are no whole sequences.
fn check_whole(batch: &Batch, vocab: usize, positions: usize) -> Result<(), DeviceError> {
    if batch.limits().vocab > vocab {
        return Err(invalid(format!("a batch for {} tokens of {vocab}", batch.limits().vocab)));
    }
    match batch.whole() {
        None => Err(invalid("an encoder's embedding of a batch of parts of sequences")),
        Some(longest) if longest > positions => {
            Err(invalid(format!("a sequence of {longest} tokens in {positions} positions")))
        }
        Some(_) => Ok(()),
    }
}
