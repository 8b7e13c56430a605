//! Following one answer through a grammar, token by token.

use std::sync::Arc;

use llguidance::TokenParser;
use unicorn_core::TokenMask;

use crate::grammar::Grammar;
use unicorn_engine::Constraint;

/// Follows one answer through a grammar.
pub struct Matcher {
    parser: TokenParser,
    size: usize,
    complete: bool,
}

impl Matcher {
    /// One at the beginning of an answer.
    pub fn new(grammar: &Grammar) -> Matcher {
        Matcher { parser: grammar.parser(), size: grammar.vocabulary().size(), complete: false }
    }

    /// The tokens that may come next, end tokens among them where the answer may end.
    ///
    /// # Errors
    /// Where a limit of work is hit, or nothing may follow because the answer is complete.
    pub fn mask(&mut self) -> Result<Arc<TokenMask>, String> {
        if self.complete {
            return Err("the answer is complete: nothing may follow".to_owned());
        }
        let set = self.parser.compute_mask().map_err(|error| plain(&error))?;
        let mut words = set.as_slice().to_vec();
        words.resize(self.size.div_ceil(32), 0);
        Ok(Arc::new(TokenMask::new(words)))
    }

    /// Tells which token came. True when the answer is complete: nothing may follow but an end token.
    ///
    /// # Errors
    /// Where the grammar does not allow the token, or a limit of work is hit.
    pub fn accept(&mut self, token: u32) -> Result<bool, String> {
        if self.complete {
            return Err("the answer is complete: nothing may follow".to_owned());
        }
        match self.parser.validate_token(token) {
            Ok(true) => {}
            Ok(false) => return Err(format!("token {token} is not allowed here")),
            Err(error) => return Err(plain(&error)),
        }
        self.parser.consume_token(token).map_err(|error| plain(&error))?;
        self.complete = self.parser.check_stop().map_err(|error| plain(&error))?;
        Ok(self.complete)
    }

    /// Whether the answer may end here.
    pub fn may_end(&mut self) -> bool {
        self.complete || self.parser.is_accepting()
    }

    /// Takes the last tokens back.
    ///
    /// # Errors
    /// Where there are fewer, or the grammar looks ahead.
    pub fn rollback(&mut self, tokens: usize) -> Result<(), String> {
        self.parser.rollback(tokens).map_err(|error| plain(&error))?;
        self.complete = false;
        Ok(())
    }
}

impl Constraint for Matcher {
    fn mask(&mut self) -> Result<Option<Arc<TokenMask>>, String> {
        Matcher::mask(self).map(Some)
    }

    fn accept(&mut self, token: u32) -> Result<bool, String> {
        Matcher::accept(self, token)
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("complete", &self.complete).finish_non_exhaustive()
    }
}

/// The library's message without the marks that it puts around its state.
fn plain(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.split("\n<").next().unwrap_or_default().to_owned()
}
