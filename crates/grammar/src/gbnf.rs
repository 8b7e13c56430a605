//! Grammars in the syntax of llama.cpp (GBNF).
//!
//! A grammar without recursion becomes one regular expression. One with recursion becomes rules over single characters, since its
//! rules may cut a text at any character.

use std::collections::{HashMap, HashSet};

use llguidance::derivre::RegexAst;

use crate::error::GrammarError;
use crate::rules::{Rules, Symbol};

type Result<T> = std::result::Result<T, GrammarError>;

/// What a rule is made of.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    /// Characters, as a class of a regular expression.
    Class(String),
    Rule(String),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, usize, Option<usize>),
}

/// Adds the texts of a grammar, which begins with its rule `root`.
pub(crate) fn compile(rules: &mut Rules, text: &str) -> Result<Symbol> {
    let grammar = Parser { text, at: 0 }.grammar()?;
    let mut known = HashSet::new();
    let mut waiting = vec!["root"];
    while let Some(name) = waiting.pop() {
        if known.insert(name.to_owned()) {
            let body = grammar.get(name).ok_or_else(|| syntax(format!("there is no rule {name:?}")))?;
            mentioned(body, &mut waiting);
        }
    }
    if is_recursive(&grammar) {
        let mut writer = Writer { rules, grammar: &grammar, symbols: HashMap::new(), waiting: Vec::new() };
        let root = writer.rule("root")?;
        while let Some((name, symbol)) = writer.waiting.pop() {
            let body = writer.node(&grammar[&name])?;
            writer.rules.rule(symbol, &[body])?;
        }
        return Ok(root);
    }
    let mut expressions = HashMap::new();
    let regex = regex(rules, &grammar, &grammar["root"], &mut expressions)?;
    rules.lexeme(regex)
}

fn syntax(reason: String) -> GrammarError {
    GrammarError::Syntax { what: "grammar", reason }
}

fn mentioned<'n>(node: &'n Node, out: &mut Vec<&'n str>) {
    match node {
        Node::Rule(name) => out.push(name),
        Node::Sequence(parts) | Node::Choice(parts) => parts.iter().for_each(|part| mentioned(part, out)),
        Node::Repeat(inner, ..) => mentioned(inner, out),
        Node::Text(_) | Node::Class(_) => {}
    }
}

/// Whether some rule leads back to itself.
fn is_recursive(grammar: &HashMap<String, Node>) -> bool {
    // Rules whose mentions are all finished are finished; what never finishes is recursive.
    let mut finished: HashSet<&str> = HashSet::new();
    loop {
        let before = finished.len();
        for (name, body) in grammar {
            let mut names = Vec::new();
            mentioned(body, &mut names);
            if names.iter().all(|name| finished.contains(name) || !grammar.contains_key(*name)) {
                finished.insert(name);
            }
        }
        if finished.len() == before {
            return finished.len() < grammar.len();
        }
    }
}

fn regex(
    rules: &mut Rules,
    grammar: &HashMap<String, Node>,
    node: &Node,
    known: &mut HashMap<String, RegexAst>,
) -> Result<RegexAst> {
    let all = |rules: &mut Rules, parts: &[Node], known: &mut HashMap<String, RegexAst>| {
        parts.iter().map(|part| regex(rules, grammar, part, known)).collect::<Result<Vec<_>>>()
    };
    Ok(match node {
        Node::Text(text) if text.is_empty() => RegexAst::EmptyString,
        Node::Text(text) => RegexAst::Literal(text.clone()),
        Node::Class(class) => RegexAst::Regex(class.clone()),
        Node::Sequence(parts) => RegexAst::Concat(all(rules, parts, known)?),
        Node::Choice(parts) => RegexAst::Or(all(rules, parts, known)?),
        Node::Repeat(inner, min, max) => {
            let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            let inner = regex(rules, grammar, inner, known)?;
            RegexAst::Repeat(Box::new(inner), count(*min), max.map_or(u32::MAX, count))
        }
        Node::Rule(name) => {
            if let Some(regex) = known.get(name) {
                return Ok(regex.clone());
            }
            let body = regex(rules, grammar, &grammar[name], known)?;
            let expression = RegexAst::ExprRef(rules.expression(&body)?);
            known.insert(name.clone(), expression.clone());
            expression
        }
    })
}

