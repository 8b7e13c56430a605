//! Shared by the tests: vocabularies of real models, and random answers that a grammar allows.

#![allow(dead_code)] // each test uses its own part

use std::path::Path;
use std::sync::OnceLock;

use unicorn_grammar::{Grammar, Matcher, Vocabulary};
use unicorn_text::EncodeOptions;

/// The vocabulary of SmolLM2, 49 thousand tokens, which `cargo xtask test` fetches.
pub fn smollm2() -> &'static Vocabulary {
    static VOCABULARY: OnceLock<Vocabulary> = OnceLock::new();
    VOCABULARY.get_or_init(|| open("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
}

/// The vocabulary of Gemma 3, 262 thousand tokens.
pub fn gemma3() -> &'static Vocabulary {
    static VOCABULARY: OnceLock<Vocabulary> = OnceLock::new();
    VOCABULARY.get_or_init(|| open("gemma3/gemma-3-270m-q4_k_m.gguf"))
}

pub fn open(file: &str) -> Vocabulary {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-data").join(file);
    assert!(path.is_file(), "{} is missing: `cargo xtask test` puts it there", path.display());
    let tokenizer = unicorn_model::open_tokenizer(&path).unwrap().tokenizer;
    Vocabulary::new(&tokenizer, tokenizer.vocab_size(), tokenizer.end_tokens()).unwrap()
}

/// Whether a grammar allows a text, token by token, and allows it to end there.
pub fn accepts(grammar: &Grammar, text: &str) -> bool {
    let tokenizer = grammar.vocabulary().tokenizer();
    let mut matcher = Matcher::new(grammar);
    for id in tokenizer.encode(text, EncodeOptions { parse_special: true, add_special: false }).unwrap() {
        if let Err(error) = matcher.accept(id) {
            assert!(error.contains("not allowed") || error.contains("complete"), "{error}");
            return false;
        }
    }
    matcher.may_end()
}

/// Well-mixed numbers (SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// A random answer that the grammar allows, or none where it gets too long. `closing` are texts of tokens that lead to an end,
/// taken more and more often.
pub fn answer(grammar: &Grammar, seed: u64, closing: &[&str]) -> Option<String> {
    let vocabulary = grammar.vocabulary();
    let tokenizer = vocabulary.tokenizer();
    let closing: Vec<u32> = closing.iter().filter_map(|text| tokenizer.token_id(text)).collect();
    let mut numbers = Numbers(seed.wrapping_mul(0x9E37_79B9));
    let mut matcher = Matcher::new(grammar);
    let mut bytes = Vec::new();
    for step in 0..1500 {
        let mask = matcher.mask();
        let mask =
            mask.unwrap_or_else(|error| panic!("{error} behind {:?}", String::from_utf8_lossy(&bytes)));
        let allows = |id: u32| mask.as_ref().is_none_or(|mask| mask.allows(id));
        let end = vocabulary.ends().iter().any(|end| allows(*end));
        if end && numbers.below(if mask.is_some() { 3 } else { 30 }) == 0 {
            return String::from_utf8(bytes).ok();
        }
        let hurry = numbers.below(1000) < (200 + step * 3).min(960);
        let start = numbers.below(closing.len());
        let mut closers = closing.iter().cycle().skip(start).take(closing.len());
        let id = match closers.find(|id| allows(**id)).filter(|_| hurry) {
            Some(id) => *id,
            None => {
                let ids = (0..vocabulary.size() as u32).filter(|id| {
                    // Free text may hold control tokens, which stand for no text.
                    allows(*id)
                        && !vocabulary.ends().contains(id)
                        && (mask.is_some() || !tokenizer.is_special(*id))
                });
                let ids: Vec<u32> = ids.collect();
                match ids.get(numbers.below(ids.len())) {
                    Some(id) => *id,
                    None => return String::from_utf8(bytes).ok(),
                }
            }
        };
        bytes.extend_from_slice(&tokenizer.token_bytes(id).unwrap_or_default());
        if matcher.accept(id).unwrap() {
            return String::from_utf8(bytes).ok();
        }
    }
    None
}

/// Tokens that bring JSON to its end.
pub const JSON_ENDS: [&str; 6] = ["\"", "}", "]", "\"}", "0", "."];
