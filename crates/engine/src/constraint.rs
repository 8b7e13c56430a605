//! Constraints: who knows a grammar tells, token by token, what may come next.

use std::sync::Arc;

use unicorn_core::TokenMask;

use crate::Drafter;

/// Decides which tokens may follow in one sequence, for instance by a grammar.
///
/// Errors say what is wrong, for people; they end the sequence with [`crate::FinishReason::Constraint`].
pub trait Constraint: Send {
    /// Tokens that may come next, for the model's vocabulary; `None` allows all. Stop tokens are no exception: where the mask bans them, the
    /// text cannot stop.
    fn mask(&mut self) -> Result<Option<Arc<TokenMask>>, String>;

    /// A token was chosen, a stop token maybe. True when the text is complete with it: nothing may follow.
    fn accept(&mut self, token: u32) -> Result<bool, String>;
}

/// What accompanies a request: see [`crate::Engine::add_guided`].
#[derive(Default)]
pub struct Guides {
    /// Guesses of the next tokens. Several are verified in one step, so that a step may bring more than one token. Not asked where there is a
    /// constraint.
    pub drafter: Option<Box<dyn Drafter>>,
    /// What the text has to obey.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// A constraint with what it said last.
pub(crate) struct Constrained {
    constraint: Box<dyn Constraint>,
    /// The request's own mask.
    own: Option<Arc<TokenMask>>,
    /// What may come next, until that is chosen: a batch that failed is tried again with the same.
    next: Option<Option<Arc<TokenMask>>>,
}

impl std::fmt::Debug for Constrained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constrained")
            .field("own", &self.own)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Constrained {
    pub fn new(constraint: Box<dyn Constraint>, own: Option<Arc<TokenMask>>) -> Constrained {
        Constrained { constraint, own, next: None }
    }

    /// Tokens that both the constraint and the request allow next.
    ///
    /// Errors where there are none, the mask is for another vocabulary, or the constraint says so.
    pub fn mask(&mut self, vocab: usize) -> Result<Option<Arc<TokenMask>>, String> {
        if let Some(known) = &self.next {
            return Ok(known.clone());
        }
        let mask = match (self.constraint.mask()?, &self.own) {
            (None, own) => own.clone(),
            (Some(mask), _) if !mask.fits(vocab) => {
                let words = mask.words().len();
                return Err(format!(
                    "a mask of {words} words that allows no token, or not one for each 32 of {vocab} tokens"
                ));
            }
            (Some(mask), None) => Some(mask),
            (Some(mask), Some(own)) => {
                let words = mask.words().iter().zip(own.words()).map(|(a, b)| a & b).collect();
                let both = TokenMask::new(words);
                if !both.fits(vocab) {
                    return Err("the request's own mask bans every token that may come next".into());
                }
                Some(Arc::new(both))
            }
        };
        self.next = Some(mask.clone());
        Ok(mask)
    }

    /// See [`Constraint::accept`].
    pub fn accept(&mut self, token: u32) -> Result<bool, String> {
        self.next = None;
        self.constraint.accept(token)
    }
}
