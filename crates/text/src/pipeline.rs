//! The steps that a `tokenizer.json` describes, run by the `tokenizers` crate.

use tokenizers::{
    AddedToken, AddedVocabulary, Model as _, NormalizedString, Normalizer, NormalizerWrapper, OffsetType,
    PreTokenizer as _, Token,
};

use crate::TextError;
use crate::prompt::{insert_marks, unused_char};
use crate::special::Specials;
use crate::vocabulary::Vocabulary;

pub(crate) const TOKENIZER: &str = "tokenizer.json";

pub(crate) fn failed(file: &'static str, error: impl ToString) -> TextError {
    TextError::HuggingFace { file, reason: error.to_string() }
}

/// The pipeline that a `tokenizer.json` describes.
pub(crate) struct Pipeline {
    tokenizer: tokenizers::Tokenizer,
    /// The added vocabulary with special tokens treated as text.
    specials_as_text: AddedVocabulary,
    /// Control tokens of one character.
    short_specials: Vec<char>,
    pub adds_bos: bool,
}

impl Pipeline {
    pub(crate) fn new(
        mut tokenizer: tokenizers::Tokenizer,
        vocabulary: &Vocabulary,
        bos: Option<u32>,
    ) -> Result<Self, TextError> {
        let failed = |error: tokenizers::Error| failed(TOKENIZER, error);
        let changed = specials_to_add(&tokenizer, vocabulary);
        if !changed.is_empty() {
            tokenizer.add_special_tokens(changed).map_err(failed)?;
        }
        let mut specials_as_text = tokenizer.get_added_vocabulary().clone();
        specials_as_text.set_encode_special_tokens(true);
        let short = |id: u32| {
            let mut chars = vocabulary.text(id)?.chars();
            chars.next().filter(|_| chars.next().is_none() && vocabulary.is_special(id))
        };
        let short_specials = (0..vocabulary.len() as u32).filter_map(short).collect();
        let mut pipeline = Self { tokenizer, specials_as_text, short_specials, adds_bos: false };
        let empty = pipeline.encode(vocabulary, "", Specials::Text, true)?;
        pipeline.adds_bos = empty.first().is_some_and(|&id| Some(id) == bos);
        Ok(pipeline)
    }

    /// Turns `text` into ids; `add` runs the post-processor, which adds BOS and the like.
    pub(crate) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        specials: Specials<'_>,
        add: bool,
    ) -> Result<Vec<u32>, TextError> {
        self.try_encode(vocabulary, text, specials, add).map_err(|error| failed(TOKENIZER, error))
    }

    fn try_encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        specials: Specials<'_>,
        add: bool,
    ) -> Result<Vec<u32>, tokenizers::Error> {
        let normalizer = self.tokenizer.get_normalizer();
        let mut words = match specials {
            Specials::Text => self.specials_as_text.extract_and_normalize(normalizer, text),
            Specials::Parsed => self.tokenizer.get_added_vocabulary().extract_and_normalize(normalizer, text),
            Specials::Prompt(breaks) => {
                let (disguised, normalizer) = self.disguise(text, breaks, normalizer)?;
                let added = self.tokenizer.get_added_vocabulary();
                added.extract_and_normalize(Some(&normalizer), &disguised)
            }
        };
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        words.tokenize(|word| self.tokenize_word(vocabulary, word.get()))?;
        let encoding = words.into_encoding(None, 0, OffsetType::None)?;
        let encoding = self.tokenizer.post_process(encoding, None, add)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A prompt in which the added vocabulary finds only the special tokens of the scaffold, and the normalizer
    /// that takes the disguise off again: a mark stands at every break, and another character in the place of
    /// every special token of one character.
    fn disguise<'n>(
        &self,
        text: &str,
        breaks: &[usize],
        inner: Option<&'n NormalizerWrapper>,
    ) -> Result<(String, Undisguise<'n>), tokenizers::Error> {
        let unused = |taken: &[char]| {
            unused_char([text], taken).ok_or("the text uses every character that could mark a place in it")
        };
        let mut taken = vec![unused(&[])?];
        let mut disguised = insert_marks(text, breaks, taken[0]);
        let mut stand_ins = Vec::new();
        for &special in self.short_specials.iter().filter(|&&special| text.contains(special)) {
            let stand_in = unused(&taken)?;
            taken.push(stand_in);
            stand_ins.push((stand_in, special));
            disguised = disguised.replace(special, stand_in.encode_utf8(&mut [0; 4]));
        }
        Ok((disguised, Undisguise { mark: taken[0], stand_ins, inner }))
    }

    /// The tokens of a word, none of which is a control token that the word spells out: models may have control
    /// tokens among their ordinary vocabulary.
    fn tokenize_word(&self, vocabulary: &Vocabulary, word: &str) -> Result<Vec<Token>, tokenizers::Error> {
        let tokens = self.tokenizer.get_model().tokenize(word)?;
        let cuts = tokens.iter().filter_map(|token| {
            let spelt = word.get(token.offsets.0..token.offsets.1)?;
            let control = vocabulary.is_special(token.id) && vocabulary.text(token.id) == Some(spelt);
            let first = spelt.chars().next().filter(|first| control && first.len_utf8() < spelt.len())?;
            Some(token.offsets.0 + first.len_utf8())
        });
        let mut cuts: Vec<usize> = cuts.collect();
        if cuts.is_empty() {
            return Ok(tokens);
        }
        cuts.push(word.len());
        let (mut tokens, mut start) = (Vec::new(), 0);
        for end in cuts {
            let piece = self.tokenize_word(vocabulary, &word[start..end])?;
            tokens.extend(
                piece.into_iter().map(|token| Token {
                    offsets: (token.offsets.0 + start, token.offsets.1 + start),
                    ..token
                }),
            );
            start = end;
        }
        Ok(tokens)
    }
}

/// Control tokens that the file's added vocabulary lacks, does not call special, or would look for only in
/// normalized text: a template's scaffold is to be found as it is written.
fn specials_to_add(tokenizer: &tokenizers::Tokenizer, vocabulary: &Vocabulary) -> Vec<AddedToken> {
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let ids = (0..vocabulary.len() as u32).filter(|&id| vocabulary.is_special(id));
    let token = |id: u32| match added.get(&id) {
        Some(token) if token.special && !token.normalized => None,
        Some(token) => Some(token.clone().special(true).normalized(false)),
        None => Some(AddedToken::from(vocabulary.text(id)?, true)),
    };
    ids.filter_map(token).collect()
}

/// Takes the disguise off a text and normalizes it.
struct Undisguise<'n> {
    mark: char,
    /// A character and the one for which it stands.
    stand_ins: Vec<(char, char)>,
    inner: Option<&'n NormalizerWrapper>,
}

impl Normalizer for Undisguise<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> Result<(), tokenizers::Error> {
        if text.get().contains(self.mark) {
            text.filter(|c| c != self.mark);
        }
        if !self.stand_ins.is_empty() {
            text.map(|c| self.stand_ins.iter().find(|(stand_in, _)| *stand_in == c).map_or(c, |(_, c)| *c));
        }
        self.inner.map_or(Ok(()), |inner| inner.normalize(text))
    }
}
