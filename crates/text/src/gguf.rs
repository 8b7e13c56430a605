//! Building a tokenizer from the `tokenizer.ggml.*` metadata of a GGUF file.

use tokenizers::normalizers::BertNormalizer;

use crate::TextError;
use crate::bpe::{ByteAlphabet, Merges};
use crate::end_tokens::end_tokens;
use crate::pre_tokenizer::{self, PreTokenizer};
use crate::special::SpecialMatcher;
use crate::spm::Spm;
use crate::tokenizer::{Bpe, Decoding, Model, Parts, Tokenizer};
use crate::vocabulary::{TokenKind, Vocabulary};
use crate::word_piece::WordPiece;

/// The `tokenizer.ggml.*` keys of a GGUF file as plain data; absent keys are `None` or empty.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2`, `llama`, `gemma4` or `bert`.
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the pre-tokenizer of a BPE vocabulary.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, needed by `llama`.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, needed by `gpt2` and `gemma4`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`, the end of a turn.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`, the end of a message.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.eos_token_ids`: all tokens that end an answer.
    pub ends: Vec<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.seperator_token_id` (spelt so in files).
    pub sep: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.mask_token_id`.
    pub mask: Option<u32>,
    /// `tokenizer.ggml.cls_token_id`.
    pub cls: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`. Only Unigram vocabularies heed it.
    pub remove_extra_whitespaces: Option<bool>,
    /// `general.name`. Files of the Phi-3 family do not say that their special tokens swallow the white space
    /// that follows; the name does.
    pub name: Option<String>,
}

/// Ids that hold where a file names none.
struct Defaults {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    sep: Option<u32>,
}

impl Tokenizer {
    /// Builds a tokenizer from GGUF metadata.
    ///
    /// # Errors
    /// An unknown tokenizer kind or pre-tokenizer, a missing array, arrays that do not fit each other, and
    /// special ids outside of the vocabulary; each names the metadata key.
    pub fn from_gguf(gguf: GgufVocabulary) -> Result<Self, TextError> {
        check(&gguf)?;
        let types = &gguf.token_types;
        let kind = |id: usize| types.get(id).map_or(TokenKind::Normal, |&t| TokenKind::from_gguf(t));
        let mut vocabulary = Vocabulary::new(&gguf.tokens, kind)?;
        let named = [gguf.eos, gguf.eot, gguf.eom].into_iter().flatten().chain(gguf.ends.iter().copied());
        let ends = end_tokens(&mut vocabulary, named);
        let defaults = defaults(&gguf.model);
        let in_range = |id: Option<u32>| id.filter(|&id| (id as usize) < vocabulary.len());
        let unk = gguf.unk.or(in_range(defaults.unk));
        let (model, decoding, mut add_bos) = match gguf.model.as_str() {
            "llama" => (Model::Spm(spm(&gguf, &vocabulary, unk)?), Decoding::Spaces, true),
            "gpt2" | "gemma4" => {
                let (bpe, add_bos) = bpe(&gguf, &vocabulary, unk)?;
                let decoding = if bpe.alphabet.is_some() { Decoding::ByteLevel } else { Decoding::Spaces };
                (Model::Bpe(bpe), decoding, add_bos)
            }
            "bert" => {
                let normalizer = BertNormalizer::new(true, true, Some(true), true);
                (Model::WordPiece(WordPiece { normalizer, unknown: unk }), Decoding::Spaces, true)
            }
            other => return Err(TextError::UnsupportedModel(other.to_owned())),
        };
        add_bos = gguf.add_bos.unwrap_or(add_bos);
        if gguf.model == "gemma4" {
            add_bos = true; // early files say false by mistake
        }
        let bert = gguf.model == "bert";
        let bos = gguf.bos.or(if bert { gguf.cls } else { None }).or(in_range(defaults.bos));
        let eos = gguf.eos.or(gguf.ends.first().copied()).or(in_range(defaults.eos));
        let suffix = if bert { gguf.sep.or(in_range(defaults.sep)) } else { eos };
        let name = gguf.name.as_deref().unwrap_or_default().to_lowercase();
        let strip_right = name.contains("phi-3") || name.contains("phi3");
        Ok(Self::from_parts(Parts {
            special: SpecialMatcher::new(&vocabulary, strip_right),
            drops_leading_space: match &model {
                Model::Spm(spm) => spm.space_prefix,
                Model::WordPiece(_) => true,
                _ => false,
            },
            vocabulary,
            model,
            decoding,
            bos,
            eos,
            ends,
            prefix: bos.filter(|_| add_bos),
            suffix: suffix.filter(|_| bert || gguf.add_eos.unwrap_or(false)),
        }))
    }
}

