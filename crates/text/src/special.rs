//! Cutting special tokens out of a text before anything else looks at it.

use std::ops::Range;

use crate::vocabulary::{TokenKind, Vocabulary};

/// A part of a text: a special token, or text between special tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

/// Which special tokens of a text become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Specials<'p> {
    /// Only user-defined tokens: the text is what somebody typed.
    Text,
    /// All of them: the text is written in the model's own format.
    Parsed,
    /// All but those that hold one of these places inside, which are byte offsets in ascending order: the text
    /// is a [`Prompt`](crate::Prompt). Control tokens of one character have no inside and are never parsed.
    Prompt(&'p [usize]),
}

/// Finds special tokens in text: at every position the longest one, from left to right.
///
/// Instead of an automaton over thousands of patterns (Gemma reserves 6,000) it keeps the lengths
/// that occur per first byte and asks the vocabulary's own index.
pub(crate) struct SpecialMatcher {
    /// Lengths in bytes, descending, by the first byte of the token.
    lengths: Box<[Vec<u16>; 256]>,
    /// Which first bytes belong to user-defined tokens, matched even if specials are not parsed.
    always: Box<[bool; 256]>,
    any_always: bool,
    /// Control tokens swallow the white space that follows them (the Phi-3 family).
    strip_right: bool,
}

impl SpecialMatcher {
    pub(crate) fn new(vocabulary: &Vocabulary, strip_right: bool) -> Self {
        let mut matcher = Self {
            lengths: Box::new([const { Vec::new() }; 256]),
            always: Box::new([false; 256]),
            any_always: false,
            strip_right,
        };
        for id in 0..vocabulary.len() as u32 {
            let kind = vocabulary.kind(id).unwrap_or(TokenKind::Normal);
            if !is_matched(kind, true) {
                continue;
            }
            let text = vocabulary.text(id).unwrap_or_default().as_bytes();
            let (Some(&first), Ok(length)) = (text.first(), u16::try_from(text.len())) else { continue };
            let lengths = &mut matcher.lengths[first as usize];
            if let Err(at) = lengths.binary_search_by(|other| length.cmp(other)) {
                lengths.insert(at, length);
            }
            if kind == TokenKind::UserDefined {
                matcher.always[first as usize] = true;
                matcher.any_always = true;
            }
        }
        matcher
    }

    /// Splits `text` at the special tokens that count as such.
    pub(crate) fn split<'t>(
        &self,
        vocabulary: &Vocabulary,
        text: &'t str,
        specials: Specials<'_>,
    ) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let mut start = 0;
        let mut at = 0;
        if specials == Specials::Text && !self.any_always {
            at = text.len();
        }
        while at < text.len() {
            let Some((id, length)) = self.match_at(vocabulary, text, at, specials) else {
                at += 1;
                continue;
            };
            if start < at {
                parts.push(Part::Text(&text[start..at]));
            }
            parts.push(Part::Token(id));
            at += length;
            if self.strip_right && vocabulary.kind(id) == Some(TokenKind::Control) {
                at = text.len() - text[at..].trim_start_matches(|c: char| c.is_ascii_whitespace()).len();
            }
            start = at;
        }
        if start < text.len() {
            parts.push(Part::Text(&text[start..]));
        }
        parts
    }

    fn match_at(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        at: usize,
        specials: Specials<'_>,
    ) -> Option<(u32, usize)> {
        let first = text.as_bytes()[at] as usize;
        if specials == Specials::Text && !self.always[first] {
            return None;
        }
        self.lengths[first].iter().find_map(|&length| {
            let length = length as usize;
            let token = text.get(at..at + length)?;
            let id = vocabulary.find(token)?;
            let parsed = match specials {
                Specials::Text => false,
                Specials::Parsed => true,
                Specials::Prompt(breaks) => {
                    token.chars().nth(1).is_some() && !has_inside(breaks, at..at + length)
                }
            };
            is_matched(vocabulary.kind(id)?, parsed).then_some((id, length))
        })
    }
}

/// Whether one of `places` lies in `range`, not at its ends.
fn has_inside(places: &[usize], range: Range<usize>) -> bool {
    let next = places.partition_point(|&place| place <= range.start);
    places.get(next).is_some_and(|&place| place < range.end)
}

fn is_matched(kind: TokenKind, parsed: bool) -> bool {
    match kind {
        TokenKind::UserDefined => true,
        TokenKind::Control | TokenKind::Unknown => parsed,
        TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(strip: bool) -> (Vocabulary, SpecialMatcher) {
        let tokens = ["a", "<s>", "<s>>", "\n\n", "é"];
        let vocabulary = Vocabulary::new(&tokens, |i| match i {
            1 | 2 => TokenKind::Control,
            3 => TokenKind::UserDefined,
            _ => TokenKind::Normal,
        })
        .unwrap();
        let matcher = SpecialMatcher::new(&vocabulary, strip);
        (vocabulary, matcher)
    }

    #[test]
    fn longest_special_first_and_text_between() {
        let (vocabulary, matcher) = matcher(false);
        let parts = matcher.split(&vocabulary, "é<s>> <s>a\n\n", Specials::Parsed);
        use Part::*;
        assert_eq!(parts, [Text("é"), Token(2), Text(" "), Token(1), Text("a"), Token(3)]);
    }

    #[test]
    fn control_tokens_stay_text_unless_asked_for() {
        let (vocabulary, matcher) = matcher(false);
        let parts = matcher.split(&vocabulary, "<s>a\n\nb", Specials::Text);
        assert_eq!(parts, [Part::Text("<s>a"), Part::Token(3), Part::Text("b")]);
    }

    #[test]
    fn control_tokens_with_a_break_inside_are_text() {
        let (vocabulary, matcher) = matcher(false);
        let split = |breaks: &[usize]| {
            let parts = matcher.split(&vocabulary, "<s>\n\n<s>", Specials::Prompt(breaks));
            parts.into_iter().map(|part| matches!(part, Part::Token(_))).collect::<Vec<_>>()
        };
        // Breaks at the ends of a token, or inside a user-defined one, change nothing.
        assert_eq!(split(&[0, 3, 4, 5, 8]), [true, true, true]);
        assert_eq!(split(&[1]), [false, true, true]);
        assert_eq!(split(&[2, 7]), [false, true, false]);
    }

    #[test]
    fn white_space_after_a_control_token_can_be_swallowed() {
        let (vocabulary, matcher) = matcher(true);
        let parts = matcher.split(&vocabulary, "<s> \n a", Specials::Parsed);
        assert_eq!(parts, [Part::Token(1), Part::Text("a")]);
    }
}
