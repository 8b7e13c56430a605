//! JSON Schema as a grammar.
//!
//! Every value that the grammar allows satisfies the schema; what cannot be enforced is refused. The grammar may allow less than
//! the schema: properties come in the order in which the schema names them, numbers in one notation, strings of some formats in
//! their usual forms.
//!
//! The way: [`expand`] turns conjunctions of schemas and of their opposites into unions of shapes, [`plan`] turns shapes into
//! what is written and drops what nothing can satisfy, [`emit`] writes the rules.

mod decimal;
mod document;
mod emit;
mod expand;
mod formats;
mod goal;
mod keywords;
mod numbers;
mod pattern;
mod plan;
mod regexes;
mod relax;
mod shape;

use std::time::Instant;

use llguidance::derivre::RegexAst;
use serde_json::Value;

pub(crate) use relax::Relaxed;

use crate::error::GrammarError;
use crate::rules::{Class, Rules, Symbol};

/// Adds the values of a schema to a grammar.
pub(crate) fn strict(rules: &mut Rules, schema: &Value, deadline: Instant) -> Result<Symbol, GrammarError> {
    let document = document::Document::new(schema)?;
    let mut expander = expand::Expander::new(document, deadline);
    let root = expander.document.root();
    let root = expander.goals.schema(root, true);
    let plans = plan::plan(&mut expander, root)?;
    if !plans.is_productive(root) {
        return Err(GrammarError::Unsatisfiable { what: "schema" });
    }
    expander.check_time()?;
    rules.within(Class::Json, |rules| emit::emit(rules, &plans, root))
}

/// The strings of a schema, without quotes.
pub(crate) fn text(schema: &Value, deadline: Instant) -> Result<RegexAst, GrammarError> {
    let document = document::Document::new(schema)?;
    let mut expander = expand::Expander::new(document, deadline);
    let root = expander.document.root();
    let root = expander.goals.schema(root, true);
    let shapes = expander.expand(root)?;
    let mut options = Vec::new();
    for text in &shapes.strings {
        options.extend(regexes::language(text)?);
    }
    match options.len() {
        0 => Err(GrammarError::Unsatisfiable { what: "schema" }),
        _ => Ok(RegexAst::Or(options)),
    }
}
