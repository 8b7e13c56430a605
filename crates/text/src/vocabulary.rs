//! The token table: text and kind by id, id by text.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::TextError;

/// What a token is, numbered as in `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Normal,
    Unknown,
    /// Never stands for text: parsed from text only on request, hidden from the answer.
    Control,
    /// Always matched in text before anything else, and shown in the answer.
    UserDefined,
    Unused,
    /// One byte, written `<0xXX>`.
    Byte,
}

impl TokenKind {
    pub(crate) fn from_gguf(value: i32) -> Self {
        match value {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// All tokens of a model in one string, with an index from text to id.
///
/// One allocation for the text and one table of ids: a vocabulary of 262k tokens is built in a few
/// tens of milliseconds, where a map of owned strings takes several times that and twice the memory.
pub(crate) struct Vocabulary {
    text: String,
    /// End of token `i` in `text`; it starts where token `i - 1` ends.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    longest_bytes: usize,
}

impl Vocabulary {
    /// Builds the table. Of two tokens with the same text the first is found by text.
    pub(crate) fn new<S: AsRef<str>>(
        tokens: &[S],
        kind_of: impl Fn(usize) -> TokenKind,
    ) -> Result<Self, TextError> {
        let bytes: usize = tokens.iter().map(|t| t.as_ref().len()).sum();
        if u32::try_from(bytes).is_err() || u32::try_from(tokens.len()).is_err() {
            return Err(TextError::TooLarge("more than 4 GiB of text"));
        }
        let mut vocabulary = Self {
            text: String::with_capacity(bytes),
            ends: Vec::with_capacity(tokens.len()),
            kinds: (0..tokens.len()).map(kind_of).collect(),
            index: HashTable::with_capacity(tokens.len()),
            hasher: DefaultHashBuilder::default(),
            longest_bytes: 0,
        };
        for token in tokens {
            vocabulary.text.push_str(token.as_ref());
            vocabulary.ends.push(vocabulary.text.len() as u32);
            vocabulary.longest_bytes = vocabulary.longest_bytes.max(token.as_ref().len());
        }
        let Self { text, ends, index, hasher, .. } = &mut vocabulary;
        for id in 0..ends.len() as u32 {
            let token = token_at(text, ends, id);
            let hash = hasher.hash_one(token);
            index
                .entry(
                    hash,
                    |&other| token_at(text, ends, other) == token,
                    |&other| hasher.hash_one(token_at(text, ends, other)),
                )
                .or_insert(id);
        }
        Ok(vocabulary)
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Length of the longest token in bytes.
    pub(crate) fn longest_bytes(&self) -> usize {
        self.longest_bytes
    }

    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        ((id as usize) < self.ends.len()).then(|| token_at(&self.text, &self.ends, id))
    }

    pub(crate) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    pub(crate) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.index.find(hash, |&id| token_at(&self.text, &self.ends, id) == text).copied()
    }

    /// As [`find`](Self::find), for text that is not to become a control token.
    pub(crate) fn find_text(&self, text: &str) -> Option<u32> {
        self.find(text).filter(|&id| !self.is_special(id))
    }

    /// Whether `id` is a control or unknown token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(TokenKind::Control | TokenKind::Unknown))
    }

    /// The id of `<0xXX>` for every byte, where the vocabulary has it.
    pub(crate) fn byte_fallback(&self) -> Box<[Option<u32>; 256]> {
        let mut ids = Box::new([None; 256]);
        for byte in 0..=255u8 {
            ids[byte as usize] = self.find(&format!("<0x{byte:02X}>"));
        }
        ids
    }
}

fn token_at<'a>(text: &'a str, ends: &[u32], id: u32) -> &'a str {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &text[start..ends[id] as usize]
}

/// The byte of a `<0xXX>` token.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_tokens_by_text_and_text_by_id() {
        let tokens = ["a", "", "ab", "<0x0A>", "a"];
        let vocabulary = Vocabulary::new(&tokens, |_| TokenKind::Normal).unwrap();
        assert_eq!(vocabulary.find("a"), Some(0));
        assert_eq!(vocabulary.find("ab"), Some(2));
        assert_eq!(vocabulary.find("b"), None);
        assert_eq!(vocabulary.text(1), Some(""));
        assert_eq!(vocabulary.text(4), Some("a"));
        assert_eq!(vocabulary.text(5), None);
        assert_eq!(vocabulary.longest_bytes(), 6);
        assert_eq!(vocabulary.byte_fallback()[10], Some(3));
    }

    #[test]
    fn reads_byte_tokens() {
        assert_eq!(byte_of("<0xE2>"), Some(0xE2));
        assert_eq!(byte_of("<0xE>"), None);
        assert_eq!(byte_of("<0x+1>"), None);
        assert_eq!(byte_of("0xE2"), None);
    }
}
