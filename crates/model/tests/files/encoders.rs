//! Encoders: what is read of their files, and what is refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use unicorn_core::{Block, Pooling};
use unicorn_model::{EmbeddingDefaults, open};

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny").join(name)
}

/// What opening says where `config.json` has other values.
fn with(changes: &[(&str, Value)]) -> Result<unicorn_model::OpenModel, String> {
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny("bert").join(name), folder.path().join(name)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(tiny("bert").join("config.json")).unwrap()).unwrap();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    open(folder.path()).map_err(|e| e.to_string())
}

#[test]
fn both_formats_are_the_same_model() {
    let [gguf, folder] = ["bert.gguf", "bert"].map(|name| open(&tiny(name)).unwrap());
    assert!(gguf.spec.is_encoder() && folder.spec.is_encoder());
    assert_eq!((gguf.spec.width, gguf.spec.vocab, gguf.spec.context_max), (32, gguf.spec.vocab, 64));
    assert_eq!((gguf.spec.blocks.len(), gguf.spec.layers()), (2 + 2 * 3, 3));
    assert!(gguf.spec.state_groups().is_empty());
    for (a, b) in gguf.spec.blocks.iter().zip(&folder.spec.blocks) {
        a.check().unwrap();
        match (a, b) {
            (Block::EncoderEmbedding { spec: a, .. }, Block::EncoderEmbedding { spec: b, .. }) => {
                assert_eq!(a, b)
            }
            (Block::EncoderAttention { spec: a, .. }, Block::EncoderAttention { spec: b, .. }) => {
                assert_eq!(a, b)
            }
            (Block::EncoderFfn { spec: a, .. }, Block::EncoderFfn { spec: b, .. }) => assert_eq!(a, b),
            (Block::EncoderHead { spec: a }, Block::EncoderHead { spec: b }) => assert_eq!(a, b),
            other => panic!("{other:?}"),
        }
    }
    let said =
        EmbeddingDefaults { pooling: Some(Pooling::Mean), normalize: Some(true), tokens_max: Some(48) };
    assert_eq!(folder.embedding_defaults().unwrap(), said);
    let said = EmbeddingDefaults { pooling: Some(Pooling::Mean), ..EmbeddingDefaults::default() };
    assert_eq!(gguf.embedding_defaults().unwrap(), said);
}

#[test]
fn both_tokenizers_give_the_same_tokens() {
    let [gguf, folder] = ["bert.gguf", "bert"].map(|name| open(&tiny(name)).unwrap().tokenizer().unwrap());
    assert!(gguf.notices.is_empty() && folder.notices.is_empty(), "{:?} {:?}", gguf.notices, folder.notices);
    let options = unicorn_text::EncodeOptions { parse_special: false, add_special: true };
    for text in ["The cat sat on the mat.", "Banking rivers, 42 of them!", "é 中 ?"] {
        let ids = folder.tokenizer.encode(text, options).unwrap();
        assert_eq!((ids.first(), ids.last()), (Some(&2), Some(&3)), "{text}");
        assert_eq!(gguf.tokenizer.encode(text, options).unwrap(), ids, "{text}");
    }
}

#[test]
fn what_computes_something_else_is_refused_by_name() {
    assert!(with(&[]).is_ok());
    for (key, value) in [
        ("hidden_act", json!("relu")),
        ("hidden_act", json!("gelu_new")),
        ("position_embedding_type", json!("relative_key")),
        ("is_decoder", json!(true)),
        ("num_attention_heads", json!(5)),
        ("layer_norm_eps", json!(0.0)),
        ("vocab_size", json!(91)),
    ] {
        let error =
            with(&[(key, value.clone())]).err().unwrap_or_else(|| panic!("{key} = {value} is opened"));
        assert!(error.contains(key), "{key} = {value}: {error}");
    }
    assert!(with(&[("num_hidden_layers", json!(4))]).unwrap_err().contains("encoder.layer.3"));
    assert!(with(&[("max_position_embeddings", json!(65))]).unwrap_err().contains("position_embeddings"));
    // Defaults are those of the class of transformers.
    assert!(with(&[("layer_norm_eps", Value::Null)]).unwrap_err().contains("layer_norm_eps"));
}
