//! Damaged files: whatever the bytes, opening and inspecting end in a value or an error.

use std::path::Path;

use proptest::prelude::*;
use unicorn_model::{gguf, inspect, open, safetensors};

use crate::writer::{Gguf, V, safetensors_zeros, string, tiny, tiny_tensors};

/// Everything that reads a file.
fn exercise(path: &Path) {
    let _ = inspect(path);
    if let Ok(bytes) = std::fs::read(path) {
        let _ = unicorn_model::check_gguf_header(&bytes);
    }
    if let Ok(model) = open(path) {
        let _ = model.tokenizer();
        let _ = model.chat_template();
        let _ = model.generation_defaults();
    }
}

/// A generator that needs no seed file: xorshift64.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn flipped_bytes_of_a_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let g = tiny("gemma3", 1).key("gemma3.attention.sliding_window", V::U32(4));
    let (bytes, head) = (g.bytes(), g.head().len());
    for i in 0..head {
        for flip in [0x01, 0xff] {
            let mut bad = bytes.clone();
            bad[i] ^= flip;
            std::fs::write(&path, &bad).unwrap();
            exercise(&path);
        }
    }
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..1000 {
        let mut bad = bytes.clone();
        for _ in 0..1 + random(&mut state) % 8 {
            let at = random(&mut state) as usize % head;
            bad[at] = random(&mut state) as u8;
        }
        std::fs::write(&path, &bad).unwrap();
        exercise(&path);
    }
}

#[test]
fn flipped_bytes_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures":["Qwen3ForCausalLM"],"hidden_size":32,"num_hidden_layers":1,"intermediate_size":64,
        "num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"max_position_embeddings":64,
        "rope_scaling":{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":16}}"#;
    let weights = safetensors_zeros("BF16", 2, &tiny_tensors("Qwen3", "model.", 1));
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize + 8;
    let (config_path, weights_path) = (dir.path().join("config.json"), dir.path().join("model.safetensors"));
    std::fs::write(&config_path, config).unwrap();
    for i in 0..header {
        let mut bad = weights.clone();
        bad[i] ^= 0x04;
        std::fs::write(&weights_path, &bad).unwrap();
        exercise(dir.path());
    }
    std::fs::write(&weights_path, &weights).unwrap();
    open(dir.path()).unwrap();
    for i in 0..config.len() {
        for byte in [b'0', b'9', b'"', b'-'] {
            let mut bad = config.as_bytes().to_vec();
            bad[i] = byte;
            std::fs::write(&config_path, &bad).unwrap();
            exercise(dir.path());
        }
    }
}

#[test]
fn truncation_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let g = tiny("llama", 1);
    let (bytes, head) = (g.bytes(), g.head().len());
    for len in (0..head).chain((head..bytes.len()).step_by(997)) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(open(&path).is_err(), "{len}");
        assert!(inspect(&path).is_err(), "{len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = gguf::parse(&bytes[..]);
        let _ = safetensors::parse(&bytes[..]);
        let mut headed = b"GGUF\x03\0\0\0".to_vec();
        headed.extend(&bytes);
        let _ = gguf::parse(&headed[..]);
    }

    /// What was written is what is read.
    #[test]
    fn round_trip(
        ints in prop::collection::vec(any::<u32>(), 0..40),
        shapes in prop::collection::vec(prop::collection::vec(1u64..5, 0..5), 0..6),
    ) {
        let mut g = Gguf::default().key("ints", V::U32s(ints.clone()));
        for (i, shape) in shapes.iter().enumerate() {
            g = g.f32(format!("t{i}"), shape);
        }
        let bytes = g.bytes();
        let p = gguf::parse(&bytes[..]).unwrap();
        prop_assert_eq!(p.ints("ints").unwrap().unwrap(), ints.iter().map(|i| *i as u64).collect::<Vec<_>>());
        for (t, shape) in p.tensors().iter().zip(&shapes) {
            prop_assert_eq!(t.shape.iter().rev().copied().collect::<Vec<_>>(), shape.clone());
            prop_assert!(t.offset + t.bytes <= bytes.len() as u64);
        }
        prop_assert_eq!(p.tensors().len(), shapes.len());
    }

    /// Accepted tensors lie inside the file and apart from each other, however their infos are made.
    #[test]
    fn accepted_tensors_are_disjoint(
        infos in prop::collection::vec((prop::collection::vec(1u64..40, 1..4), 0u32..32, 0u64..20), 1..5),
        data in 0usize..4000,
    ) {
        let mut g = Gguf::default();
        for (i, (dims, ty, offset)) in infos.iter().enumerate() {
            g = g.f32(format!("t{i}"), dims);
            let t = g.tensor(&format!("t{i}"));
            (t.ty, t.offset) = (*ty, Some(offset * 32));
        }
        let mut bytes = g.head();
        bytes.resize(bytes.len() + data, 0);
        if let Ok(p) = gguf::parse(&bytes[..]) {
            let mut ranges: Vec<_> = p.tensors().iter().map(|t| (t.offset, t.offset + t.bytes)).collect();
            ranges.sort_unstable();
            prop_assert!(ranges.iter().all(|r| r.1 <= bytes.len() as u64));
            prop_assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0));
        }
    }

    #[test]
    fn any_string_length(len in any::<u64>()) {
        let mut bytes = Gguf { key_count: Some(1), ..Gguf::default() }.head();
        bytes.extend(string("k"));
        bytes.extend(8u32.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend([b'x'; 40]);
        prop_assert_eq!(gguf::parse(&bytes[..]).is_ok(), len <= 40);
    }
}
