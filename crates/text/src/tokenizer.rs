//! The tokenizer itself: encoding, decoding, and what each id means.

use std::borrow::Cow;
use std::sync::Arc;

use crate::TextError;
use crate::bpe::{ByteAlphabet, MergeScratch, Merges};
use crate::pipeline::Pipeline;
use crate::pre_tokenizer::PreTokenizer;
use crate::prompt::Prompt;
use crate::special::{Part, SpecialMatcher, Specials};
use crate::spm::Spm;
use crate::vocabulary::{TokenKind, Vocabulary, byte_of};
use crate::word_piece::WordPiece;

/// How [`Tokenizer::encode`] treats special tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Control tokens written out in the text (`<|im_start|>`) become that token. Never set this for text that
    /// a stranger wrote: it could then end its own turn. A rendered conversation goes to
    /// [`Tokenizer::encode_prompt`], which knows who wrote what.
    pub parse_special: bool,
    /// Adds the tokens that the model wants around a text: BOS, for some models EOS or SEP. A BOS that is
    /// parsed at the start of the text is not added once more.
    pub add_special: bool,
}

/// Turns text into token ids and back. Cheap to clone; clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Parts>);

/// What a tokenizer is made of.
pub(crate) struct Parts {
    pub vocabulary: Vocabulary,
    pub special: SpecialMatcher,
    pub model: Model,
    pub decoding: Decoding,
    pub drops_leading_space: bool,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Ids that end an answer, ascending.
    pub ends: Vec<u32>,
    /// Put in front of a text with `add_special`.
    pub prefix: Option<u32>,
    /// Put behind a text with `add_special`.
    pub suffix: Option<u32>,
}

/// The algorithm between special tokens.
pub(crate) enum Model {
    Bpe(Bpe),
    Spm(Spm),
    WordPiece(WordPiece),
    /// A `tokenizer.json`, which handles special tokens itself.
    HuggingFace(Box<Pipeline>),
}

/// BPE with stored merges.
pub(crate) struct Bpe {
    pub merges: Merges,
    pub pre_tokenizer: PreTokenizer,
    pub ignore_merges: bool,
    /// A run of newlines that is a token is taken whole.
    pub whole_newlines: bool,
    /// Absent where words are UTF-8 with `▁` for spaces.
    pub alphabet: Option<Box<ByteAlphabet>>,
    pub byte_ids: Box<[Option<u32>; 256]>,
    pub unknown: Option<u32>,
}

/// How the text of a normal token becomes bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decoding {
    /// The characters of the GPT-2 alphabet stand for bytes.
    ByteLevel,
    /// `▁` is a space.
    Spaces,
    /// This prefix marks a token that continues a word; others begin one.
    Continuation(String),
    /// This suffix marks a token that ends a word.
    WordEnd(String),
    /// The text as it is.
    Plain,
}

impl Tokenizer {
    pub(crate) fn from_parts(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Turns `text` into token ids.
    ///
    /// User-defined tokens (type 4 in GGUF files, added tokens that are not special in a `tokenizer.json`) are
    /// ordinary vocabulary and found in any text. Control tokens never come from text unless they are parsed.
    ///
    /// # Errors
    /// [`TextError::Expression`] where a pre-tokenizer expression gives up on a text.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TextError> {
        let specials = if options.parse_special { Specials::Parsed } else { Specials::Text };
        let mut ids = self.encode_as(text, specials, options.add_special)?;
        let doubled = self.bos_added().is_some_and(|bos| ids.starts_with(&[bos, bos]));
        if options.parse_special && options.add_special && doubled {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Turns a rendered conversation into token ids: the special tokens of the template's scaffold are parsed,
    /// those that stand in messages, tools and other arguments are text. BOS is put in front where the model
    /// wants it and the template did not write it.
    ///
    /// # Errors
    /// [`TextError::Expression`] where a pre-tokenizer expression gives up on a text.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, TextError> {
        let mut ids = self.encode_as(prompt.plain_text(), Specials::Prompt(prompt.breaks()), false)?;
        if let Some(bos) = self.bos_added().filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn encode_as(&self, text: &str, specials: Specials<'_>, add: bool) -> Result<Vec<u32>, TextError> {
        let parts = &*self.0;
        if let Model::HuggingFace(model) = &parts.model {
            return model.encode(&parts.vocabulary, text, specials, add);
        }
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(parts.prefix.filter(|_| add));
        let mut scratch = MergeScratch::default();
        let mut after_special = true;
        for part in parts.special.split(&parts.vocabulary, text, specials) {
            match part {
                Part::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Part::Text(text) => {
                    parts.encode_text(text, after_special, &mut scratch, &mut ids)?;
                    after_special = false;
                }
            }
        }
        ids.extend(parts.suffix.filter(|_| add));
        Ok(ids)
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.0.vocabulary.len()
    }

    /// The text of a token as the vocabulary has it (`Ġthe`, `▁the`, `<0x0A>`, `<|im_end|>`).
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.0.vocabulary.text(id)
    }

    /// The id of a token by its text in the vocabulary.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.0.vocabulary.find(text)
    }

