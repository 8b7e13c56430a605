//! Building a tokenizer from a Hugging Face `tokenizer.json`.

use serde_json::Value;

use crate::TextError;
use crate::end_tokens::end_tokens;
use crate::pipeline::{Pipeline, TOKENIZER, failed};
use crate::special::SpecialMatcher;
use crate::tokenizer::{Decoding, Model, Parts, Tokenizer};
use crate::vocabulary::{TokenKind, Vocabulary, byte_of};

/// Ids above this are taken for damage: no vocabulary comes near.
const ID_MAX: u32 = 1 << 24;

/// A token by its id or by its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenName {
    /// The id.
    Id(u32),
    /// The text in the vocabulary.
    Text(String),
}

/// What the files beside `tokenizer.json` say of special tokens, those with precedence first. A text that the vocabulary does
/// not have names nothing.
#[derive(Debug, Clone, Default)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Vec<TokenName>,
    /// End a text or an answer; the first is EOS.
    pub ends: Vec<TokenName>,
}

impl Tokenizer {
    /// Builds a tokenizer from `tokenizer.json` and the special tokens that other files of the model name.
    ///
    /// # Errors
    /// [`TextError::HuggingFace`] names the file that cannot be used and why.
    pub fn from_hugging_face(tokenizer_json: &[u8], special: &SpecialTokens) -> Result<Self, TextError> {
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(tokenizer_json).map_err(|error| failed(TOKENIZER, error))?;
        // Some files carry the truncation and padding of the training run.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| failed(TOKENIZER, error))?;
        let decoder = tokenizer.get_decoder().map(serde_json::to_value).transpose();
        let decoder = decoder.map_err(|error| failed(TOKENIZER, error))?.unwrap_or(Value::Null);
        let mut vocabulary = vocabulary(&tokenizer, has_step(&decoder, "ByteFallback"))?;
        let id = |name: &TokenName| match name {
            TokenName::Id(id) => Some(*id),
            TokenName::Text(text) => vocabulary.find(text),
        };
        let bos = special.bos.iter().find_map(id);
        let named: Vec<u32> = special.ends.iter().filter_map(id).collect();
        let eos = named.first().copied();
        let ends = end_tokens(&mut vocabulary, named);
        let (decoding, drops_leading_space) = decoding(&decoder);
        let model = Pipeline::new(tokenizer, &vocabulary, bos)?;
        Ok(Self::from_parts(Parts {
            special: SpecialMatcher::new(&vocabulary, false),
            vocabulary,
            model: Model::HuggingFace(Box::new(model)),
            decoding,
            drops_leading_space,
            bos,
            eos,
            ends,
            prefix: None,
            suffix: None,
        }))
    }
}

/// The token table in id order; ids that the file skips are unused tokens without text.
fn vocabulary(tokenizer: &tokenizers::Tokenizer, byte_fallback: bool) -> Result<Vocabulary, TextError> {
    let by_text = tokenizer.get_vocab(true);
    let last = by_text.values().copied().max().ok_or(TextError::Missing("tokenizer.json: model.vocab"))?;
    if last > ID_MAX {
        return Err(failed(TOKENIZER, format!("token id {last} is out of range")));
    }
    let mut tokens = vec![""; last as usize + 1];
    for (text, &id) in &by_text {
        tokens[id as usize] = text;
    }
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let kind = |id: usize| match (u32::try_from(id).ok().and_then(|id| added.get(&id)), tokens[id]) {
        (Some(token), _) if token.special => TokenKind::Control,
        (Some(_), _) => TokenKind::UserDefined,
        (None, "") => TokenKind::Unused,
        (None, text) if byte_fallback && byte_of(text).is_some() => TokenKind::Byte,
        (None, _) => TokenKind::Normal,
    };
    Vocabulary::new(&tokens, kind)
}

/// All steps of a decoder, sequences flattened.
fn steps(decoder: &Value) -> Vec<&Value> {
    match decoder["decoders"].as_array() {
        Some(children) => children.iter().flat_map(steps).collect(),
        None => vec![decoder],
    }
}

fn has_step(decoder: &Value, kind: &str) -> bool {
    steps(decoder).iter().any(|step| step["type"] == kind)
}

/// How tokens become bytes, and whether a leading space is dropped.
fn decoding(decoder: &Value) -> (Decoding, bool) {
    let mut decoding = Decoding::Plain;
    let mut drops_leading_space = false;
    for step in steps(decoder) {
        match step["type"].as_str() {
            Some("ByteLevel") => decoding = Decoding::ByteLevel,
            Some("Metaspace") => {
                decoding = Decoding::Spaces;
                drops_leading_space |= step["prepend_scheme"] != "never";
            }
            Some("Replace") if step["pattern"]["String"] == "▁" => decoding = Decoding::Spaces,
            Some("Strip") => drops_leading_space |= step["start"].as_u64().unwrap_or(0) > 0,
            Some("WordPiece") => {
                let prefix = step["prefix"].as_str().unwrap_or("##");
                decoding = Decoding::Continuation(prefix.to_owned());
                drops_leading_space = true;
            }
            Some("BPEDecoder") => {
                let suffix = step["suffix"].as_str().unwrap_or("</w>");
                decoding = Decoding::WordEnd(suffix.to_owned());
            }
            _ => {}
        }
    }
    (decoding, drops_leading_space)
}
