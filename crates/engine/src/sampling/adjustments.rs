//! Bias, penalties and DRY of one step as changes of single logits: few tokens, so that a device can apply them where the logits are.

use std::collections::BTreeMap;

use unicorn_core::Adjustment;

/// Changes by token.
#[derive(Default)]
pub(super) struct Adjustments(BTreeMap<u32, Adjustment>);

impl Adjustments {
    /// The change of a token, none so far where it is new.
    pub fn of(&mut self, token: u32) -> &mut Adjustment {
        self.0.entry(token).or_insert_with(|| Adjustment::none(token))
    }

    /// Ascending by token.
    pub fn into_list(self) -> Vec<Adjustment> {
        self.0.into_values().collect()
    }

    /// What becomes of these logits.
    #[cfg(test)]
    pub fn applied(self, logits: &[f32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        unicorn_core::Edits { adjustments: self.into_list(), mask: None }.apply(0, &mut logits);
        logits
    }
}
