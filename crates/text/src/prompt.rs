//! A rendered conversation, which remembers what is scaffold and what is text.

/// A conversation in a model's own format.
///
/// It comes from a [`ChatTemplate`](crate::ChatTemplate) and goes to
/// [`Tokenizer::encode_prompt`](crate::Tokenizer::encode_prompt). Its text alone does not say which special
/// tokens the template wrote and which ones a person typed; the places kept beside it do. A control token with
/// such a place inside is plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    text: String,
    /// Byte offsets in `text`, ascending.
    breaks: Vec<usize>,
}

impl Prompt {
    /// Takes the marks out of a rendered text and remembers where they were.
    pub(crate) fn from_marked(marked: &str, mark: char) -> Self {
        let mut prompt = Self { text: String::with_capacity(marked.len()), breaks: Vec::new() };
        for (at, piece) in marked.split(mark).enumerate() {
            if at > 0 && prompt.breaks.last() != Some(&prompt.text.len()) {
                prompt.breaks.push(prompt.text.len());
            }
            prompt.text.push_str(piece);
        }
        prompt
    }

    /// The text for people to read. Do not tokenize it: it no longer tells scaffold from messages.
    pub fn plain_text(&self) -> &str {
        &self.text
    }

    /// Places inside of control tokens that are only text: byte offsets, ascending.
    pub(crate) fn breaks(&self) -> &[usize] {
        &self.breaks
    }
}

/// `text` with `mark` at each of `places`, byte offsets in ascending order.
pub(crate) fn insert_marks(text: &str, places: &[usize], mark: char) -> String {
    let mut marked = String::with_capacity(text.len() + places.len() * mark.len_utf8());
    let mut start = 0;
    for &place in places {
        marked.push_str(&text[start..place]);
        marked.push(mark);
        start = place;
    }
    marked.push_str(&text[start..]);
    marked
}

/// A character that occurs in none of `texts` and is not `taken`: one that Unicode sets aside for such uses,
/// or a private one. `None` where the texts use all 131,000 of them.
pub(crate) fn unused_char<'t>(texts: impl IntoIterator<Item = &'t str>, taken: &[char]) -> Option<char> {
    let candidate = |c: &char| matches!(*c, '\u{FDD0}'..='\u{FDEF}' | '\u{F0000}'..='\u{10FFFD}');
    let mut used: hashbrown::HashSet<char> = taken.iter().copied().collect();
    for text in texts.into_iter().filter(|text| !text.is_ascii()) {
        used.extend(text.chars().filter(candidate));
    }
    ('\u{FDD0}'..='\u{FDEF}').chain('\u{F0000}'..='\u{10FFFD}').find(|c| !used.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_off_and_leave_their_places() {
        let marked = insert_marks("a<s>é", &[0, 2, 6], '\u{FDD0}');
        assert_eq!(marked, "\u{FDD0}a<\u{FDD0}s>é\u{FDD0}");
        let prompt = Prompt::from_marked(&marked, '\u{FDD0}');
        assert_eq!((prompt.plain_text(), prompt.breaks()), ("a<s>é", &[0, 2, 6][..]));
        assert_eq!(Prompt::from_marked("a||b", '|').breaks(), [1]);
    }

    #[test]
    fn marks_are_characters_that_nobody_wrote() {
        assert_eq!(unused_char(["abc"], &[]), Some('\u{FDD0}'));
        let all: String = ('\u{FDD0}'..='\u{FDEF}').collect();
        assert_eq!(unused_char(["abc", &all], &['\u{F0000}']), Some('\u{F0001}'));
        assert_eq!(
            unused_char(
                [all + &('\u{F0000}'..='\u{10FFFD}').collect::<String>()].iter().map(String::as_str),
                &[]
            ),
            None
        );
    }
}
