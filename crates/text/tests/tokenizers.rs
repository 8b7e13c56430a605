//! Every golden string of llama.cpp's vocabularies, and the properties that need a real vocabulary.

mod common;

use common::{llama_cpp_models, read_vocabulary};
use unicorn_text::{EncodeOptions, SpecialTokens, TokenName, Tokenizer};

fn tokenizer(name: &str) -> Tokenizer {
    let vocabulary = read_vocabulary(&llama_cpp_models().join(format!("ggml-vocab-{name}.gguf")));
    Tokenizer::from_gguf(vocabulary).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Strings and their ids: `.inp` holds strings between separator lines, `.out` one line of ids for each.
fn golden(name: &str) -> Vec<(String, Vec<u32>)> {
    let path = |suffix: &str| llama_cpp_models().join(format!("ggml-vocab-{name}.gguf.{suffix}"));
    let input = std::fs::read_to_string(path("inp")).unwrap();
    let output = std::fs::read_to_string(path("out")).unwrap();
    let mut texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    if texts.last() == Some(&"") {
        texts.pop();
    }
    let ids = output.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let cases: Vec<(String, Vec<u32>)> = texts.into_iter().map(str::to_owned).zip(ids).collect();
    assert_eq!(cases.len(), output.lines().count(), "{name}");
    cases
}

#[test]
fn golden_strings_of_every_vocabulary() {
    let mut names: Vec<String> = std::fs::read_dir(llama_cpp_models())
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            Some(name.strip_prefix("ggml-vocab-")?.strip_suffix(".gguf.inp")?.to_owned())
        })
        .collect();
    names.sort();
    let (mut total, mut failures) = (0, Vec::new());
    for name in &names {
        let tokenizer = tokenizer(name);
        for (text, expected) in golden(name) {
            total += 1;
            let found = tokenizer.encode(&text, EncodeOptions::default()).unwrap();
            if found != expected {
                failures.push(format!("{name}: {text:?}\n  expected {expected:?}\n  found    {found:?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {total} differ:\n{}", failures.len(), failures.join("\n"));
    assert_eq!((names.len(), total), (15, 694));
}

#[test]
fn control_tokens_are_parsed_only_where_asked() {
    let tokenizer = tokenizer("llama-bpe");
    let text = "a<|eot_id|>b";
    let id = tokenizer.token_id("<|eot_id|>").unwrap();
    let parse = EncodeOptions { parse_special: true, ..EncodeOptions::default() };
    assert_eq!(tokenizer.encode(text, parse).unwrap().iter().filter(|&&t| t == id).count(), 1);
    let plain = tokenizer.encode(text, EncodeOptions::default()).unwrap();
    assert!(!plain.contains(&id));
    assert_eq!(tokenizer.decode(&plain, true), text);
    assert!(tokenizer.is_special(id) && tokenizer.is_end(id));
    let with_bos = EncodeOptions { add_special: true, ..EncodeOptions::default() };
    assert_eq!(tokenizer.encode("", with_bos).unwrap(), [tokenizer.bos().unwrap()]);
    let ids = tokenizer.encode(text, parse).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "ab");
    assert_eq!(tokenizer.decode(&ids, false), text);
}

const TEXTS: &[&str] = &[
    "Hello, world!",
    " leading and trailing ",
    "two  spaces\n\n\ttab",
    "日本語 한국어 ไทย",
    "👩‍👩‍👧 🏳️‍🌈 e\u{301}",
    "\u{1F600}\u{1F600}",
    "<s></s><unk>",
];

#[test]
fn decoding_gives_the_text_back_one_whole_character_at_a_time() {
    for name in ["llama-bpe", "llama-spm", "phi-3", "gpt-2", "qwen2", "gemma-4", "starcoder", "deepseek-llm"]
    {
        let tokenizer = tokenizer(name);
        // Phi-3 defines `</s>` as a user's token, after which SentencePiece adds a space.
        for text in TEXTS.iter().filter(|text| name != "phi-3" || !text.contains("</s>")) {
            let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
            assert_eq!(tokenizer.decode(&ids, true), *text, "{name}");
            let mut detokenizer = tokenizer.detokenizer(true);
            let mut streamed = String::new();
            for id in ids {
                let piece = detokenizer.push(id);
                assert!(!piece.contains('\u{FFFD}'), "{name}: {text:?}");
                streamed += &piece;
                assert!(text.starts_with(&streamed), "{name}: {streamed:?}");
            }
            assert_eq!(detokenizer.finish(), "");
            assert_eq!(streamed, *text, "{name}");
        }
    }
}

#[test]
fn an_emoji_in_byte_tokens_waits_and_broken_bytes_are_replaced() {
    let tokenizer = tokenizer("llama-spm");
    let byte = |byte: u8| tokenizer.token_id(&format!("<0x{byte:02X}>")).unwrap();
    let mut detokenizer = tokenizer.detokenizer(true);
    let mut pieces: Vec<String> = "😀".bytes().map(|b| detokenizer.push(byte(b))).collect();
    assert_eq!(pieces, ["", "", "", "😀"]);
    // A lead byte, then something that cannot follow it.
    pieces = vec![detokenizer.push(byte(0xF0)), detokenizer.push(byte(b'a')), detokenizer.push(byte(0xFF))];
    assert_eq!(pieces, ["", "\u{FFFD}a", "\u{FFFD}"]);
    assert_eq!(detokenizer.push(byte(0xE2)), "");
    assert_eq!(detokenizer.finish(), "\u{FFFD}");
    assert_eq!(detokenizer.push(u32::MAX), "");
}

#[test]
fn the_space_of_sentence_piece_is_dropped_at_the_start_only() {
    let tokenizer = tokenizer("llama-spm");
    let hello = tokenizer.token_id("▁Hello").unwrap();
    assert_eq!(tokenizer.decode(&[tokenizer.bos().unwrap(), hello, hello], true), "Hello Hello");
    let word = tokenizer.token_id("▁the").unwrap();
    assert_eq!(tokenizer.detokenizer_after(Some(word), true).push(hello), " Hello");
    assert_eq!(tokenizer.detokenizer_after(tokenizer.bos(), true).push(hello), "Hello");
}

#[test]
fn unfit_metadata_is_refused_by_name() {
    let good = || read_vocabulary(&llama_cpp_models().join("ggml-vocab-gpt-2.gguf"));
    let message = |change: fn(&mut unicorn_text::GgufVocabulary)| {
        let mut vocabulary = good();
        change(&mut vocabulary);
        Tokenizer::from_gguf(vocabulary).unwrap_err().to_string()
    };
    for (found, expected) in [
        (message(|v| v.pre = Some("klingon".into())), "tokenizer.ggml.pre: unknown pre-tokenizer `klingon`"),
        (
            message(|v| v.model = "rwkv".into()),
            "tokenizer.ggml.model: tokenizer kind `rwkv` is not supported",
        ),
        (message(|v| v.merges.clear()), "tokenizer.ggml.merges is missing or empty"),
        (message(|v| v.tokens.clear()), "tokenizer.ggml.tokens is missing or empty"),
        (
            message(|v| v.token_types.truncate(3)),
            "tokenizer.ggml.token_type has 3 entries, the vocabulary has 50257 tokens",
        ),
        (
            message(|v| v.eos = Some(50257)),
            "tokenizer.ggml.eos_token_id is 50257, the vocabulary has 50257 tokens",
        ),
        (
            message(|v| v.merges[7] = "x".into()),
            "tokenizer.ggml.merges[7] is not two tokens separated by a space",
        ),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn a_tokenizer_json_does_what_its_gguf_twin_does() {
    let mut vocabulary = read_vocabulary(&llama_cpp_models().join("ggml-vocab-qwen2.gguf"));
    // Without the padding behind `<|im_end|>`, which only GGUF files have.
    vocabulary.tokens.truncate(151_646);
    vocabulary.token_types.truncate(151_646);
    let special = |id: &usize| vocabulary.token_types[*id] == 3;
    let ids = 0..vocabulary.tokens.len();
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "added_tokens": ids.clone().filter(special).map(|id| serde_json::json!({
            "id": id, "content": vocabulary.tokens[id], "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "merges": vocabulary.merges, "vocab": ids.filter(|id| !special(id))
            .map(|id| (vocabulary.tokens[id].clone(), id)).collect::<std::collections::BTreeMap<_, _>>()},
    });
    let ends = vec![TokenName::Text("<|im_end|>".into()), TokenName::Id(151645), TokenName::Id(151643)];
    let special = SpecialTokens { bos: Vec::new(), ends };
    let json = serde_json::to_vec(&json).unwrap();
    let hugging_face = Tokenizer::from_hugging_face(&json, &special).unwrap();
    let gguf = Tokenizer::from_gguf(vocabulary).unwrap();
    assert_eq!(hugging_face.vocab_size(), gguf.vocab_size());
    assert_eq!(hugging_face.eos(), hugging_face.token_id("<|im_end|>"));
    assert_eq!(hugging_face.end_tokens(), [151643, 151645]);
    for text in TEXTS.iter().copied().chain(["<|im_start|>user\nHi<|im_end|>\n"]) {
        for parse_special in [false, true] {
            let options = EncodeOptions { parse_special, add_special: true };
            let ids = hugging_face.encode(text, options).unwrap();
            assert_eq!(ids, gguf.encode(text, options).unwrap(), "{text:?}");
            assert_eq!(hugging_face.decode(&ids, false), gguf.decode(&ids, false));
        }
    }
    let broken = Tokenizer::from_hugging_face(b"{", &SpecialTokens::default()).unwrap_err();
    assert!(broken.to_string().starts_with("tokenizer.json: "), "{broken}");
}
