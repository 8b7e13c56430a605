//! What comes of a batch: logits, the best tokens, or hidden states, as its output rows ask.

use crate::batch::Batch;
use crate::output::{OutputRow, Select, TopEntry};

/// What a head block produced, in the order of [`Batch::outputs`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct HeadOutput {
    /// `[rows that ask for all logits, vocab]`, row-major.
    pub logits: Vec<f32>,
    /// One list per row that asks for the best ones.
    pub top: Vec<Vec<TopEntry>>,
    /// `[rows that ask for hidden states, width]`, row-major.
    pub hidden: Vec<f32>,
}

/// What one output row asked for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RowOutput<'a> {
    /// `[vocab]`.
    Logits(&'a [f32]),
    /// The best ones, the best first; shorter than asked for where no other token can be chosen.
    Top(&'a [TopEntry]),
    /// `[width]`.
    Hidden(&'a [f32]),
}

/// True for at most `k` tokens that can be chosen and are allowed, in order.
fn is_selection(list: &[TopEntry], k: usize, asked: &OutputRow, vocab: usize) -> bool {
    let allowed = |token| asked.edits.mask.as_ref().is_none_or(|mask| mask.allows(token));
    let sound = |e: &TopEntry| e.is_choosable() && (e.token as usize) < vocab && allowed(e.token);
    list.len() <= k && list.iter().all(sound) && list.windows(2).all(|w| w[0].rank(&w[1]).is_lt())
}

impl HeadOutput {
    /// The rows in order; `None` where this is not what the batch asked for.
    pub fn rows<'a>(&'a self, batch: &Batch) -> Option<Vec<RowOutput<'a>>> {
        let vocab = batch.limits().vocab;
        if self.logits.len() != batch.logit_rows() * vocab {
            return None;
        }
        // A batch knows no width: all rows have the same.
        let width = self.hidden.len() / batch.hidden_rows().max(1);
        if self.hidden.len() != width * batch.hidden_rows() || (width == 0 && batch.hidden_rows() > 0) {
            return None;
        }
        let (mut logits, mut top) = (self.logits.chunks_exact(vocab.max(1)), self.top.iter());
        let mut hidden = self.hidden.chunks_exact(width.max(1));
        let row = |output: &OutputRow| match output.select {
            Select::Logits => logits.next().map(RowOutput::Logits),
            Select::Hidden => hidden.next().map(RowOutput::Hidden),
            Select::Top(k) => {
                top.next().filter(|list| is_selection(list, k, output, vocab)).map(|t| RowOutput::Top(t))
            }
        };
        let rows: Option<Vec<RowOutput>> = batch.outputs().iter().map(row).collect();
        rows.filter(|_| top.next().is_none())
    }

    /// `(slot, token)` of what a device keeps after a batch; token 0 where none can be chosen, which nobody then reads on.
    pub fn kept<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = (usize, u32)> + 'a {
        let selecting = batch.outputs().iter().filter(|o| matches!(o.select, Select::Top(_)));
        let kept = |(o, list): (&OutputRow, &Vec<TopEntry>)| {
            o.keep.map(|slot| (slot as usize, list.first().map_or(0, |best| best.token)))
        };
        selecting.zip(&self.top).filter_map(kept)
    }

    /// Appends the rows of a later batch.
    pub fn append(&mut self, mut later: HeadOutput) {
        self.logits.append(&mut later.logits);
        self.top.append(&mut later.top);
        self.hidden.append(&mut later.hidden);
    }
}