fn check(gguf: &GgufVocabulary) -> Result<(), TextError> {
    let expected = gguf.tokens.len();
    if expected == 0 {
        return Err(TextError::Missing("tokenizer.ggml.tokens"));
    }
    for (field, found) in
        [("tokenizer.ggml.scores", gguf.scores.len()), ("tokenizer.ggml.token_type", gguf.token_types.len())]
    {
        if found != 0 && found < expected {
            return Err(TextError::Length { field, found, expected });
        }
    }
    let ends = gguf.ends.iter().map(|id| ("tokenizer.ggml.eos_token_ids", Some(*id)));
    let ids = [
        ("tokenizer.ggml.bos_token_id", gguf.bos),
        ("tokenizer.ggml.eos_token_id", gguf.eos),
        ("tokenizer.ggml.eot_token_id", gguf.eot),
        ("tokenizer.ggml.eom_token_id", gguf.eom),
        ("tokenizer.ggml.unknown_token_id", gguf.unk),
        ("tokenizer.ggml.seperator_token_id", gguf.sep),
        ("tokenizer.ggml.cls_token_id", gguf.cls),
    ];
    for (field, id) in ids.into_iter().chain(ends) {
        if let Some(id) = id.filter(|&id| id as usize >= expected) {
            return Err(TextError::IdOutOfRange { field, id, tokens: expected });
        }
    }
    Ok(())
}

fn defaults(model: &str) -> Defaults {
    match model {
        "llama" => Defaults { bos: Some(1), eos: Some(2), unk: Some(0), sep: None },
        "bert" => Defaults { bos: Some(101), eos: None, unk: Some(100), sep: Some(102) },
        _ => Defaults { bos: None, eos: None, unk: None, sep: None },
    }
}

fn spm(gguf: &GgufVocabulary, vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Spm, TextError> {
    if gguf.scores.is_empty() {
        return Err(TextError::Missing("tokenizer.ggml.scores"));
    }
    Ok(Spm {
        scores: gguf.scores.clone(),
        byte_ids: vocabulary.byte_fallback(),
        unknown,
        space_prefix: gguf.add_space_prefix.unwrap_or(true),
    })
}

/// The model, and whether BOS is added where the file does not say.
fn bpe(
    gguf: &GgufVocabulary,
    vocabulary: &Vocabulary,
    unknown: Option<u32>,
) -> Result<(Bpe, bool), TextError> {
    if gguf.merges.is_empty() {
        return Err(TextError::Missing("tokenizer.ggml.merges"));
    }
    let name = match (gguf.model.as_str(), gguf.pre.as_deref()) {
        ("gemma4", _) => "gemma4",
        (_, None) => "default",
        (_, Some(name)) if name.trim().is_empty() => "default",
        (_, Some(name)) => name,
    };
    let spec = pre_tokenizer::named(name).ok_or_else(|| TextError::UnknownPreTokenizer(name.to_owned()))?;
    let alphabet = (!spec.raw_text).then(|| Box::new(ByteAlphabet::new()));
    let byte_ids = match &alphabet {
        Some(alphabet) => alphabet.token_ids(vocabulary),
        None => vocabulary.byte_fallback(),
    };
    let bpe = Bpe {
        merges: Merges::new(vocabulary, &gguf.merges)?,
        pre_tokenizer: PreTokenizer::new(spec.expressions)?,
        ignore_merges: spec.ignore_merges,
        whole_newlines: name == "gemma4",
        alphabet,
        byte_ids,
        unknown,
    };
    Ok((bpe, spec.add_bos))
}
