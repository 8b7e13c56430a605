//! Shared by the integration tests: where test data lies, and just enough GGUF to read a vocabulary.

#![allow(dead_code)] // each test uses its own part

use std::path::{Path, PathBuf};

use unicorn_text::{GgufVocabulary, Tokenizer};

/// The `models/` folder of llama.cpp's source, which `cargo xtask test` fetches.
pub fn llama_cpp_models() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-data/llama.cpp-models");
    assert!(
        path.is_dir(),
        "{} is missing: `cargo xtask test` puts llama.cpp's models/ folder there (from the source \
         distribution of the PyPI package llama-cpp-python 0.3.36)",
        path.display()
    );
    path
}

/// A byte-level tokenizer with these control tokens, of which the first two are BOS and EOS.
pub fn byte_tokenizer(controls: &[String]) -> Tokenizer {
    // The printable stand-ins of GPT-2: a byte that is printable stands for itself.
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut tokens: Vec<String> =
        (0..=255u8).filter(printable).map(|byte| char::from(byte).to_string()).collect();
    tokens.extend((0x100..).take(256 - tokens.len()).filter_map(char::from_u32).map(String::from));
    tokens.push("ab".to_owned());
    let mut token_types = vec![1; tokens.len()];
    let id = |at: usize| controls.get(at).map(|_| (tokens.len() + at) as u32);
    let (bos, eos) = (id(0), id(1));
    tokens.extend(controls.iter().cloned());
    token_types.resize(tokens.len(), 3);
    Tokenizer::from_gguf(GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens,
        token_types,
        merges: vec!["a b".to_owned()],
        bos,
        eos,
        ..GgufVocabulary::default()
    })
    .unwrap()
}

/// Reads the tokenizer metadata of a GGUF file.
pub fn read_vocabulary(path: &Path) -> GgufVocabulary {
    let bytes = std::fs::read(path).unwrap();
    let mut reader = Reader { bytes: &bytes, at: 0 };
    assert_eq!(reader.take(4), b"GGUF");
    let _version = reader.u32();
    let _tensors = reader.u64();
    let mut vocabulary = GgufVocabulary::default();
    for _ in 0..reader.u64() {
        let key = reader.string();
        let value = reader.value();
        set(&mut vocabulary, &key, value);
    }
    vocabulary
}

fn set(vocabulary: &mut GgufVocabulary, key: &str, value: Value) {
    let v = vocabulary;
    match (key.strip_prefix("tokenizer.ggml.").unwrap_or(key), value) {
        ("general.name", Value::String(name)) => v.name = Some(name),
        ("model", Value::String(model)) => v.model = model,
        ("pre", Value::String(pre)) => v.pre = Some(pre),
        ("tokens", Value::Strings(tokens)) => v.tokens = tokens,
        ("merges", Value::Strings(merges)) => v.merges = merges,
        ("scores", Value::Numbers(scores)) => v.scores = scores.iter().map(|&s| s as f32).collect(),
        ("token_type", Value::Numbers(types)) => v.token_types = types.iter().map(|&t| t as i32).collect(),
        ("bos_token_id", Value::Number(id)) => v.bos = Some(id as u32),
        ("eos_token_id", Value::Number(id)) => v.eos = Some(id as u32),
        ("eot_token_id", Value::Number(id)) => v.eot = Some(id as u32),
        ("eom_token_id", Value::Number(id)) => v.eom = Some(id as u32),
        ("unknown_token_id", Value::Number(id)) => v.unk = Some(id as u32),
        ("seperator_token_id", Value::Number(id)) => v.sep = Some(id as u32),
        ("padding_token_id", Value::Number(id)) => v.pad = Some(id as u32),
        ("mask_token_id", Value::Number(id)) => v.mask = Some(id as u32),
        ("cls_token_id", Value::Number(id)) => v.cls = Some(id as u32),
        ("add_bos_token", Value::Number(flag)) => v.add_bos = Some(flag != 0.0),
        ("add_eos_token", Value::Number(flag)) => v.add_eos = Some(flag != 0.0),
        ("add_space_prefix", Value::Number(flag)) => v.add_space_prefix = Some(flag != 0.0),
        _ => {}
    }
}

enum Value {
    Number(f64),
    String(String),
    Numbers(Vec<f64>),
    Strings(Vec<String>),
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> &'b [u8] {
        let taken = &self.bytes[self.at..self.at + length];
        self.at += length;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn number(&mut self, kind: u32) -> f64 {
        match kind {
            0 | 7 => f64::from(self.take(1)[0]),
            1 => f64::from(self.take(1)[0] as i8),
            2 => f64::from(u16::from_le_bytes(self.take(2).try_into().unwrap())),
            3 => f64::from(i16::from_le_bytes(self.take(2).try_into().unwrap())),
            4 => f64::from(self.u32()),
            5 => f64::from(self.u32() as i32),
            6 => f64::from(f32::from_bits(self.u32())),
            10 | 11 => self.u64() as f64,
            12 => f64::from_bits(self.u64()),
            other => panic!("GGUF value type {other}"),
        }
    }

    fn value(&mut self) -> Value {
        match self.u32() {
            8 => Value::String(self.string()),
            9 => {
                let kind = self.u32();
                let length = self.u64();
                if kind == 8 {
                    return Value::Strings((0..length).map(|_| self.string()).collect());
                }
                Value::Numbers((0..length).map(|_| self.number(kind)).collect())
            }
            kind => Value::Number(self.number(kind)),
        }
    }
}
