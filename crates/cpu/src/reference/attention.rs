//! Softmax attention with grouped queries over a paged KV cache.

use unicorn_core::{AttentionSpec, Batch, PageId};

use super::{KvCache, Matrix, dot, rms_norm_rows, rope};

/// `cap * tanh(s / cap)`.
pub(crate) fn soft_cap(cap: f64, s: f64) -> f64 {
    cap * (s / cap).tanh()
}

/// `softmax(scores)`, in place.
pub(crate) fn softmax(scores: &mut [f64]) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// First position that a query at `position` sees.
pub(crate) fn first_visible(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |w| (position + 1).saturating_sub(w))
}

/// Tensors of an attention block; shapes as in [`AttentionWeights`](unicorn_core::AttentionWeights).
pub(super) struct Attention {
    pub spec: AttentionSpec,
    pub norm: Matrix,
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub o: Matrix,
    pub q_bias: Option<Matrix>,
    pub k_bias: Option<Matrix>,
    pub v_bias: Option<Matrix>,
    pub o_bias: Option<Matrix>,
    pub q_norm: Option<Matrix>,
    pub k_norm: Option<Matrix>,
    pub post_norm: Option<Matrix>,
}

impl Attention {
    /// What the block adds to `x[rows, width]`; stores the batch's keys and values. The batch has been checked.
    pub fn forward(&self, x: &[f64], batch: &Batch, kv: &mut KvCache) -> Vec<f64> {
        let spec = &self.spec;
        let mut n = x.to_vec();
        rms_norm_rows(&spec.norm, &self.norm, &mut n);
        let mut q = self.q.multiply(spec.width, self.q_bias.as_deref(), &n);
        let mut k = self.k.multiply(spec.width, self.k_bias.as_deref(), &n);
        let v = self.v.multiply(spec.width, self.v_bias.as_deref(), &n);
        if let Some(norm) = &spec.qk_norm {
            for (heads, weight) in [(&mut q, &self.q_norm), (&mut k, &self.k_norm)] {
                if let Some(weight) = weight {
                    rms_norm_rows(norm, weight, heads);
                }
            }
        }
        let group = kv.layout().group;
        let rows = || {
            batch
                .slices()
                .iter()
                .flat_map(|s| (0..s.tokens.len()).map(move |t| (&s.tables[group][..], s.start + t as u32)))
        };
        let (q_row, kv_row) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        // Every key is stored before any query looks: later tokens of a slice see earlier ones.
        for (r, (pages, position)) in rows().enumerate() {
            let (q, k) = (&mut q[r * q_row..(r + 1) * q_row], &mut k[r * kv_row..(r + 1) * kv_row]);
            q.chunks_exact_mut(spec.head_dim).for_each(|head| rope(&spec.rope, position, head));
            k.chunks_exact_mut(spec.head_dim).for_each(|head| rope(&spec.rope, position, head));
            kv.store(pages, position as usize, k, &v[r * kv_row..(r + 1) * kv_row]);
        }
        let mut attended = vec![0.0; q.len()];
        for (r, (pages, position)) in rows().enumerate() {
            for h in 0..spec.heads {
                let head = r * q_row + h * spec.head_dim..r * q_row + (h + 1) * spec.head_dim;
                self.attend(&q[head.clone()], h, pages, position as usize, kv, &mut attended[head]);
            }
        }
        let mut y = self.o.multiply(q_row, self.o_bias.as_deref(), &attended);
        if let (Some(norm), Some(weight)) = (&spec.post_norm, &self.post_norm) {
            rms_norm_rows(norm, weight, &mut y);
        }
        y
    }

    /// One query head at one position over the keys that it sees.
    fn attend(
        &self,
        q: &[f64],
        head: usize,
        pages: &[PageId],
        position: usize,
        kv: &KvCache,
        out: &mut [f64],
    ) {
        let spec = &self.spec;
        let at = head / (spec.heads / spec.kv_heads) * spec.head_dim;
        let first = first_visible(spec.window, position);
        let mut weights: Vec<f64> = (first..=position)
            .map(|p| {
                let score = dot(&kv.key(pages, p)[at..at + spec.head_dim], q) * spec.scale as f64;
                spec.soft_cap.map_or(score, |cap| soft_cap(cap as f64, score))
            })
            .collect();
        softmax(&mut weights);
        out.fill(0.0);
        for (p, weight) in (first..=position).zip(weights) {
            for (o, v) in out.iter_mut().zip(&kv.value(pages, p)[at..at + spec.head_dim]) {
                *o += weight * *v as f64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_survives_large_scores() {
        let mut s = [1000.0, 1000.0 + 3f64.ln(), f64::NEG_INFINITY];
        softmax(&mut s);
        assert!((s[0] - 0.25).abs() < 1e-12 && (s[1] - 0.75).abs() < 1e-12 && s[2] == 0.0);
    }

    #[test]
    fn window_counts_the_query_itself() {
        assert_eq!(first_visible(None, 9), 0);
        assert_eq!(first_visible(Some(1), 9), 9);
        assert_eq!(first_visible(Some(4), 9), 6);
        assert_eq!(first_visible(Some(40), 9), 0);
    }
}
