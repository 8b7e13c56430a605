//! Token ids to text, one id at a time.

use crate::Tokenizer;

/// Turns a stream of token ids into text that is always whole characters.
///
/// Bytes of a character that is spread over several tokens wait until it is complete; bytes that can
/// no longer become a character are replaced by U+FFFD.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// At most three bytes: the beginning of a character.
    pending: Vec<u8>,
    /// No text yet, so the space that the tokenizer puts in front of a text is to be dropped.
    at_start: bool,
}

impl Tokenizer {
    /// Turns ids into text. Bytes that are not UTF-8 become U+FFFD; ids outside of the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special);
        let mut text = String::new();
        for &id in ids {
            detokenizer.push_into(id, &mut text);
        }
        text.push_str(&detokenizer.finish());
        text
    }

    /// A streaming decoder for ids that begin a text: the space that SentencePiece models put in front of a
    /// text is dropped.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special, true)
    }

    /// A streaming decoder for ids that continue after `previous`, the last id of a prompt. Only after a special
    /// token does a leading space belong to the tokenizer rather than to the text.
    pub fn detokenizer_after(&self, previous: Option<u32>, skip_special: bool) -> Detokenizer {
        let at_start = previous.is_none_or(|id| self.is_special(id));
        Detokenizer::new(self.clone(), skip_special, at_start)
    }
}

impl Detokenizer {
    fn new(tokenizer: Tokenizer, skip_special: bool, at_start: bool) -> Self {
        let at_start = at_start && tokenizer.drops_leading_space();
        Self { tokenizer, skip_special, pending: Vec::new(), at_start }
    }

    /// Takes one id and returns the text that is certain by now, often empty. Ids outside of the vocabulary
    /// have no text.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_into(id, &mut text);
        text
    }

    /// As [`push`](Self::push), appending to `text`.
    fn push_into(&mut self, id: u32, text: &mut String) {
        let special = self.tokenizer.is_special(id);
        if special && self.skip_special {
            return;
        }
        let Some(bytes) = self.tokenizer.token_bytes(id) else { return };
        let mut bytes = &bytes[..];
        if self.at_start && !special && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.at_start = false;
        }
        if self.pending.is_empty() {
            let rest = take_text(bytes, text);
            self.pending.extend_from_slice(rest);
        } else {
            self.pending.extend_from_slice(bytes);
            let rest = take_text(&self.pending, text).len();
            self.pending.drain(..self.pending.len() - rest);
        }
    }

    /// Ends the stream: a character that was never completed becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Appends what is certain in `bytes` to `text` and returns the bytes of an unfinished character.
fn take_text<'b>(bytes: &'b [u8], text: &mut String) -> &'b [u8] {
    let mut bytes = bytes;
    loop {
        match std::str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                return &[];
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                let Some(invalid) = error.error_len() else { return rest };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::take_text;

    #[test]
    fn keeps_only_what_may_become_a_character() {
        let mut text = String::new();
        assert_eq!(take_text(b"a\xF0\x9F", &mut text), b"\xF0\x9F");
        assert_eq!(take_text(b"\xF0\x9Fb\xC3", &mut text), b"\xC3");
        assert_eq!(take_text(b"\xFF\xFF", &mut text), b"");
        assert_eq!(text, "a\u{FFFD}b\u{FFFD}\u{FFFD}");
    }
}
