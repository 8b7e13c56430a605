//! GBNF.
use crate::error::GrammarError;
use crate::rules::{Rules, Symbol};

pub(crate) fn compile(_rules: &mut Rules, _text: &str) -> Result<Symbol, GrammarError> {
    Err(GrammarError::TooComplex("todo".into()))
}
