//! What a person types never becomes a control token, in any tokenizer.

mod common;

use common::{byte_tokenizer, llama_cpp_models, read_vocabulary};
use serde_json::{Value, json};
use unicorn_text::{
    ChatTemplate, EncodeOptions, GgufVocabulary, RenderOptions, SpecialTokens, TokenName, Tokenizer,
};

fn gguf(name: &str) -> Tokenizer {
    Tokenizer::from_gguf(read_vocabulary(&llama_cpp_models().join(format!("ggml-vocab-{name}.gguf"))))
        .unwrap()
}

fn hugging_face(json: &Value) -> Tokenizer {
    let json = serde_json::to_vec(json).unwrap();
    let named = |text: &str| vec![TokenName::Text(text.to_owned())];
    let special = SpecialTokens { bos: named("<s>"), ends: named("</s>") };
    Tokenizer::from_hugging_face(&json, &special).unwrap()
}

fn added(id: usize, content: &str, special: bool, normalized: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "normalized": normalized,
        "single_word": false, "lstrip": false, "rstrip": false})
}

/// Unigram whose model holds the control tokens as ordinary pieces, one of them looked for in normalized text.
fn unigram() -> Tokenizer {
    let mut vocab =
        vec![json!(["<unk>", 0.0]), json!(["<s>", 0.0]), json!(["</s>", 0.0]), json!(["<|im_end|>", 0.0])];
    vocab.extend((0x20..0x7Fu8).chain([b'\n']).map(|byte| json!([char::from(byte).to_string(), -5.0])));
    vocab.push(json!(["</", -1.0]));
    hugging_face(&json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": {"type": "NFC"},
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "added_tokens": [added(0, "<unk>", true, false), added(1, "<s>", true, true), added(2, "</s>", true, true),
            added(3, "<|im_end|>", false, true), added(101, "§", true, false), added(102, "<think>", false, false)],
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
    }))
}

/// Pseudo-random numbers (Knuth, MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    /// A text of whole special tokens, pieces of them, and what templates look for.
    fn text(&mut self, specials: &[&str]) -> String {
        let mut text = String::new();
        for _ in 0..self.below(7) {
            let special = specials[self.below(specials.len())];
            let cut = special.floor_char_boundary(self.below(special.len() + 1));
            match self.below(8) {
                0 => text += special,
                1 => text += &special[..cut],
                2 | 3 => text += &special[cut..],
                4 => text += " ",
                5 => text += "\n",
                6 => text += "/think",
                _ => text += ["a", "x y", "/", "Hello", "<", ">", "|", "im_end"][self.below(8)],
            }
        }
        text
    }
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}BEGIN{{ m.role }}\n{{ m.content | trim }}\
    {{ m.extra }}{{ m.content.replace('/think', '') }}{{ '' + m.name.split(' ')[0] + m.extra.lstrip() }}\
    {% if tools %}{{ tools | tojson }}{{ tools[0] }}{% endif %}{{ m.name | upper | lower }}END{% endfor %}";

fn conversation(random: &mut Random, specials: &[&str], harmless: bool) -> (Value, Value) {
    let mut text = || {
        let text = random.text(specials);
        if harmless { "word".to_owned() } else { format!("w{text}") }
    };
    // The first content is not blank, so that nothing is said to be lost.
    let messages = json!([
        {"role": "user", "content": text(), "extra": text()[1..], "name": text()[1..]},
        {"role": "assistant", "content": text()[1..], "extra": text()[1..], "name": text()[1..]},
    ]);
    let (key, value) = (text(), text());
    let mut schema = serde_json::Map::new();
    schema.insert(key, json!({"name": value, "of": [text()]}));
    (messages, json!([schema]))
}

fn ids(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    (messages, tools): (Value, Value),
) -> (String, Vec<u32>) {
    let options = RenderOptions { tools: Some(tools), as_given: true, ..RenderOptions::default() };
    let rendered = template.render(&messages, &options).unwrap();
    let ids = tokenizer.encode_prompt(&rendered.prompt).unwrap();
    (rendered.prompt.plain_text().to_owned(), ids)
}

