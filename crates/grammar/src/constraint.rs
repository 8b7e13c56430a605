//! What the engine asks of whatever restricts an answer.

use std::sync::Arc;

use unicorn_core::TokenMask;

/// Restricts an answer token by token.
pub trait Constraint: Send {
    /// The tokens that may come next; `None` allows all.
    fn mask(&mut self) -> Result<Option<Arc<TokenMask>>, String>;

    /// Tells which token came. True when the answer is complete: nothing may follow.
    fn accept(&mut self, token: u32) -> Result<bool, String>;
}
