//! A grammar under construction: symbols with rules, and lexemes, which are regular expressions.
//!
//! Two classes of lexemes exist side by side: plain text, where every byte counts, and JSON, where a little white space may
//! stand between lexemes.

use std::collections::HashMap;

use llguidance::api::{GenGrammarOptions, GrammarId, GrammarInit, SkipSpec};
use llguidance::derivre::{ExprRef, RegexAst};
use llguidance::earley::lexerspec::{LexemeClass, LexerSpec};
use llguidance::earley::{Grammar, SymIdx, SymbolProps};
use llguidance::toktrie::TokenId;

use crate::error::GrammarError;

/// Symbols at most; the library keeps 16 bits for them after it has added some of its own.
const SYMBOLS_MAX: usize = 30_000;
/// Symbols on the right of all rules together at most.
const SIZE_MAX: usize = 250_000;
/// What may stand between two JSON lexemes: enough for indented output, too little to get lost in.
const JSON_SPACE: &str = r"\x20{1,2}|\r?\n[\x20\t]{0,64}";

/// A symbol of a grammar.
pub(crate) type Symbol = SymIdx;

/// Which class new lexemes belong to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Class {
    /// Every byte counts.
    Text,
    /// White space may stand between lexemes.
    Json,
}

/// A grammar under construction.
pub(crate) struct Rules {
    grammar: Grammar,
    lexer: LexerSpec,
    text: LexemeClass,
    json: Option<LexemeClass>,
    class: Class,
    start: Symbol,
    empty: Symbol,
    literals: HashMap<(Class, String), Symbol>,
    lexemes: HashMap<(Class, ExprRef), Symbol>,
    size: usize,
    symbols: usize,
}

fn refused(error: impl std::fmt::Display) -> GrammarError {
    GrammarError::TooComplex(error.to_string())
}

impl Rules {
    pub(crate) fn new() -> Result<Rules, GrammarError> {
        let mut lexer = LexerSpec::new().map_err(refused)?;
        let text = lexer.setup_lexeme_class_with_skip(SkipSpec::once(RegexAst::NoMatch)).map_err(refused)?;
        let mut grammar = Grammar::new(None);
        let props = SymbolProps { grammar_id: text, is_start: true, ..SymbolProps::default() };
        let start = grammar.fresh_symbol_ext("start", props);
        let empty =
            grammar.fresh_symbol_ext("empty", SymbolProps { grammar_id: text, ..SymbolProps::default() });
        grammar.add_rule(empty, Vec::new()).map_err(refused)?;
        Ok(Rules {
            grammar,
            lexer,
            text,
            json: None,
            class: Class::Text,
            start,
            empty,
            literals: HashMap::new(),
            lexemes: HashMap::new(),
            size: 0,
            symbols: 2,
        })
    }

    /// Does something while new lexemes belong to `class`. What it returns may be used in rules of the class around.
    pub(crate) fn within<T>(
        &mut self,
        class: Class,
        build: impl FnOnce(&mut Rules) -> Result<T, GrammarError>,
    ) -> Result<T, GrammarError> {
        let outer = std::mem::replace(&mut self.class, class);
        let built = self.enter().and_then(|()| build(self));
        self.class = outer;
        self.enter()?;
        built
    }

    /// Makes the class of new lexemes the library's current one.
    fn enter(&mut self) -> Result<(), GrammarError> {
        let skip = match self.class {
            Class::Text => RegexAst::NoMatch,
            Class::Json => RegexAst::Regex(JSON_SPACE.to_owned()),
        };
        let class = self.lexer.setup_lexeme_class_with_skip(SkipSpec::once(skip)).map_err(refused)?;
        if self.class == Class::Json {
            self.json = Some(class);
        }
        Ok(())
    }

    fn class_id(&self) -> LexemeClass {
        match self.class {
            Class::Text => self.text,
            Class::Json => self.json.unwrap_or(self.text),
        }
    }

