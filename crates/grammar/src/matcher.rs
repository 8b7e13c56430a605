//! Following one answer through a grammar, token by token.

use std::sync::Arc;

use llguidance::TokenParser;
use unicorn_core::TokenMask;

use crate::dialect::{Freedom, Spans};
use crate::grammar::Grammar;
use crate::vocabulary::Vocabulary;
use unicorn_engine::Constraint;

/// Follows one answer through a grammar.
pub struct Matcher {
    parser: TokenParser,
    vocabulary: Vocabulary,
    /// Where the answer is free.
    spans: Option<Spans>,
    complete: bool,
}

impl Matcher {
    /// One at the beginning of an answer.
    pub fn new(grammar: &Grammar) -> Matcher {
        let (parser, vocabulary, spans) = (grammar.parser(), grammar.vocabulary().clone(), grammar.spans());
        Matcher { parser, vocabulary, spans, complete: false }
    }

    /// The tokens that may come next, end tokens among them where the answer may end. `None` where everything may come.
    ///
    /// # Errors
    /// Where a limit of work is hit, or nothing may follow because the answer is complete.
    pub fn mask(&mut self) -> Result<Option<Arc<TokenMask>>, String> {
        if self.complete {
            return Err("the answer is complete: nothing may follow".to_owned());
        }
        match self.freedom() {
            Freedom::Free => return Ok(None),
            Freedom::Endless => return Ok(Some(self.vocabulary.endless())),
            Freedom::Bound => {}
        }
        let set = self.parser.compute_mask().map_err(|error| plain(&error))?;
        let mut words = set.as_slice().to_vec();
        words.resize(self.vocabulary.size().div_ceil(32), 0);
        Ok(Some(Arc::new(TokenMask::new(words))))
    }

    fn freedom(&self) -> Freedom {
        self.spans.as_ref().map_or(Freedom::Bound, Spans::freedom)
    }

    /// Tells which token came. True when the answer is complete: nothing may follow but an end token.
    ///
    /// # Errors
    /// Where the grammar does not allow the token, or a limit of work is hit.
    pub fn accept(&mut self, token: u32) -> Result<bool, String> {
        if self.complete {
            return Err("the answer is complete: nothing may follow".to_owned());
        }
        let is_control =
            self.vocabulary.tokenizer().is_special(token) && !self.vocabulary.ends().contains(&token);
        match self.parser.validate_token(token) {
            Ok(true) => {}
            // It stands for no text, and where the answer is free no text is asked for.
            Ok(false) if is_control && self.freedom() != Freedom::Bound => return Ok(false),
            Ok(false) => return Err(format!("token {token} is not allowed here")),
            Err(error) => return Err(plain(&error)),
        }
        self.parser.consume_token(token).map_err(|error| plain(&error))?;
        if let Some(spans) = &mut self.spans {
            spans.advance(&self.vocabulary.tokenizer().token_bytes(token).unwrap_or_default());
        }
        self.complete = self.parser.check_stop().map_err(|error| plain(&error))?;
        Ok(self.complete)
    }

    /// Whether the answer may end here.
    pub fn may_end(&mut self) -> bool {
        self.complete || self.parser.is_accepting()
    }
}

impl Constraint for Matcher {
    fn mask(&mut self) -> Result<Option<Arc<TokenMask>>, String> {
        Matcher::mask(self)
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
