//! How likely the model finds the tokens of a prompt.

use crate::TokenLogprobs;

/// The log probabilities of the tokens of a prompt, as far as they are known.
#[derive(Debug)]
pub(super) struct Scores {
    /// Alternatives that are reported beside each.
    top: usize,
    /// Entry `i` is of token `i + 1`, which the logits at position `i` predict.
    found: Vec<Option<TokenLogprobs>>,
    missing: usize,
}

impl Scores {
    /// Of a prompt of so many tokens, at least one; `top` alternatives for each.
    pub fn new(prompt_tokens: usize, top: usize) -> Scores {
        let missing = prompt_tokens - 1;
        Scores { top, found: vec![None; missing], missing }
    }

    /// True where the logits at a position are wanted.
    pub fn wants(&self, position: usize) -> bool {
        self.found.get(position).is_some_and(Option::is_none)
    }

    /// The first position whose logits are wanted; nothing before it needs to be computed for its logits.
    pub fn first(&self) -> usize {
        self.found.iter().position(Option::is_none).unwrap_or(self.found.len())
    }

    /// The most of `count` tokens from position `start` on of which at most `rows` are wanted, and how many are.
    pub fn within(&self, start: usize, count: usize, rows: usize) -> (usize, usize) {
        let (mut taken, mut wanted) = (0, 0);
        while taken < count {
            let more = usize::from(self.wants(start + taken));
            if wanted + more > rows {
                break;
            }
            wanted += more;
            taken += 1;
        }
        (taken, wanted)
    }

    /// Takes in the logits at a position, which `token` follows.
    pub fn add(&mut self, position: usize, logits: &[f32], token: u32) {
        if let Some(entry) = self.found.get_mut(position).filter(|e| e.is_none()) {
            *entry = Some(TokenLogprobs::new(logits, token, self.top));
            self.missing -= 1;
        }
    }

    /// Forgets all that was found.
    pub fn forget(&mut self) {
        self.missing = self.found.len();
        self.found.fill(None);
    }

    pub fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// All that was found, in order.
    pub fn into_list(self) -> Vec<TokenLogprobs> {
        self.found.into_iter().flatten().collect()
    }
}
