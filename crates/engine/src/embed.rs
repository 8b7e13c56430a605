//! Texts that become vectors: what is asked for, and how the hidden states of a text are pooled.

use unicorn_core::{OutputRow, Pooling, Select};

/// A text to turn into a vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmbedRequest {
    /// Token ids, with all special tokens that the model wants around a text.
    pub tokens: Vec<u32>,
    /// How the hidden states of the tokens become one vector.
    pub pooling: Pooling,
    /// Divide the vector by its length.
    pub normalize: bool,
    /// As [`crate::Request::priority`].
    pub priority: i32,
    /// As [`crate::Request::group`].
    pub group: u64,
    /// As [`crate::Request::scope`].
    pub scope: u64,
}

impl EmbedRequest {
    /// A text of these tokens, with the priority, group and scope that a request has by default.
    pub fn new(tokens: Vec<u32>, pooling: Pooling, normalize: bool) -> EmbedRequest {
        EmbedRequest { tokens, pooling, normalize, priority: 0, group: 0, scope: 0 }
    }
}

/// The pooling of one text on its way.
#[derive(Clone, Debug)]
pub(crate) struct Pooler {
    pooling: Pooling,
    normalize: bool,
    /// Tokens of the text.
    tokens: usize,
    /// Sums of the rows so far, empty before the first.
    sums: Vec<f64>,
}

impl Pooler {
    pub fn new(request: &EmbedRequest) -> Pooler {
        let EmbedRequest { tokens, pooling, normalize, .. } = request;
        Pooler { pooling: *pooling, normalize: *normalize, tokens: tokens.len(), sums: Vec::new() }
    }

    /// True where the hidden states of a beginning are not needed, so that its state may come from another text.
    pub fn skips_beginnings(&self) -> bool {
        self.pooling == Pooling::Last
    }

    /// The rows to read of a slice of `count` tokens from position `start` on, whose first token is row `row` of its batch.
    pub fn outputs(&self, start: usize, count: usize, row: usize) -> Vec<OutputRow> {
        let wanted = |position: &usize| match self.pooling {
            Pooling::Mean => true,
            Pooling::Cls => *position == 0,
            Pooling::Last => position + 1 == self.tokens,
        };
        let output = |position: usize| OutputRow::new((row + position - start) as u32, Select::Hidden);
        (start..start + count).filter(wanted).map(output).collect()
    }

    /// Takes in the hidden states of rows that were read, in order.
    pub fn add<'a>(&mut self, rows: impl Iterator<Item = &'a [f32]>) {
        for row in rows {
            self.sums.resize(row.len(), 0.0);
            self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += *value as f64);
        }
    }

    /// Forgets what was taken in: the text is computed again from its beginning.
    pub fn reset(&mut self) {
        self.sums.clear();
    }

    /// The vector; `None` when it is not finite.
    pub fn finish(&self) -> Option<Vec<f32>> {
        let rows = if self.pooling == Pooling::Mean { self.tokens as f64 } else { 1.0 };
        let mut vector: Vec<f64> = self.sums.iter().map(|sum| sum / rows).collect();
        let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
        if self.normalize && length > 0.0 {
            vector.iter_mut().for_each(|v| *v /= length);
        }
        let vector: Vec<f32> = vector.into_iter().map(|v| v as f32).collect();
        (!vector.is_empty() && vector.iter().all(|v| v.is_finite())).then_some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooler(pooling: Pooling, normalize: bool) -> Pooler {
        Pooler::new(&EmbedRequest::new(vec![5; 7], pooling, normalize))
    }

    #[test]
    fn each_pooling_reads_its_rows_and_no_others() {
        let rows = |pooling, start, count| -> Vec<u32> {
            pooler(pooling, false).outputs(start, count, 10).iter().map(|o| o.row).collect()
        };
        assert_eq!(rows(Pooling::Mean, 4, 3), [10, 11, 12]);
        assert_eq!((rows(Pooling::Cls, 0, 4), rows(Pooling::Cls, 4, 3)), (vec![10], vec![]));
        assert_eq!((rows(Pooling::Last, 0, 4), rows(Pooling::Last, 4, 3)), (vec![], vec![12]));
    }

    #[test]
    fn vectors_are_means_of_length_one() {
        let mut mean = pooler(Pooling::Mean, true);
        let rows = [[3.0f32, 0.0], [0.0, 4.0]];
        mean.add(rows.iter().map(|r| &r[..]));
        assert_eq!(mean.finish(), Some(vec![0.6, 0.8]));
        mean.normalize = false;
        assert_eq!(mean.finish(), Some(vec![3.0 / 7.0, 4.0 / 7.0]));
        mean.reset();
        assert_eq!(mean.finish(), None);
        let mut last = pooler(Pooling::Last, true);
        last.add([&[0.0f32, 0.0][..]].into_iter());
        assert_eq!(last.finish(), Some(vec![0.0, 0.0]));
        last.add([&[f32::NAN, 0.0][..]].into_iter());
        assert_eq!(last.finish(), None);
    }
}
