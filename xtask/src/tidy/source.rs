//! A source file with its comments and literals told apart from its code, and its test code from the rest.

/// A file as the rules see it.
pub struct Source<'a> {
    /// From the root of the workspace.
    pub path: &'a str,
    /// Lines as written.
    pub raw: Vec<&'a str>,
    /// Lines with comments and the contents of literals blanked; of other languages than Rust as written.
    pub code: Vec<String>,
    /// For each line whether only tests are compiled from it.
    pub test: Vec<bool>,
}

impl<'a> Source<'a> {
    pub fn new(path: &'a str, text: &'a str, is_test: bool) -> Source<'a> {
        let raw: Vec<&str> = text.lines().collect();
        let code: Vec<String> = match path.ends_with(".rs") {
            true => mask(text).lines().map(String::from).collect(),
            false => raw.iter().map(|line| line.to_string()).collect(),
        };
        let test = if is_test { vec![true; raw.len()] } else { test_lines(&code) };
        Source { path, raw, code, test }
    }

    /// Number (from 1), code and raw text of the lines that are not for tests alone.
    pub fn production(&self) -> impl Iterator<Item = (usize, &str, &'a str)> {
        let lines = self.code.iter().zip(&self.raw).zip(&self.test).enumerate();
        lines.filter(|(_, (_, test))| !**test).map(|(i, ((code, raw), _))| (i + 1, code.as_str(), *raw))
    }

    /// Names of modules that are declared for tests alone.
    pub fn test_modules(&self) -> Vec<String> {
        let declared = |code: &String| {
            let name = code.trim().strip_prefix("pub ").unwrap_or(code.trim()).strip_prefix("mod ")?;
            Some(name.strip_suffix(';')?.to_string())
        };
        self.code
            .iter()
            .zip(&self.test)
            .filter(|(_, test)| **test)
            .filter_map(|(code, _)| declared(code))
            .collect()
    }
}

/// Blanks comments and the contents of string and character literals; lines keep their places.
fn mask(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = literal_end(&chars, i);
        if end == i {
            out.push(chars[i]);
            i += 1;
        } else {
            out.extend(chars[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            i = end;
        }
    }
    out
}

/// One past the comment or literal that begins at `i`, or `i` where none does.
fn literal_end(chars: &[char], i: usize) -> usize {
    let at = |j: usize| chars.get(j).copied().unwrap_or('\0');
    let in_word = i > 0 && (chars[i - 1].is_alphanumeric() || chars[i - 1] == '_');
    match (at(i), at(i + 1)) {
        ('/', '/') => (i..chars.len()).find(|&j| chars[j] == '\n').unwrap_or(chars.len()),
        ('/', '*') => block_comment_end(chars, i),
        ('"', _) => string_end(chars, i + 1),
        ('r', '"' | '#') if !in_word => raw_string_end(chars, i + 1).unwrap_or(i),
        ('b', '"') if !in_word => string_end(chars, i + 2),
        ('b', 'r') if !in_word => raw_string_end(chars, i + 2).unwrap_or(i),
        ('\'', '\\') => (i + 3..chars.len()).find(|&j| chars[j] == '\'').map_or(chars.len(), |j| j + 1),
        // A lifetime has no quote two characters on.
        ('\'', _) if at(i + 2) == '\'' => i + 3,
        _ => i,
    }
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut i = start;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], mut i: usize) -> usize {
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// `i` is behind the `r`. `None` for a raw identifier.
fn raw_string_end(chars: &[char], i: usize) -> Option<usize> {
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    (chars.get(i + hashes) == Some(&'"')).then_some(())?;
    let closes = |j: &usize| {
        chars[*j] == '"' && chars[j + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    Some((i + hashes + 1..chars.len()).find(closes).map_or(chars.len(), |j| j + 1 + hashes))
}

/// Marks the items under `#[cfg(test)]`, `#[cfg(all(test, ...))]` and `#[test]`: to the closing brace or the semicolon.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut marks = vec![false; code.len()];
    let mut i = 0;
    while i < code.len() {
        let line = code[i].trim();
        let starts = line.starts_with("#[cfg(test)]")
            || line.starts_with("#[cfg(all(test")
            || line.starts_with("#[test]");
        if !starts {
            i += 1;
            continue;
        }
        let end = item_end(code, i);
        marks[i..=end].fill(true);
        i = end + 1;
    }
    marks
}

/// The line on which the item ends whose attribute stands on line `start`.
fn item_end(code: &[String], start: usize) -> usize {
    let (mut braces, mut brackets) = (0, 0);
    for (i, line) in code.iter().enumerate().skip(start) {
        for c in line.chars() {
            match c {
                '{' => braces += 1,
                '}' => braces -= 1,
                '[' | '(' => brackets += 1,
                ']' | ')' => brackets -= 1,
                _ => {}
            }
            if braces == 0 && brackets == 0 && (c == '}' || c == ';') {
                return i;
            }
        }
    }
    code.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let cases = [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x\"y") + 1"#, "f(      ) + 1"),
            ("r#\"a\"b\"# c", "         c"),
            ("'a' '\\n' 'b", "         'b"),
            ("r#type x", "r#type x"),
            ("b\"x\" xr", "     xr"),
        ];
        for (text, expected) in cases {
            assert_eq!(mask(text), expected, "{text}");
        }
        assert_eq!(mask("\"a\nb\" c"), "  \n   c");
    }

    #[test]
    fn test_code_is_told_apart() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod d;\nfn e() {}\n";
        let source = Source::new("x.rs", text, false);
        let lines: Vec<usize> = source.production().map(|(line, _, _)| line).collect();
        assert_eq!(lines, [1, 6, 9]);
        assert_eq!(source.test_modules(), ["d"]);
    }
}