    /// The bytes that a token adds to the answer, special tokens included. Not always UTF-8.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let text = self.0.vocabulary.text(id)?;
        let kind = self.0.vocabulary.kind(id)?;
        Some(match (kind, &self.0.decoding) {
            (TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined, _) => text.as_bytes().into(),
            (TokenKind::Byte, _) => byte_of(text).map_or(text.as_bytes().into(), |byte| vec![byte].into()),
            (_, Decoding::ByteLevel) => ByteAlphabet::decode(text).into(),
            (_, Decoding::Spaces) if text.contains('▁') => text.replace('▁', " ").into_bytes().into(),
            (_, Decoding::Continuation(prefix)) => match text.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().into(),
                None => [b" ", text.as_bytes()].concat().into(),
            },
            (_, Decoding::WordEnd(suffix)) => match text.strip_suffix(suffix.as_str()) {
                Some(word) => [word.as_bytes(), b" "].concat().into(),
                None => text.as_bytes().into(),
            },
            (_, Decoding::Spaces | Decoding::Plain) => text.as_bytes().into(),
        })
    }

    /// The token that begins a text, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// The token that ends a text, where the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// Whether `add_special` puts BOS (for BERT: CLS) in front.
    pub fn adds_bos(&self) -> bool {
        self.bos_added().is_some()
    }

    /// What `add_special` puts in front.
    fn bos_added(&self) -> Option<u32> {
        match &self.0.model {
            Model::HuggingFace(model) => self.0.bos.filter(|_| model.adds_bos),
            _ => self.0.prefix,
        }
    }

    /// Whether generating `id` ends the answer: EOS, the end of a turn or message, and well-known end tokens.
    pub fn is_end(&self, id: u32) -> bool {
        self.0.ends.binary_search(&id).is_ok()
    }

    /// All ids for which [`is_end`](Self::is_end) holds, ascending.
    pub fn end_tokens(&self) -> &[u32] {
        &self.0.ends
    }

    /// Whether `id` is a control or unknown token, hidden where special tokens are skipped.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.vocabulary.is_special(id)
    }

    /// Whether `id` fills a place in the vocabulary and is never written.
    pub fn is_unused(&self, id: u32) -> bool {
        self.0.vocabulary.kind(id) == Some(TokenKind::Unused)
    }

    /// The texts of all tokens that are parsed only where asked for: control and unknown tokens.
    pub(crate) fn special_texts(&self) -> impl Iterator<Item = &str> {
        (0..self.vocab_size() as u32).filter(|&id| self.is_special(id)).filter_map(|id| self.token_text(id))
    }

    pub(crate) fn drops_leading_space(&self) -> bool {
        self.0.drops_leading_space
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.vocab_size())
            .field("decoding", &self.0.decoding)
            .field("bos", &self.0.bos)
            .field("ends", &self.0.ends)
            .finish_non_exhaustive()
    }
}

impl Parts {
    fn encode_text(
        &self,
        text: &str,
        after_special: bool,
        scratch: &mut MergeScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        match &self.model {
            Model::Bpe(bpe) => bpe.encode(&self.vocabulary, text, scratch, ids),
            Model::Spm(spm) => {
                let prefix = if spm.space_prefix && after_special { "▁" } else { "" };
                let escaped = prefix.to_owned() + &text.replace(' ', "▁");
                if u32::try_from(escaped.len()).is_err() {
                    return Err(TextError::TooLarge("more than 4 GiB of text"));
                }
                spm.encode(&self.vocabulary, &escaped, ids);
                Ok(())
            }
            Model::WordPiece(word_piece) => word_piece.encode(&self.vocabulary, text, ids),
            // `encode_as` hands the whole text over before it is split.
            Model::HuggingFace(model) => {
                ids.extend(model.encode(&self.vocabulary, text, Specials::Text, false)?);
                Ok(())
            }
        }
    }
}

impl Bpe {
    fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        scratch: &mut MergeScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let text = match self.alphabet {
            Some(_) => Cow::Borrowed(text),
            None => Cow::Owned(text.replace(' ', "▁")),
        };
        for word in self.pre_tokenizer.split(&text)? {
            let whole = self.ignore_merges || (self.whole_newlines && word.starts_with('\n'));
            if let Some(id) = whole.then(|| self.find_word(vocabulary, word)).flatten() {
                ids.push(id);
            } else if self.alphabet.is_some() {
                let symbols = word.bytes().filter_map(|byte| self.byte_ids[byte as usize].or(self.unknown));
                scratch.merge(&self.merges, symbols, ids);
            } else {
                scratch.merge(&self.merges, self.characters(vocabulary, word).into_iter(), ids);
            }
        }
        Ok(())
    }

    fn find_word(&self, vocabulary: &Vocabulary, word: &str) -> Option<u32> {
        let Some(alphabet) = &self.alphabet else { return vocabulary.find_text(word) };
        if word.len() > vocabulary.longest_bytes() {
            return None;
        }
        vocabulary.find_text(&word.bytes().map(|byte| alphabet.char(byte)).collect::<String>())
    }

    /// One id per character, several for a character that is spelt in bytes.
    fn characters(&self, vocabulary: &Vocabulary, word: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(word.len());
        for (at, c) in word.char_indices() {
            let character = &word[at..at + c.len_utf8()];
            match vocabulary.find_text(character) {
                Some(id) => ids.push(id),
                None => {
                    ids.extend(character.bytes().filter_map(|b| self.byte_ids[b as usize].or(self.unknown)))
                }
            }
        }
        ids
    }
}