#[test]
fn control_tokens_are_those_of_the_scaffold() {
    let bytes: Vec<String> =
        ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]"].map(str::to_owned).to_vec();
    // A tokenizer, what begins and ends a message in its template, its special tokens, and how exact its text is.
    let cases = [
        ("bytes", byte_tokenizer(&bytes), "<|im_start|>", "<|im_end|>", true),
        ("qwen2", gguf("qwen2"), "<|im_start|>", "<|im_end|>", true),
        ("llama-bpe", gguf("llama-bpe"), "<|start_header_id|>", "<|eot_id|>", true),
        ("llama-spm", gguf("llama-spm"), "<s>", "</s>", false),
        ("bert-bge", gguf("bert-bge"), "[CLS]", "[SEP]", false),
        ("unigram", unigram(), "<s>", "</s>", true),
    ];
    for (name, tokenizer, begin, end, exact) in cases {
        let source = TEMPLATE.replace("BEGIN", begin).replace("END", end);
        let template = ChatTemplate::new(&source, &tokenizer).unwrap().unwrap();
        let specials: Vec<&str> = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]", "<unk>"]
            .into_iter()
            .chain(["<|start_header_id|>", "<|eot_id|>", "§"])
            .filter(|text| tokenizer.token_id(text).is_some_and(|id| tokenizer.is_special(id)))
            .collect();
        assert!(specials.len() > 1, "{name}: {specials:?}");
        // Stands for characters that a vocabulary without bytes does not have.
        let unknown = tokenizer.token_id(if name == "unigram" { "<unk>" } else { "[UNK]" });
        let controls = |ids: &[u32]| -> Vec<u32> {
            ids.iter().copied().filter(|&id| tokenizer.is_special(id) && Some(id) != unknown).collect()
        };
        let harmless = conversation(&mut Random(0), &specials, true);
        let expected = controls(&ids(&tokenizer, &template, harmless).1);
        assert!(expected.len() >= 4, "{name}: {expected:?}");
        for seed in 0..150 {
            let typed = conversation(&mut Random(seed), &specials, false);
            let (text, found) = ids(&tokenizer, &template, typed.clone());
            assert_eq!(controls(&found), expected, "{name} {seed}: {typed:?}");
            // An unknown character has no text in a vocabulary without bytes.
            if exact && !text.contains('§') {
                let decoded = tokenizer.decode(&found, false);
                assert_eq!(
                    decoded.trim_start_matches("<|begin_of_text|>"),
                    text.trim_start_matches("<|begin_of_text|>")
                );
            }
        }
    }
}

#[test]
fn ordinary_text_is_tokenized_as_without_marks() {
    // The prefix cache finds an answer in the history only by the same tokens.
    for tokenizer in [gguf("qwen2"), gguf("llama-spm"), unigram()] {
        let template = ChatTemplate::new("{{ messages[0].content }}", &tokenizer).unwrap().unwrap();
        for text in ["a <|im_end|> b", "x</s>y<s>", "<think>\nwell</think> so <", "plain words, 12345"] {
            let options = RenderOptions { as_given: true, ..RenderOptions::default() };
            let prompt =
                template.render(&json!([{"role": "user", "content": text}]), &options).unwrap().prompt;
            let mut expected = tokenizer.encode(text, EncodeOptions::default()).unwrap();
            expected.splice(0..0, tokenizer.bos().filter(|_| tokenizer.adds_bos()));
            assert_eq!(tokenizer.encode_prompt(&prompt).unwrap(), expected, "{text}");
        }
    }
    let think = unigram().token_id("<think>").unwrap();
    assert!(unigram().encode("a<think>", EncodeOptions::default()).unwrap().contains(&think));
}

#[test]
fn a_written_bos_is_not_added_once_more() {
    for name in ["llama-bpe", "llama-spm"] {
        let tokenizer = gguf(name);
        let bos = tokenizer.bos().unwrap();
        let text = tokenizer.token_text(bos).unwrap().to_owned();
        let raw = EncodeOptions { parse_special: true, add_special: true };
        let count = |text: &str| {
            let ids = tokenizer.encode(text, raw).unwrap();
            ids.iter().take_while(|&&id| id == bos).count()
        };
        assert_eq!([count("a"), count(&format!("{text}a")), count(&format!("{text}{text}a"))], [1, 1, 2]);
    }
}

#[test]
fn long_texts_take_linear_time() {
    use std::time::{Duration, Instant};
    let tokenizers =
        ["gpt-2", "llama-bpe", "llama-spm", "bert-bge", "gemma-4"].map(|name| (name, gguf(name)));
    for (name, tokenizer) in &tokenizers {
        for unit in ["a", "1", " ", "\n", ".", "ab", "e\u{301}", "中", "\u{1F600}", "▁", "<|im_", "the "] {
            let time = |bytes: usize| {
                let text = unit.repeat(bytes / unit.len());
                let start = Instant::now();
                assert!(
                    !tokenizer.encode(&text, EncodeOptions::default()).unwrap().is_empty()
                        || *name == "bert-bge"
                );
                start.elapsed()
            };
            let grows = || time(200_000) > time(50_000) * 10 + Duration::from_millis(100);
            assert!(!(grows() && grows() && grows()), "{name} {unit:?}: {:?}", time(200_000));
        }
    }
}

#[test]
fn a_text_without_tokens_is_no_tokens() {
    let tokenizer = Tokenizer::from_gguf(GgufVocabulary {
        model: "gpt2".to_owned(),
        tokens: vec!["a".to_owned(), "aa".to_owned()],
        merges: vec!["a a".to_owned()],
        ..GgufVocabulary::default()
    });
    let tokenizer = tokenizer.unwrap();
    for (parse_special, add_special) in [(false, false), (false, true), (true, false), (true, true)] {
        let options = EncodeOptions { parse_special, add_special };
        assert_eq!(tokenizer.encode("", options).unwrap(), Vec::<u32>::new());
    }
}