struct Writer<'r, 'g> {
    rules: &'r mut Rules,
    grammar: &'g HashMap<String, Node>,
    symbols: HashMap<String, Symbol>,
    waiting: Vec<(String, Symbol)>,
}

impl Writer<'_, '_> {
    fn rule(&mut self, name: &str) -> Result<Symbol> {
        if let Some(symbol) = self.symbols.get(name) {
            return Ok(*symbol);
        }
        if !self.grammar.contains_key(name) {
            return Err(syntax(format!("there is no rule {name:?}")));
        }
        let symbol = self.rules.symbol(name)?;
        self.symbols.insert(name.to_owned(), symbol);
        self.waiting.push((name.to_owned(), symbol));
        Ok(symbol)
    }

    fn node(&mut self, node: &Node) -> Result<Symbol> {
        match node {
            Node::Text(text) => {
                let mut parts = Vec::new();
                for character in text.chars() {
                    parts.push(self.rules.literal(character.encode_utf8(&mut [0; 4]))?);
                }
                self.rules.sequence(&parts)
            }
            Node::Class(class) => self.rules.lexeme(RegexAst::Regex(class.clone())),
            Node::Rule(name) => self.rule(name),
            Node::Sequence(parts) => {
                let parts = parts.iter().map(|part| self.node(part)).collect::<Result<Vec<_>>>()?;
                self.rules.sequence(&parts)
            }
            Node::Choice(parts) => {
                let parts = parts.iter().map(|part| self.node(part)).collect::<Result<Vec<_>>>()?;
                self.rules.choice(&parts)
            }
            Node::Repeat(inner, min, max) => {
                let inner = self.node(inner)?;
                self.rules.repeat(inner, *min, *max)
            }
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl Parser<'_> {
    fn grammar(mut self) -> Result<HashMap<String, Node>> {
        let mut grammar = HashMap::new();
        loop {
            self.space(true);
            if self.rest().is_empty() {
                return Ok(grammar);
            }
            let name = self.name()?;
            self.space(true);
            if !self.take("::=") {
                return Err(self.wrong("::= is missing"));
            }
            self.space(true);
            let body = self.choice(false)?;
            if grammar.insert(name.clone(), body).is_some() {
                return Err(syntax(format!("the rule {name:?} is there twice")));
            }
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn wrong(&self, what: &str) -> GrammarError {
        let line = self.text[..self.at].matches('\n').count() + 1;
        let near: String = self.rest().chars().take(20).collect();
        syntax(format!("line {line}: {what} near {near:?}"))
    }

    fn take(&mut self, token: &str) -> bool {
        let there = self.rest().starts_with(token);
        if there {
            self.at += token.len();
        }
        there
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest().chars().next()?;
        self.at += next.len_utf8();
        Some(next)
    }

    /// Skips blanks and remarks, and the ends of lines where a rule goes on behind them.
    fn space(&mut self, lines: bool) {
        loop {
            let rest = self.rest();
            let blank = |c: char| c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'));
            let skipped = rest.len() - rest.trim_start_matches(blank).len();
            let remark = rest[skipped..].starts_with('#');
            let end = if remark { rest[skipped..].find('\n').unwrap_or(rest.len() - skipped) } else { 0 };
            self.at += skipped + end;
            if !remark {
                return;
            }
        }
    }

    fn name(&mut self) -> Result<String> {
        let rest = self.rest();
        let length =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(rest.len());
        if length == 0 {
            return Err(self.wrong("a name is missing"));
        }
        let name = rest[..length].to_owned();
        self.at += length;
        Ok(name)
    }

    fn choice(&mut self, nested: bool) -> Result<Node> {
        let mut options = vec![self.sequence(nested)?];
        while self.take("|") {
            self.space(true);
            options.push(self.sequence(nested)?);
        }
        Ok(if options.len() == 1 { options.remove(0) } else { Node::Choice(options) })
    }

    fn sequence(&mut self, nested: bool) -> Result<Node> {
        let mut parts = Vec::new();
        loop {
            self.space(nested);
            let part = match self.rest().chars().next() {
                Some('"') => Node::Text(self.literal()?),
                Some('[') => Node::Class(self.class()?),
                Some('.') => {
                    self.at += 1;
                    Node::Class("(?s:.)".to_owned())
                }
                Some('(') => {
                    self.at += 1;
                    self.space(true);
                    let inner = self.choice(true)?;
                    self.space(true);
                    if !self.take(")") {
                        return Err(self.wrong(") is missing"));
                    }
                    inner
                }
                Some(c) if c.is_ascii_alphanumeric() || c == '_' || c == '-' => Node::Rule(self.name()?),
                _ => break,
            };
            let part = self.repeated(part)?;
            parts.push(part);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Node::Sequence(parts) })
    }

    fn repeated(&mut self, mut node: Node) -> Result<Node> {
        loop {
            let (min, max) = match self.rest().chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let Some(end) = self.rest().find('}') else { return Err(self.wrong("} is missing")) };
                    let inside = self.rest()[1..end].to_owned();
                    let number = |text: &str| text.trim().parse::<usize>().ok();
                    let bounds = match inside.split_once(',') {
                        None => number(&inside).map(|count| (count, Some(count))),
                        Some((min, max)) if max.trim().is_empty() => number(min).map(|min| (min, None)),
                        Some((min, max)) => number(min).zip(number(max)).map(|(min, max)| (min, Some(max))),
                    };
                    let bounds = bounds.filter(|(min, max)| max.is_none_or(|max| max >= *min));
                    let Some(bounds) = bounds else { return Err(self.wrong("a count is wrong")) };
                    self.at += end;
                    bounds
                }
                _ => return Ok(node),
            };
            self.at += 1;
            node = Node::Repeat(Box::new(node), min, max);
            self.space(false);
        }
    }

    fn literal(&mut self) -> Result<String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape()?),
                Some('\n') | None => return Err(self.wrong("a text does not end")),
                Some(c) => text.push(c),
            }
        }
    }

    fn class(&mut self) -> Result<String> {
        self.at += 1;
        let negated = self.take("^");
        let mut ranges = Vec::new();
        loop {
            let low = match self.next() {
                Some(']') => break,
                Some('\\') => self.escape()?,
                Some('\n') | None => return Err(self.wrong("a class does not end")),
                Some(c) => c,
            };
            let mut high = low;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                high = match self.next() {
                    Some('\\') => self.escape()?,
                    Some(c) => c,
                    None => return Err(self.wrong("a class does not end")),
                };
            }
            if high < low {
                return Err(self.wrong("a range is the wrong way round"));
            }
            ranges.push(format!(r"\x{{{:x}}}-\x{{{:x}}}", low as u32, high as u32));
        }
        if ranges.is_empty() {
            return Err(self.wrong("a class is empty"));
        }
        Ok(format!("[{}{}]", if negated { "^" } else { "" }, ranges.concat()))
    }

    fn escape(&mut self) -> Result<char> {
        let Some(c) = self.next() else { return Err(self.wrong("an escape does not end")) };
        let digits = match c {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            c if c.is_ascii_punctuation() => return Ok(c),
            _ => return Err(self.wrong("an escape is not known")),
        };
        let code = self.rest().get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let Some(character) = code.and_then(char::from_u32) else {
            return Err(self.wrong("an escape is no character"));
        };
        self.at += digits;
        Ok(character)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<HashMap<String, Node>> {
        Parser { text, at: 0 }.grammar()
    }

    #[test]
    fn grammars_are_read() {
        let grammar = parsed(
            "# a list\nroot ::= \"[\" item (\",\" item)* \"]\"\nitem ::= [a-z]{2,3} |\n  \"\\x41\\u00e9\" # or\n",
        );
        let grammar = grammar.unwrap();
        assert_eq!(
            grammar["item"],
            Node::Choice(vec![
                Node::Repeat(Box::new(Node::Class(r"[\x{61}-\x{7a}]".into())), 2, Some(3)),
                Node::Text("A\u{e9}".into()),
            ])
        );
        assert!(matches!(&grammar["root"], Node::Sequence(parts) if parts.len() == 4));
        assert!(!is_recursive(&grammar));
        assert!(is_recursive(&parsed("root ::= \"a\" root | \"b\"").unwrap()));
    }

    #[test]
    fn wrong_grammars_are_told_with_their_lines() {
        for (text, reason) in [
            ("root ::= \"a", "line 1: a text does not end"),
            ("root ::= [z-a]", "line 1: a range is the wrong way round"),
            ("root = \"a\"", "line 1: ::= is missing"),
            ("root ::= (\"a\"\nx ::= \"b\"", "line 2: ) is missing"),
            ("root ::= \"a\"{3,1}", "line 1: a count is wrong"),
            ("root ::= \"a\"\nroot ::= \"b\"", "is there twice"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
