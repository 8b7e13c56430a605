//! WordPiece (BERT): the longest token from the left, word by word. Devlin et al., 2018.

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use crate::TextError;
use crate::vocabulary::Vocabulary;

/// GGUF files mark the start of a word with `▁`, where BERT marks continuations with `##`.
const WORD_START: char = '▁';

/// Words longer than this are unknown, as in BERT: the search is quadratic in the length of a word.
const WORD_CHARS_MAX: usize = 1024;

/// What WordPiece needs beside the vocabulary.
pub(crate) struct WordPiece {
    pub normalizer: BertNormalizer,
    pub unknown: Option<u32>,
}

impl WordPiece {
    pub(crate) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        output: &mut Vec<u32>,
    ) -> Result<(), TextError> {
        let failed = |error: tokenizers::Error| TextError::Expression(error.to_string());
        let mut normalized = NormalizedString::from(text);
        self.normalizer.normalize(&mut normalized).map_err(failed)?;
        let mut words = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut words).map_err(failed)?;
        let mut word = String::new();
        for (piece, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            word.clear();
            word.push(WORD_START);
            word.push_str(piece);
            self.encode_word(vocabulary, &word, output);
        }
        Ok(())
    }

    fn encode_word(&self, vocabulary: &Vocabulary, word: &str, output: &mut Vec<u32>) {
        let before = output.len();
        let mut rest = word;
        while !rest.is_empty() {
            let found = if word.len() > WORD_CHARS_MAX { None } else { longest(vocabulary, rest) };
            let Some((id, length)) = found else {
                output.truncate(before);
                output.extend(self.unknown);
                return;
            };
            output.push(id);
            rest = &rest[length..];
        }
    }
}

fn longest(vocabulary: &Vocabulary, text: &str) -> Option<(u32, usize)> {
    let limit = text.len().min(vocabulary.longest_bytes());
    (1..=limit).rev().find_map(|length| Some((vocabulary.find_text(text.get(..length)?)?, length)))
}