    /// A symbol without rules.
    pub(crate) fn symbol(&mut self, name: &str) -> Result<Symbol, GrammarError> {
        self.symbols += 1;
        if self.symbols > SYMBOLS_MAX {
            return Err(GrammarError::TooComplex(format!("more than {SYMBOLS_MAX} symbols")));
        }
        let props = SymbolProps { grammar_id: self.class_id(), ..SymbolProps::default() };
        Ok(self.grammar.fresh_symbol_ext(name, props))
    }

    /// Adds one way to write `left`.
    pub(crate) fn rule(&mut self, left: Symbol, right: &[Symbol]) -> Result<(), GrammarError> {
        self.size += right.len() + 1;
        if self.size > SIZE_MAX {
            return Err(GrammarError::TooComplex(format!("more than {SIZE_MAX} symbols in rules")));
        }
        let right = right.iter().copied().filter(|symbol| *symbol != self.empty).collect();
        self.grammar.add_rule(left, right).map_err(refused)
    }

    pub(crate) fn empty(&self) -> Symbol {
        self.empty
    }

    /// This text.
    pub(crate) fn literal(&mut self, text: &str) -> Result<Symbol, GrammarError> {
        if text.is_empty() {
            return Ok(self.empty);
        }
        let key = (self.class, text.to_owned());
        if let Some(symbol) = self.literals.get(&key) {
            return Ok(*symbol);
        }
        let symbol = self.lexeme(RegexAst::Literal(text.to_owned()))?;
        self.literals.insert(key, symbol);
        Ok(symbol)
    }

    /// Text that matches a regular expression, as long as it can be.
    pub(crate) fn lexeme(&mut self, regex: RegexAst) -> Result<Symbol, GrammarError> {
        let expression = self.expression(&regex)?;
        let key = (self.class, expression);
        if let Some(symbol) = self.lexemes.get(&key) {
            return Ok(*symbol);
        }
        let regex = RegexAst::ExprRef(expression);
        let lexeme = self.lexer.add_greedy_lexeme(String::new(), regex, false, None, usize::MAX);
        let lexeme = lexeme.map_err(refused)?;
        let symbol = self.symbol("lexeme")?;
        self.grammar.make_terminal(symbol, lexeme, &self.lexer).map_err(refused)?;
        self.lexemes.insert(key, symbol);
        Ok(symbol)
    }

    /// Text up to the first place where `end` has been written.
    pub(crate) fn until(&mut self, body: RegexAst, end: &str) -> Result<Symbol, GrammarError> {
        let end = RegexAst::Literal(end.to_owned());
        let lexeme = self.lexer.add_rx_and_stop("until".to_owned(), body, end, true, usize::MAX, true);
        let lexeme = lexeme.map_err(refused)?;
        let symbol = self.symbol("until")?;
        self.grammar.make_terminal(symbol, lexeme, &self.lexer).map_err(refused)?;
        Ok(symbol)
    }

    /// One token that stands for no text.
    pub(crate) fn token(&mut self, id: TokenId) -> Result<Symbol, GrammarError> {
        let lexeme = self.lexer.add_special_token(format!("<[{id}]>"), vec![id..=id]).map_err(refused)?;
        let symbol = self.symbol("token")?;
        self.grammar.make_terminal(symbol, lexeme, &self.lexer).map_err(refused)?;
        Ok(symbol)
    }

    /// A regular expression, checked.
    pub(crate) fn expression(&mut self, regex: &RegexAst) -> Result<ExprRef, GrammarError> {
        self.lexer.regex_builder.mk(regex).map_err(refused)
    }

    /// One after the other.
    pub(crate) fn sequence(&mut self, parts: &[Symbol]) -> Result<Symbol, GrammarError> {
        let parts: Vec<Symbol> = parts.iter().copied().filter(|part| *part != self.empty).collect();
        match parts[..] {
            [] => Ok(self.empty),
            [one] => Ok(one),
            _ => {
                let symbol = self.symbol("seq")?;
                self.rule(symbol, &parts)?;
                Ok(symbol)
            }
        }
    }

