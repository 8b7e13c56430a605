//! Perplexity as llama.cpp's `llama-perplexity` defines it.
//!
//! The text is cut into contexts of `context` tokens; a rest is left out. In each context the first token is replaced by the
//! beginning-of-sequence token where the model wants one, and the predictions of the positions `context / 2 ..
//! context - 1` are scored on the tokens that follow them: `context - context / 2 - 1` scores. PPL is the exponential of the mean negative log
//! likelihood, and its error is `PPL * sqrt(variance / (scores - 1))`.

use unicorn_core::{BatchError, HeadOutput, Select};

use crate::sampling::log_sum_exp;
use crate::{Engine, EngineError};

/// What to measure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PerplexityOptions {
    /// Tokens per context; at least 4.
    pub context: usize,
    /// Contexts at most.
    pub chunks: Option<usize>,
    /// Replaces the first token of each context.
    pub bos: Option<u32>,
}

/// The estimate so far.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Estimate {
    /// Contexts done.
    pub chunks: usize,
    /// Contexts in all.
    pub chunks_total: usize,
    /// Tokens scored.
    pub tokens: usize,
    /// Perplexity.
    pub perplexity: f64,
    /// Its standard error; 0 with fewer than two scores.
    pub error: f64,
}

/// Perplexity could not be measured.
#[derive(thiserror::Error, Debug)]
pub enum PerplexityError {
    /// Fewer than two contexts of text: the least that llama-perplexity takes.
    #[error("the text has {tokens} tokens; contexts of {context} need at least {}", 2 * .context)]
    TooShort {
        /// Tokens given.
        tokens: usize,
        /// Tokens per context.
        context: usize,
    },
    /// The context has nothing to score.
    #[error("perplexity context {0}: must be at least 4")]
    ContextTooSmall(usize),
    /// There is nothing to do.
    #[error("perplexity chunks 0: must be at least 1")]
    NoChunks,
    /// The model could not run.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Logits of one batch are kept below this: half a context of a large vocabulary would take hundreds of megabytes.
const LOGITS_BYTES_MAX: usize = 64 << 20;

/// Sums of negative log likelihoods and of their squares.
#[derive(Default)]
struct Sums {
    count: usize,
    nll: f64,
    nll_squared: f64,
}

impl Sums {
    fn score(&mut self, logits: &[f32], token: u32) {
        let nll = log_sum_exp(logits) - logits[token as usize] as f64;
        self.count += 1;
        self.nll += nll;
        self.nll_squared += nll * nll;
    }

