//! Attention of many rows.

use super::super::Builder;
use super::super::linear::Input;
use super::decode::MergeOutput;
use super::{AttentionBlock, Cache};

impl AttentionBlock {
    /// From q, k and v to the input of the output product: f16 `[rows, heads * head_dim]` in `half_wide`.
    pub(super) fn prefill<'a>(&self, b: &mut Builder<'a>, cache: &Cache) -> Input<'a> {
        let s = b.scratch;
        self.rope_and_cache(b, cache);
        self.attend(b, cache);
        self.merge(b, MergeOutput::Half);
        Input::Half(&s.half_wide)
    }
}