    /// One of them.
    pub(crate) fn choice(&mut self, options: &[Symbol]) -> Result<Symbol, GrammarError> {
        if let [one] = options {
            return Ok(*one);
        }
        let symbol = self.symbol("or")?;
        for option in options {
            self.rule(symbol, &[*option])?;
        }
        Ok(symbol)
    }

    pub(crate) fn optional(&mut self, item: Symbol) -> Result<Symbol, GrammarError> {
        let empty = self.empty;
        self.choice(&[item, empty])
    }

    /// `item`, from `min` to `max` times. The number of rules grows with the logarithm of the bounds.
    pub(crate) fn repeat(
        &mut self,
        item: Symbol,
        min: usize,
        max: Option<usize>,
    ) -> Result<Symbol, GrammarError> {
        let least = self.exactly(item, min)?;
        let more = match max {
            None => {
                let star = self.symbol("star")?;
                self.rule(star, &[])?;
                self.rule(star, &[star, item])?;
                star
            }
            Some(max) => self.at_most(item, max.saturating_sub(min))?,
        };
        self.sequence(&[least, more])
    }

    fn exactly(&mut self, item: Symbol, times: usize) -> Result<Symbol, GrammarError> {
        if times <= 4 {
            return self.sequence(&vec![item; times]);
        }
        let pair = self.sequence(&[item, item])?;
        let pairs = self.exactly(pair, times / 2)?;
        let odd = self.exactly(item, times % 2)?;
        self.sequence(&[pairs, odd])
    }

    /// Each count can be written in one way only: ambiguity would cost time with every token.
    fn at_most(&mut self, item: Symbol, times: usize) -> Result<Symbol, GrammarError> {
        if times <= 8 {
            return (0..times).try_fold(self.empty, |rest, _| {
                let one_more = self.sequence(&[item, rest])?;
                self.optional(one_more)
            });
        }
        // Either all of the pairs and what is left over, or fewer pairs and at most one more.
        let pair = self.sequence(&[item, item])?;
        let all = self.exactly(pair, times / 2)?;
        let over = self.at_most(item, times % 2)?;
        let full = self.sequence(&[all, over])?;
        let fewer = self.at_most(pair, times / 2 - 1)?;
        let one = self.optional(item)?;
        let short = self.sequence(&[fewer, one])?;
        self.choice(&[full, short])
    }

    /// Wraps a symbol of the class of JSON, so that rules of this class may name it.
    pub(crate) fn nested(&mut self, json: Symbol) -> Result<Symbol, GrammarError> {
        let class = self.json.unwrap_or(self.text);
        self.symbols += 1;
        // Symbols that begin a grammar are left alone when rules are simplified.
        let props = SymbolProps { grammar_id: class, is_start: true, ..SymbolProps::default() };
        let inner = self.grammar.fresh_symbol_ext("json", props);
        self.rule(inner, &[json])?;
        let symbol = self.symbol("nested")?;
        let data = GenGrammarOptions { grammar: GrammarId::Name(String::new()), temperature: None };
        self.grammar.make_gen_grammar(symbol, data).map_err(refused)?;
        self.grammar.link_gen_grammar(symbol, inner).map_err(refused)?;
        Ok(symbol)
    }

    /// The finished grammar, which begins with `start`.
    pub(crate) fn finish(mut self, start: Symbol) -> Result<GrammarInit, GrammarError> {
        let root = self.start;
        self.rule(root, &[start])?;
        let resolved = self.grammar.resolve_grammar_refs(&mut self.lexer, &llguidance::HashMap::default());
        resolved.map_err(refused)?;
        Ok(GrammarInit::Internal(self.grammar, self.lexer))
    }
}
