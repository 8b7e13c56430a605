//! What the head is asked for, row by row: which logits, which tokens may be among them, and what changes them first.

use std::cmp::Ordering;
use std::sync::Arc;

/// What the head returns for an output row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Select {
    /// All logits.
    Logits,
    /// The `k` largest logits with their token ids in the order of [`TopEntry::rank`]. Tokens whose logit is -inf cannot be
    /// chosen and are not listed, so a list may be shorter. One that is no number comes first.
    Top(usize),
    /// The row's hidden state `[width]`: of a model with a vocabulary after its final norm, of an encoder the residual stream.
    Hidden,
}

/// A row that the head reads. A sequence may have several.
#[derive(Clone, PartialEq, Debug)]
pub struct OutputRow {
    /// Row of the batch.
    pub row: u32,
    /// What is returned.
    pub select: Select,
    /// What is done to the row's logits before.
    pub edits: Edits,
    /// The device keeps the best token in this slot, below [`SLOTS`], for a later [`crate::Slice`] that names it.
    pub keep: Option<u32>,
}

/// Tokens that a device keeps at a time.
pub const SLOTS: usize = 1024;

impl OutputRow {
    /// The logits as the model computes them.
    pub fn new(row: u32, select: Select) -> OutputRow {
        OutputRow { row, select, edits: Edits::default(), keep: None }
    }
}

/// Tokens that may be chosen: a bit for each token of a vocabulary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// Bit `t % 32` of word `t / 32` allows token `t`. Bits behind the vocabulary mean nothing.
    pub fn new(words: Vec<u32>) -> TokenMask {
        TokenMask { words }
    }

    /// Allows these tokens of a vocabulary; those outside of it are left out.
    pub fn of(vocab: usize, tokens: impl IntoIterator<Item = u32>) -> TokenMask {
        let mut words = vec![0; vocab.div_ceil(32)];
        for token in tokens {
            if let Some(word) = words.get_mut(token as usize / 32) {
                *word |= 1 << (token % 32);
            }
        }
        TokenMask { words }
    }

    /// The bits, 32 tokens a word.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether a token may be chosen.
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// True when the mask is one for this vocabulary and allows at least one token of it.
    pub fn fits(&self, vocab: usize) -> bool {
        self.words.len() == vocab.div_ceil(32) && self.allows_some(vocab)
    }

    fn allows_some(&self, vocab: usize) -> bool {
        let whole = vocab / 32;
        let rest = self.words.get(whole).map_or(0, |word| word & ((1 << (vocab % 32)) - 1));
        self.words.iter().take(whole).any(|word| *word != 0) || rest != 0
    }
}

/// A change of one token's logit, in f32 and in this order: `bias` is added; what is above 0 is divided by `divisor`, the rest multiplied
/// with it; `penalties` are subtracted one after the other.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Adjustment {
    /// Token id.
    pub token: u32,
    /// Below infinity; -inf bans the token.
    pub bias: f32,
    /// Finite and above 0.
    pub divisor: f32,
    /// Not NaN.
    pub penalties: [f32; 2],
}

impl Adjustment {
    /// One that changes nothing.
    pub fn none(token: u32) -> Adjustment {
        Adjustment { token, bias: 0.0, divisor: 1.0, penalties: [0.0; 2] }
    }

    /// The changed logit.
    pub fn apply(&self, logit: f32) -> f32 {
        let biased = logit + self.bias;
        // Dividing a negative logit would make the token more likely.
        let scaled = if biased <= 0.0 { biased * self.divisor } else { biased / self.divisor };
        scaled - self.penalties[0] - self.penalties[1]
    }

    pub(crate) fn is_sound(&self) -> bool {
        let divisor = self.divisor.is_finite() && self.divisor > 0.0;
        self.bias < f32::INFINITY && divisor && !self.penalties.iter().any(|p| p.is_nan())
    }
}

/// What is done to a row's logits before anything is selected: single ones are adjusted, then all that are not allowed become -inf.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Edits {
    /// Ascending by token, each token once.
    pub adjustments: Vec<Adjustment>,
    /// `None` allows every token.
    pub mask: Option<Arc<TokenMask>>,
}

