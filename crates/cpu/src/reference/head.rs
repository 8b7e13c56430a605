//! Output head: final norm, logits, selection.

use unicorn_core::{Batch, HeadOutput, HeadSpec, Select, TopEntry};

use super::{Matrix, rms_norm_rows, soft_cap};

/// Tensors of a head block.
pub(super) struct Head {
    pub spec: HeadSpec,
    pub norm: Matrix,
    pub weight: Matrix,
}

impl Head {
    /// Logits, or the largest of them, for the output rows of the batch; `x` is `[rows, width]`.
    pub fn forward(&self, x: &[f64], batch: &Batch) -> HeadOutput {
        let width = self.spec.width;
        let mut n: Vec<f64> = batch
            .outputs()
            .iter()
            .flat_map(|o| &x[o.row as usize * width..(o.row as usize + 1) * width])
            .copied()
            .collect();
        rms_norm_rows(&self.spec.norm, &self.norm, &mut n);
        let mut output = HeadOutput::default();
        for (n, asked) in n.chunks_exact(width).zip(batch.outputs()) {
            if asked.select == Select::Hidden {
                output.hidden.extend(n.iter().map(|v| *v as f32));
                continue;
            }
            let mut row = self.logits(n);
            asked.edits.apply(0, &mut row);
            match asked.select {
                Select::Logits => output.logits.extend(row),
                Select::Top(k) => output.top.push(top(&row, k)),
                Select::Hidden => {}
            }
        }
        output
    }

    /// Of one normed row.
    fn logits(&self, n: &[f64]) -> Vec<f32> {
        let capped = |v: f64| self.spec.soft_cap.map_or(v, |cap| soft_cap(cap as f64, v)) as f32;
        self.weight.multiply(self.spec.width, None, n).into_iter().map(capped).collect()
    }
}

/// The `k` largest logits of tokens that can be chosen, largest first, ties broken by the smaller id.
pub(crate) fn top(logits: &[f32], k: usize) -> Vec<TopEntry> {
    let mut all: Vec<TopEntry> =
        logits.iter().enumerate().map(|(i, logit)| TopEntry { token: i as u32, logit: *logit }).collect();
    all.retain(TopEntry::is_choosable);
    all.sort_by(TopEntry::rank);
    all.truncate(k);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_orders_and_breaks_ties() {
        let ids: Vec<u32> = top(&[1.0, 3.0, -2.0, 3.0, 2.0], 3).iter().map(|e| e.token).collect();
        assert_eq!(ids, [1, 3, 4]);
        let tokens: Vec<u32> = top(&[1.0, f32::NAN, f32::NEG_INFINITY], 5).iter().map(|e| e.token).collect();
        assert_eq!(tokens, [1, 0]);
    }
}
