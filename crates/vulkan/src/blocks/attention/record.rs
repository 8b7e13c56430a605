//! The dispatches of an attention block, in order.

use super::super::builder::{Builder, NextInput};
use super::block::{AttentionBlock, Cache};

impl AttentionBlock {
    /// `next` is the input of the block after this one, where it may be prepared here. The cache has been reserved.
    pub(crate) fn record(&self, b: &mut Builder<'_>, cache: &Cache, next: Option<NextInput<'_>>) {
        self.projections(b);
        let input = match b.flash {
            None => self.decode(b, cache),
            Some((tiles, splits)) => self.prefill(b, cache, tiles, splits),
        };
        let (bias, post) = (self.o_bias.as_ref(), self.post_norm.as_ref());
        b.add_to_residual("attention_output", &self.o, bias, input, post, next);
    }
}