impl Edits {
    /// True when nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.adjustments.is_empty() && self.mask.is_none()
    }

    /// Applies them to the part of a row that begins with token `first`, a multiple of 32.
    pub fn apply(&self, first: usize, logits: &mut [f32]) {
        let from = self.adjustments.partition_point(|a| (a.token as usize) < first);
        for adjustment in &self.adjustments[from..] {
            let Some(logit) = logits.get_mut(adjustment.token as usize - first) else { break };
            *logit = adjustment.apply(*logit);
        }
        let Some(mask) = &self.mask else { return };
        let words = mask.words.iter().skip(first / 32).chain(std::iter::repeat(&0));
        for (part, word) in logits.chunks_mut(32).zip(words) {
            if *word != u32::MAX {
                let barred = part.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                barred.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
            }
        }
    }
}

/// One selected token.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TopEntry {
    /// Token id.
    pub token: u32,
    /// Its logit.
    pub logit: f32,
}

impl TopEntry {
    /// The order of selections: the larger logit first, ties to the smaller id. NaN counts as +inf, so that who asks for one token sees that
    /// some logit is no number; both zeros are equal.
    pub fn rank(&self, other: &TopEntry) -> Ordering {
        let key = |e: &TopEntry| if e.logit.is_nan() { f32::INFINITY } else { e.logit };
        // Adding zero makes both zeros equal.
        (key(other) + 0.0).total_cmp(&(key(self) + 0.0)).then(self.token.cmp(&other.token))
    }

    /// Whether the token belongs in a selection: what was ruled out does not, what is no number does.
    pub fn is_choosable(&self) -> bool {
        self.logit != f32::NEG_INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_allow_what_they_name_within_the_vocabulary() {
        let mask = TokenMask::of(40, [0, 31, 39, 70]);
        assert_eq!(mask.words(), [1 | 1 << 31, 1 << 7]);
        let allowed: Vec<u32> = (0..100).filter(|t| mask.allows(*t)).collect();
        assert_eq!(allowed, [0, 31, 39]);
        assert!(mask.allows_some(40) && TokenMask::new(vec![0, 1 << 7]).allows_some(40));
        assert!(!TokenMask::new(vec![0, 1 << 8]).allows_some(40));
        assert!(!TokenMask::new(vec![0]).allows_some(32) && TokenMask::new(vec![1]).allows_some(32));
    }

    #[test]
    fn adjustments_are_applied_in_their_order() {
        let adjust = |logit| {
            Adjustment { bias: 1.0, divisor: 2.0, penalties: [0.5, 0.25], ..Adjustment::none(0) }.apply(logit)
        };
        assert_eq!((adjust(3.0), adjust(-3.0)), (2.0 - 0.75, -4.0 - 0.75));
        assert_eq!(
            Adjustment { bias: f32::NEG_INFINITY, ..Adjustment::none(0) }.apply(9.0),
            f32::NEG_INFINITY
        );
        for logit in [-2.5, 0.0, 1e-40, f32::MAX, f32::NEG_INFINITY] {
            assert_eq!(Adjustment::none(0).apply(logit), logit);
        }
    }

    #[test]
    fn edits_of_parts_are_those_of_the_whole() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 - 50.0) / 7.0).collect();
        let adjustments =
            [3, 31, 32, 64, 99].map(|token| Adjustment { bias: 2.0, ..Adjustment::none(token) });
        let mask = Some(Arc::new(TokenMask::of(100, (0..100).filter(|t| t % 3 == 0))));
        let edits = Edits { adjustments: adjustments.to_vec(), mask };
        let mut whole = logits.clone();
        edits.apply(0, &mut whole);
        for (token, (new, old)) in whole.iter().zip(&logits).enumerate() {
            let adjusted = if [3, 31, 32, 64, 99].contains(&token) { old + 2.0 } else { *old };
            assert_eq!(*new, if token % 3 == 0 { adjusted } else { f32::NEG_INFINITY }, "{token}");
        }
        let mut parts = logits.clone();
        parts.chunks_mut(32).enumerate().for_each(|(i, part)| edits.apply(32 * i, part));
        assert_eq!(parts, whole);
    }

    #[test]
    fn the_rank_is_a_total_order() {
        let entry = |token, logit| TopEntry { token, logit };
        let mut all =
            [entry(4, f32::NAN), entry(3, -0.0), entry(1, 0.0), entry(2, 7.0), entry(0, f32::NEG_INFINITY)];
        all.sort_by(TopEntry::rank);
        assert_eq!(all.map(|e| e.token), [4, 2, 1, 3, 0]);
        assert_eq!(all.map(|e| e.is_choosable()), [true, true, true, true, false]);
    }
}
