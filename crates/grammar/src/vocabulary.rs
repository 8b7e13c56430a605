//! The tokens of a model, laid out for grammars.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use unicorn_core::TokenMask;
use unicorn_text::{EncodeOptions, Tokenizer};

use crate::error::GrammarError;

/// The tokens of a model as a tree of their bytes. Made once for a model and shared: it takes tenths of a second for
/// large vocabularies. Cheap to clone.
#[derive(Clone)]
pub struct Vocabulary(Arc<Parts>);

struct Parts {
    factory: ParserFactory,
    tokenizer: Tokenizer,
    /// Tokens that the model has logits for.
    size: usize,
    ends: Vec<u32>,
    /// All tokens but the ends.
    endless: Arc<TokenMask>,
}

/// Lets the library tokenize text as the model does.
struct Environment {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            // Where the tokenizer gives up, any tokens that spell the text will do.
            self.tokenizer
                .encode(text, EncodeOptions::default())
                .unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }

    /// No: else the library would follow a text that is the only one to its end at every mask, and a count of 10^9 has none in sight.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Vocabulary {
    /// Lays out the tokens of a model.
    ///
    /// `size` is the number of logits, which may be larger than the number of tokens: what lies past the tokens is never
    /// allowed. `ends` are the tokens that end an answer: allowed exactly where a grammar may end.
    ///
    /// # Errors
    /// [`GrammarError::Tokenizer`] where there is no token or no end token.
    pub fn new(tokenizer: &Tokenizer, size: usize, ends: &[u32]) -> Result<Vocabulary, GrammarError> {
        let wrong = |reason: String| GrammarError::Tokenizer(reason);
        let ends: Vec<u32> = ends.iter().copied().filter(|id| (*id as usize) < size).collect();
        let Some(first) = ends.first() else { return Err(wrong("no token ends an answer".to_owned())) };
        let words: Vec<Vec<u8>> = (0..size as u32).map(|id| word(tokenizer, id, &ends)).collect();
        if words.iter().all(Vec::is_empty) {
            return Err(wrong("it has no token".to_owned()));
        }
        let info = TokRxInfo::new(size as u32, *first);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(Environment { trie, tokenizer: tokenizer.clone() });
        let capabilities = InferenceCapabilities::default();
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| wrong(error.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        limits.initial_lexer_fuel = 4_000_000;
        limits.max_items_in_row = 20_000;
        limits.step_max_items = 1_000_000;
        let endless = TokenMask::of(size, (0..size as u32).filter(|id| !ends.contains(id)));
        let (tokenizer, endless) = (tokenizer.clone(), Arc::new(endless));
        Ok(Vocabulary(Arc::new(Parts { factory, tokenizer, size, ends, endless })))
    }

    /// Number of logits.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// Tokens that end an answer.
    pub fn ends(&self) -> &[u32] {
        &self.0.ends
    }

    /// The tokenizer that it was made from.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    pub(crate) fn endless(&self) -> Arc<TokenMask> {
        self.0.endless.clone()
    }

    pub(crate) fn factory(&self) -> &ParserFactory {
        &self.0.factory
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("size", &self.0.size).field("ends", &self.0.ends).finish()
    }
}

/// The bytes that a token stands for. A token that stands for no text gets the marker of the library in front, a byte
/// that no text holds, so that only a rule that names the token allows it.
fn word(tokenizer: &Tokenizer, id: u32, ends: &[u32]) -> Vec<u8> {
    if tokenizer.is_special(id) || ends.contains(&id) {
        let text = tokenizer.token_text(id).unwrap_or_default();
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat();
    }
    if tokenizer.is_unused(id) {
        return Vec::new();
    }
    tokenizer.token_bytes(id).map(|bytes| bytes.into_owned()).unwrap_or_default()
}
