//! Choosing the next token from logits.
//!
//! The chain, in this order: logit bias, penalties (repeat, frequency, presence), DRY, top-k, typical, top-p, min-p,
//! temperature, draw. Temperature 0 is greedy: the largest logit after bias, penalties and DRY, ties to the smaller id; the
//! filters have no effect then. Bias, penalties and DRY change single logits, and a mask bars tokens: a device does both before it selects
//! ([`unicorn_core::Edits`]), with the same result. Everything is a pure function of (options, token history, logits): the draw at position `p`
//! uses the counter-based generator at `(seed, p)`, so neither the batch around a sequence nor a recomputation changes its
//! text. Exponentials are those of the `libm` crate, in f64, because the platform's differ in the last bit.

mod adjustments;
mod candidates;
mod dry;
mod filters;
mod logprobs;
mod options;
mod penalties;
mod rng;

use std::sync::Arc;

pub use logprobs::TokenLogprobs;
pub(crate) use logprobs::log_sum_exp;
pub use options::{DryOptions, OptionError, SamplingOptions};
pub(crate) use rng::uniform;
use unicorn_core::{Edits, Select, TokenMask, TopEntry};

use adjustments::Adjustments;
use candidates::{Candidate, by_rank, clean, largest};

/// Lists longer than this are not asked from a device: all logits cost less than a long selection.
pub(crate) const TOP_MAX: usize = 64;
/// Where more logits than this are adjusted, all are fetched and the host adjusts them.
const ADJUSTMENTS_MAX: usize = 4096;

/// Why no token was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unchosen {
    /// Every token is banned.
    NoCandidate,
    /// A logit is NaN or infinite, so that none of them can be trusted.
    NotFinite,
}

/// True where a logit is NaN or infinite; -inf stands for a banned token.
fn is_broken(logits: &[f32]) -> bool {
    // Without a branch for each, which the compiler turns into vector code.
    let broken = |part: &[f32]| part.iter().fold(false, |any, l| any | l.is_nan() | (*l == f32::INFINITY));
    logits.chunks(64).any(broken)
}

/// A chosen token.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sampled {
    /// Token id.
    pub token: u32,
    /// Log probabilities under the model itself (before bias, penalties and temperature), if asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Chooses tokens for one sequence. Nothing of it changes but the mask of the next token.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    options: SamplingOptions,
    logprobs: Option<usize>,
    mask: Option<Arc<TokenMask>>,
}

impl Sampler {
    /// Checks the options. `logprobs` asks for the log probability of the choice and of that many most likely tokens. `mask`, made for the
    /// model's vocabulary, tells which tokens may be chosen.
    pub fn new(
        options: SamplingOptions,
        logprobs: Option<usize>,
        mask: Option<Arc<TokenMask>>,
    ) -> Result<Sampler, OptionError> {
        options.validate()?;
        Ok(Sampler { options, logprobs, mask })
    }

    /// Tokens that may be chosen next, for the model's vocabulary; `None` allows all.
    pub fn allow(&mut self, mask: Option<Arc<TokenMask>>) {
        self.mask = mask;
    }

    /// What the head must return for the choice of the token that follows `history`. With all logits, as the model computes them, the chosen
    /// token is the same.
    pub fn ask(&self, history: &[u32], vocab: usize) -> (Select, Edits) {
        let all = (Select::Logits, Edits::default());
        let o = &self.options;
        let k = match o.top_k {
            _ if self.logprobs.is_some() => return all,
            _ if o.temperature == 0.0 => 1,
            k if (1..=TOP_MAX).contains(&k) => k,
            _ => return all,
        };
        let edits = self.edits(history);
        if edits.adjustments.len() > ADJUSTMENTS_MAX { all } else { (Select::Top(k.min(vocab)), edits) }
    }

    /// True where what [`Sampler::ask`] answers depends on the tokens so far.
    pub fn looks_back(&self) -> bool {
        self.options.penalties_on() || self.options.dry.is_on()
    }

    /// What bias, penalties, DRY and the mask do to the logits that follow `history`.
    fn edits(&self, history: &[u32]) -> Edits {
        let o = &self.options;
        let mut all = Adjustments::default();
        for &(token, bias) in &o.logit_bias {
            let of = all.of(token);
            // Below infinity however often a token is named.
            of.bias = (of.bias + bias).min(f32::MAX);
        }
        penalties::collect(o, history, &mut all);
        dry::collect(&o.dry, history, &mut all);
        Edits { adjustments: all.into_list(), mask: self.mask.clone() }
    }

    /// Chooses the token that follows `history` (prompt and generated tokens) from the logits of all tokens.
    pub fn sample(&self, history: &[u32], logits: &[f32]) -> Result<Sampled, Unchosen> {
        if is_broken(logits) {
            return Err(Unchosen::NotFinite);
        }
        let o = &self.options;
        let edits = self.edits(history);
        let edited;
        let used: &[f32] = if edits.is_empty() {
            logits
        } else {
            let mut copy = logits.to_vec();
            edits.apply(0, &mut copy);
            edited = copy;
            &edited
        };
        let token = if o.temperature == 0.0 {
            largest(used).ok_or(Unchosen::NoCandidate)?.token
        } else {
            let all = used.iter().enumerate().map(|(i, &l)| Candidate { token: i as u32, logit: clean(l) });
            self.draw(history.len(), all.filter(|c| c.logit > f32::NEG_INFINITY).collect())?
        };
        let logprobs = self.logprobs.map(|n| TokenLogprobs::new(logits, token, n));
        Ok(Sampled { token, logprobs })
    }

    /// Chooses the token that follows `history` from what [`Sampler::ask`] asked for.
    pub fn sample_top(&self, history: &[u32], top: &[TopEntry]) -> Result<Sampled, Unchosen> {
        if top.iter().any(|e| e.logit.is_nan() || e.logit == f32::INFINITY) {
            return Err(Unchosen::NotFinite);
        }
        let all = top.iter().map(|e| Candidate { token: e.token, logit: clean(e.logit) });
        let list: Vec<Candidate> = all.filter(|c| c.logit > f32::NEG_INFINITY).collect();
        // The list came sorted; logits that are made finite may have changed that for equal ones.
        let token = match list.iter().min_by(|a, b| by_rank(a, b)) {
            None => return Err(Unchosen::NoCandidate),
            Some(best) if self.options.temperature == 0.0 => best.token,
            Some(_) => self.draw(history.len(), list)?,
        };
        Ok(Sampled { token, logprobs: None })
    }

    /// Filters and draws. `position` is the index of the token being chosen.
    fn draw(&self, position: usize, mut list: Vec<Candidate>) -> Result<u32, Unchosen> {
        let o = &self.options;
        if list.is_empty() {
            return Err(Unchosen::NoCandidate);
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
        last.map(|(c, _)| c.token).ok_or(Unchosen::NoCandidate)
    }
}

#[cfg(test)]
mod tests;
