//! Regular expressions of JSON Schema (ECMA-262) in the syntax and the meaning of the library's.

/// White space as ECMA-262 has it.
const SPACE: &str = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff";

/// Translates a pattern. What is not understood is an error: nothing is read in another meaning.
pub(crate) fn translated(pattern: &str) -> Result<String, String> {
    let characters: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut at = 0;
    let mut in_class = false;
    while at < characters.len() {
        let c = characters[at];
        let next = characters.get(at + 1).copied();
        match c {
            '\\' => {
                at += escape(&characters[at..], in_class, &mut out)?;
                continue;
            }
            '[' if in_class => out.push_str(r"\["),
            '[' => {
                in_class = true;
                out.push('[');
                let negated = next == Some('^');
                if negated {
                    out.push('^');
                    at += 1;
                }
                if characters.get(at + 1) == Some(&']') {
                    // Nothing, or everything.
                    out.truncate(out.len() - if negated { 2 } else { 1 });
                    out.push_str(if negated { "(?s:.)" } else { r"[a&&b]" });
                    in_class = false;
                    at += 1;
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            ']' => out.push_str(r"\]"),
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            // Two dashes would mean a difference of sets.
            '-' if in_class && next == Some('-') => {
                out.push_str(r"\-");
            }
            '.' if !in_class => out.push_str(r"[^\n\r\u2028\u2029]"),
            '{' if !in_class && !is_quantifier(&characters[at..]) => out.push_str(r"\{"),
            '}' if !in_class && !closes_quantifier(&characters[..at]) => out.push_str(r"\}"),
            '(' if !in_class && next == Some('?') => {
                let after = characters.get(at + 2).copied();
                if matches!(after, Some('=' | '!'))
                    || (after == Some('<') && matches!(characters.get(at + 3), Some('=' | '!')))
                {
                    return Err("it looks ahead or behind".to_owned());
                }
                out.push('(');
            }
            _ => out.push(c),
        }
        at += 1;
    }
    Ok(out)
}

/// Translates the escape at the front and returns its length in characters.
fn escape(characters: &[char], in_class: bool, out: &mut String) -> Result<usize, String> {
    let Some(&c) = characters.get(1) else { return Err("it ends in a backslash".to_owned()) };
    let class = |out: &mut String, set: &str, negated: bool| {
        // A class within a class is read as one.
        out.push_str(if negated { "[^" } else { "[" });
        out.push_str(set);
        out.push(']');
    };
    match c {
        'd' | 'D' => class(out, "0-9", c == 'D'),
        'w' | 'W' => class(out, "0-9A-Za-z_", c == 'W'),
        's' | 'S' => class(out, SPACE, c == 'S'),
        'b' if in_class => out.push_str(r"\x08"),
        'b' | 'B' => return Err("it looks for the edges of words".to_owned()),
        '0' if !characters.get(2).is_some_and(char::is_ascii_digit) => out.push_str(r"\x00"),
        '0'..='9' | 'k' => return Err("it refers back to a group".to_owned()),
        'n' | 'r' | 't' | 'f' | 'v' => out.extend(['\\', c]),
        'c' => {
            let letter = characters.get(2).filter(|c| c.is_ascii_alphabetic());
            let letter = letter.ok_or("\\c without a letter")?;
            out.push_str(&format!(r"\x{:02x}", *letter as u32 % 32));
            return Ok(3);
        }
        'x' | 'u' | 'p' | 'P' => {
            out.extend(['\\', c]);
            if characters.get(2) == Some(&'{') {
                let end = characters.iter().position(|c| *c == '}').ok_or("a brace does not end")?;
                out.extend(&characters[2..=end]);
                return Ok(end + 1);
            }
        }
        c if c.is_ascii_alphanumeric() => return Err(format!("\\{c} is not known")),
        c if c.is_ascii() && !matches!(c, '<' | '>') && !c.is_whitespace() => out.extend(['\\', c]),
        c => out.push_str(&regex_literal(c)),
    }
    Ok(2)
}

fn regex_literal(c: char) -> String {
    format!(r"\x{{{:x}}}", c as u32)
}

/// Whether `{` at the front begins a count.
fn is_quantifier(characters: &[char]) -> bool {
    let Some(end) = characters.iter().position(|c| *c == '}') else { return false };
    let inside: String = characters[1..end].iter().collect();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match inside.split_once(',') {
        None => digits(&inside),
        Some((low, high)) => digits(low) && (high.is_empty() || digits(high)),
    }
}

/// Whether a `}` behind these characters ends a count.
fn closes_quantifier(before: &[char]) -> bool {
    let Some(open) = before.iter().rposition(|c| *c == '{') else { return false };
    let escaped = before[..open].iter().rev().take_while(|c| **c == '\\').count() % 2 == 1;
    let mut text = before[open..].to_vec();
    text.push('}');
    !escaped && is_quantifier(&text)
}

#[cfg(test)]
mod tests {
    use super::translated;

    #[test]
    fn patterns_keep_their_meaning() {
        for (from, to) in [
            (r"^\d+$", r"^[0-9]+$"),
            (r"[\w.-]", r"[[0-9A-Za-z_].-]"),
            (r"a{2,3}", r"a{2,3}"),
            (r"^{x}$", r"^\{x\}$"),
            (r"[[a]", r"[\[a]"),
            (r"[a&&b]", r"[a\&\&b]"),
            (r"\/x", r"\/x"),
            (r"]", r"\]"),
            (r"\p{L}", r"\p{L}"),
            (r"[^]", r"(?s:.)"),
        ] {
            assert_eq!(translated(from).as_deref(), Ok(to), "{from}");
        }
        for wrong in [r"(?=a)", r"(?<!a)b", r"\1", r"a\b", r"\Z", "\\"] {
            assert!(translated(wrong).is_err(), "{wrong}");
        }
    }
}
