//! Choosing the next token from logits.
//!
//! The chain, in this order: logit bias, penalties (repeat, frequency, presence), DRY, top-k, typical, top-p, min-p,
//! temperature, draw. Temperature 0 is greedy: the largest logit after bias, penalties and DRY, ties to the smaller id; the
//! filters have no effect then. Everything is a pure function of (options, token history, logits): the draw at position `p`
//! uses the counter-based generator at `(seed, p)`, so neither the batch around a sequence nor a recomputation changes its
//! text. Exponentials are those of the `libm` crate, in f64, because the platform's differ in the last bit.

mod candidates;
mod dry;
mod filters;
mod logprobs;
mod options;
mod penalties;
mod rng;

pub use logprobs::TokenLogprobs;
pub(crate) use logprobs::log_sum_exp;
pub use options::{DryOptions, OptionError, SamplingOptions};
pub(crate) use rng::uniform;
use unicorn_core::{Select, TopEntry};

use candidates::{Candidate, by_rank, clean, largest};

/// Lists longer than this are not asked from a device: all logits cost less than a long selection.
pub(crate) const TOP_MAX: usize = 64;

/// No token could be chosen.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SampleError {
    /// Every token is banned or no logit is finite.
    #[error("no token is left to choose from")]
    NoCandidate,
    /// A device returned a selection where this sampler needs all logits.
    #[error("the device returned {got} candidates, {needed} are needed")]
    TooFew {
        /// Candidates returned.
        got: usize,
        /// Candidates needed.
        needed: usize,
    },
}

/// A chosen token.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sampled {
    /// Token id.
    pub token: u32,
    /// Log probabilities under the model itself (before bias, penalties and temperature), if asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Chooses tokens for one sequence. Holds no state that changes.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    options: SamplingOptions,
    logprobs: Option<usize>,
}

impl Sampler {
    /// Checks the options. `logprobs` asks for the log probability of the choice and of that many most likely tokens.
    pub fn new(options: SamplingOptions, logprobs: Option<usize>) -> Result<Sampler, OptionError> {
        options.validate()?;
        Ok(Sampler { options, logprobs })
    }

    /// What the head must return for this sampler; the chosen token is the same with [`Select::Logits`].
    pub fn select(&self) -> Select {
        let o = &self.options;
        let whole = !o.logit_bias.is_empty() || o.penalties_on() || o.dry.is_on() || self.logprobs.is_some();
        match o.top_k {
            _ if whole => Select::Logits,
            _ if o.temperature == 0.0 => Select::Top(1),
            k if (1..=TOP_MAX).contains(&k) => Select::Top(k),
            _ => Select::Logits,
        }
    }

    /// Chooses the token that follows `history` (prompt and generated tokens) from the logits of all tokens.
    pub fn sample(&self, history: &[u32], logits: &[f32]) -> Result<Sampled, SampleError> {
        let o = &self.options;
        let adjusted;
        let used: &[f32] = if o.logit_bias.is_empty() && !o.penalties_on() && !o.dry.is_on() {
            logits
        } else {
            let mut copy = logits.to_vec();
            for &(token, bias) in &o.logit_bias {
                if let Some(logit) = copy.get_mut(token as usize) {
                    *logit += bias;
                }
            }
            penalties::apply(o, history, &mut copy);
            dry::apply(&o.dry, history, &mut copy);
            adjusted = copy;
            &adjusted
        };
        let token = if o.temperature == 0.0 {
            largest(used).ok_or(SampleError::NoCandidate)?.token
        } else {
            let all = used.iter().enumerate().map(|(i, &l)| Candidate { token: i as u32, logit: clean(l) });
            self.draw(history.len(), all.filter(|c| c.logit > f32::NEG_INFINITY).collect())?
        };
        let logprobs = self.logprobs.map(|n| TokenLogprobs::new(logits, token, n));
        Ok(Sampled { token, logprobs })
    }

    /// Chooses the token that follows `history` from the largest logits of all tokens, sorted as [`Select::Top`] says.
    ///
    /// Errors when [`Sampler::select`] asks for more than `top` holds.
    pub fn sample_top(
        &self,
        history: &[u32],
        top: &[TopEntry],
        vocab: usize,
    ) -> Result<Sampled, SampleError> {
        let needed = match self.select() {
            Select::Logits => vocab,
            Select::Top(k) => k.min(vocab),
        };
        if top.len() < needed {
            return Err(SampleError::TooFew { got: top.len(), needed });
        }
        let all = top[..needed].iter().map(|e| Candidate { token: e.token, logit: clean(e.logit) });
        let mut list: Vec<Candidate> = all.filter(|c| c.logit > f32::NEG_INFINITY).collect();
        list.sort_by(by_rank);
        let token = match list.first() {
            None => return Err(SampleError::NoCandidate),
            Some(best) if self.options.temperature == 0.0 => best.token,
            Some(_) => self.draw(history.len(), list)?,
        };
        Ok(Sampled { token, logprobs: None })
    }

    /// Filters and draws. `position` is the index of the token being chosen.
    fn draw(&self, position: usize, mut list: Vec<Candidate>) -> Result<u32, SampleError> {
        let o = &self.options;
        if list.is_empty() {
            return Err(SampleError::NoCandidate);
        }
        let mut sorted = false;
        if o.top_k > 0 {
            filters::top_k(&mut list, o.top_k);
            sorted = true;
        }
        if o.typical_p < 1.0 {
            filters::typical(&mut list, o.typical_p);
            sorted = false;
        }
        if o.top_p < 1.0 {
            filters::top_p(&mut list, o.top_p, sorted);
        }
        filters::min_p(&mut list, o.min_p);
        let weights = filters::weights(&list, o.temperature as f64);
        let total: f64 = weights.iter().sum();
        let mut left = uniform(o.seed, position as u64) * total;
        for (candidate, weight) in list.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Ok(candidate.token);
            }
        }
        // Rounding may leave a crumb: it belongs to the last token that had any weight.
        let last = list.iter().zip(&weights).rev().find(|(_, w)| **w > 0.0);
        last.map(|(c, _)| c.token).ok_or(SampleError::NoCandidate)
    }
}

#[cfg(test)]
mod tests;