    /// Perplexity and its standard error.
    fn estimate(&self) -> (f64, f64) {
        let count = self.count as f64;
        let mean = self.nll / count;
        let variance = self.nll_squared / count - mean * mean;
        let error = if variance > 0.0 && count > 1.0 { (variance / (count - 1.0)).sqrt() } else { 0.0 };
        (mean.exp(), error * mean.exp())
    }
}

/// Measures the perplexity of `tokens` (tokenized with the beginning-of-sequence token, as llama-perplexity does); calls `each`
/// after every context.
pub fn perplexity(
    engine: &mut Engine,
    tokens: &[u32],
    options: PerplexityOptions,
    each: &mut dyn FnMut(Estimate),
) -> Result<Estimate, PerplexityError> {
    let context = options.context;
    if context < 4 {
        return Err(PerplexityError::ContextTooSmall(context));
    }
    if tokens.len() < 2 * context {
        return Err(PerplexityError::TooShort { tokens: tokens.len(), context });
    }
    let vocab = engine.spec().vocab;
    if let Some(&token) = tokens.iter().chain(&options.bos).find(|t| **t as usize >= vocab) {
        return Err(EngineError::Batch(BatchError::Token { token, vocab }).into());
    }
    let chunks_total = options.chunks.unwrap_or(usize::MAX).min(tokens.len() / context);
    let mut sums = Sums::default();
    let mut estimate = Err(PerplexityError::NoChunks);
    for (index, chunk) in tokens.chunks_exact(context).take(chunks_total).enumerate() {
        let mut chunk = chunk.to_vec();
        let scored = chunk.clone();
        if let Some(bos) = options.bos {
            chunk[0] = bos;
        }
        score_context(engine, &chunk, &scored, &mut sums)?;
        let (perplexity, error) = sums.estimate();
        let now = Estimate { chunks: index + 1, chunks_total, tokens: sums.count, perplexity, error };
        each(now);
        estimate = Ok(now);
    }
    estimate
}

/// Rows that are read of a batch of up to `chunk` rows: what [`crate::EngineOptions::outputs_max`] is to be.
pub fn outputs_max(vocab: usize, chunk: usize) -> usize {
    (LOGITS_BYTES_MAX / (vocab * size_of::<f32>()).max(1)).clamp(1, chunk.max(1))
}

/// Runs one context and scores its second half.
fn score_context(
    engine: &mut Engine,
    chunk: &[u32],
    scored: &[u32],
    sums: &mut Sums,
) -> Result<(), EngineError> {
    let vocab = engine.spec().vocab;
    let rows_max = outputs_max(vocab, engine.options().prefill_chunk);
    let first = chunk.len() / 2;
    // The last token's prediction has nothing to be compared with.
    let end = chunk.len() - 1;
    let mut evaluator = engine.evaluator();
    evaluator.prefill(&chunk[..first], false)?;
    while evaluator.position() < end {
        let start = evaluator.position();
        let rows = rows_max.min(end - start);
        let outputs: Vec<u32> = (0..rows as u32).collect();
        let output = evaluator.feed(&chunk[start..start + rows], &outputs, Select::Logits)?;
        if let Some(HeadOutput { logits, .. }) = output {
            for (i, row) in logits.chunks_exact(vocab).enumerate() {
                sums.score(row, scored[start + i + 1]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineOptions;
    use crate::sampling::uniform;
    use crate::testing::{VOCAB, engine_of};

    fn text(n: usize) -> Vec<u32> {
        (0..n as u64).map(|i| (uniform(3, i) * VOCAB as f64) as u32).collect()
    }

    /// One token at a time, softmax by its definition, two passes for the variance.
    fn naive(engine: &mut Engine, tokens: &[u32], context: usize, bos: Option<u32>) -> (f64, f64, usize) {
        let mut nll = Vec::new();
        for chunk in tokens.chunks_exact(context) {
            let mut evaluator = engine.evaluator();
            for i in 0..context - 1 {
                let token = if i == 0 { bos.unwrap_or(chunk[0]) } else { chunk[i] };
                let logits = evaluator.prefill(&[token], true).unwrap().unwrap();
                if i >= context / 2 {
                    let sum: f64 = logits.iter().map(|l| (*l as f64).exp()).sum();
                    nll.push(-((logits[chunk[i + 1] as usize] as f64).exp() / sum).ln());
                }
            }
        }
        let n = nll.len() as f64;
        let mean = nll.iter().sum::<f64>() / n;
        let variance = nll.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        (mean.exp(), mean.exp() * (variance / (n - 1.0)).sqrt(), nll.len())
    }

    #[test]
    fn equals_the_definition() {
        for (context, bos, prefill_chunk) in [(16, Some(1), 512), (33, None, 7), (64, Some(5), 1)] {
            let tokens = text(context * 3 + 5);
            let options = EngineOptions { prefill_chunk, ..EngineOptions::default() };
            let mut engine = engine_of(options);
            let mut calls = Vec::new();
            let options = PerplexityOptions { context, chunks: None, bos };
            let got = perplexity(&mut engine, &tokens, options, &mut |e| calls.push(e)).unwrap();
            let (ppl, error, count) = naive(&mut engine, &tokens, context, bos);
            assert!((got.perplexity / ppl - 1.0).abs() < 1e-9, "{got:?} {ppl}");
            assert!((got.error / error - 1.0).abs() < 1e-6, "{got:?} {error}");
            assert_eq!((got.tokens, got.chunks, got.chunks_total), (count, 3, 3));
            assert_eq!(calls.len(), 3);
            assert_eq!(calls[2], got);
            let (free, all) = engine.state_pages();
            assert_eq!(free, all);
        }
    }

    #[test]
    fn chunks_are_limited_and_errors_are_named() {
        let mut engine = engine_of(EngineOptions { context: 32, ..EngineOptions::default() });
        let mut run = |n: usize, context: usize, chunks| {
            perplexity(&mut engine, &text(n), PerplexityOptions { context, chunks, bos: None }, &mut |_| {})
        };
        assert_eq!(run(200, 16, Some(2)).unwrap().chunks, 2);
        assert!(matches!(run(31, 16, None), Err(PerplexityError::TooShort { tokens: 31, context: 16 })));
        assert!(matches!(run(31, 3, None), Err(PerplexityError::ContextTooSmall(3))));
        assert!(matches!(run(64, 16, Some(0)), Err(PerplexityError::NoChunks)));
        assert!(matches!(run(200, 64, None), Err(PerplexityError::Engine(EngineError::Context { .. }))));
    }
}
