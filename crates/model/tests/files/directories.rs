//! What belongs together: shards, indices, directories.

use std::path::Path;

use serde_json::json;
use unicorn_core::WeightSource;
use unicorn_model::{inspect, open};

use crate::architectures::attention;
use crate::writer::{Gguf, V, safetensors_zeros, tiny, tiny_tensors};

/// A tiny llama in three shards: the first carries the metadata.
fn shards() -> Vec<Gguf> {
    let whole = tiny("llama", 2);
    let mut shards: Vec<Gguf> = (0..3).map(|_| Gguf::default()).collect();
    shards[0].keys = whole.keys.clone();
    for (i, t) in whole.tensors.iter().enumerate() {
        shards[i % 3].tensors.push(t.clone());
    }
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.set("split.no", V::U32(i as u32));
        shard.set("split.count", V::U32(3));
        shard.set("split.tensors.count", V::I32(whole.tensors.len() as i32));
    }
    shards
}

fn name(i: usize) -> String {
    format!("m-{:05}-of-00003.gguf", i + 1)
}

fn save(dir: &Path, shards: &[Gguf]) {
    for (i, shard) in shards.iter().enumerate() {
        shard.save(dir, &name(i));
    }
}

#[track_caller]
fn error(path: &Path) -> String {
    open(path).map(|m| m.spec).unwrap_err().to_string()
}

#[test]
fn gguf_shards() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = shards();
    parts[2].tensor("blk.0.attn_v.weight").data = vec![9; 4];
    save(dir.path(), &parts);
    let whole = tiny("llama", 2);
    for path in [dir.path().to_owned(), dir.path().join(name(0)), dir.path().join(name(2))] {
        let model = open(&path).unwrap();
        assert_eq!(model.spec.layers(), 2);
        assert_eq!(inspect(&path).unwrap().files.len(), 3);
        let v = &attention(&model.spec, 0).1.v;
        assert_eq!(v.span.file, 2);
        let mut buf = [0; 5];
        model.source.read(&v.span, 0, &mut buf).unwrap();
        assert_eq!(buf, [9, 9, 9, 9, 0]);
        assert_eq!(inspect(&path).unwrap().tensors.len(), whole.tensors.len());
    }
}

#[test]
fn broken_gguf_shards() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join(name(0));
    save(dir.path(), &shards());
    std::fs::remove_file(dir.path().join(name(1))).unwrap();
    assert!(error(&first).ends_with("m-00002-of-00003.gguf: shard 2 of 3 is missing"), "{}", error(&first));

    let mut parts = shards();
    parts[1].set("split.no", V::U32(2));
    save(dir.path(), &parts);
    assert!(error(&first).ends_with("m-00002-of-00003.gguf: split.no is 2, expected 1"), "{}", error(&first));

    let mut parts = shards();
    parts[2].set("split.count", V::U32(4));
    save(dir.path(), &parts);
    assert!(error(&first).ends_with("split.count is 4, expected 3"), "{}", error(&first));

    let mut parts = shards();
    parts[2].tensors.pop();
    save(dir.path(), &parts);
    assert!(error(&first).contains("number of tensors in all shards is"), "{}", error(&first));

    let mut parts = shards();
    let twice = parts[1].tensors[0].clone();
    parts[2].tensors[0] = twice.clone();
    save(dir.path(), &parts);
    assert!(error(&first).ends_with(&format!("tensor {} occurs twice", twice.name)), "{}", error(&first));

    let renamed = shards()[0].save(dir.path(), "renamed.gguf");
    assert!(error(&renamed).contains("not named like"), "{}", error(&renamed));
    for count in [1 << 30, u32::MAX] {
        let mut part = shards()[0].clone();
        part.set("split.count", V::U32(count));
        assert!(error(&part.save(dir.path(), &name(0))).contains("split.count"));
    }
}

#[test]
fn duplicate_tensors_in_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny("llama", 1).f32("output_norm.weight", &[32]).save(dir.path(), "m.gguf");
    assert!(error(&path).ends_with("tensor output_norm.weight occurs twice"));
}

#[test]
fn directories() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(dir.path()).contains("neither config.json with safetensors nor a .gguf"));
    tiny("llama", 1).save(dir.path(), "a.gguf");
    tiny("llama", 1).save(dir.path(), "mmproj-a.gguf");
    assert_eq!(open(dir.path()).unwrap().spec.layers(), 1);
    tiny("llama", 1).save(dir.path(), "b.gguf");
    assert!(error(dir.path()).ends_with("name one of them: a.gguf, b.gguf"), "{}", error(dir.path()));
    let other = dir.path().join("notes.txt");
    std::fs::write(&other, "hello").unwrap();
    assert!(error(&other).contains("a text that begins with \"hello\", not a model"));
    std::fs::write(&other, [7; 2000]).unwrap();
    assert!(error(&other).contains("neither a GGUF file nor *.safetensors"));
    assert!(error(&dir.path().join("absent.gguf")).contains("absent.gguf"));
    std::fs::write(dir.path().join("empty.gguf"), "").unwrap();
    assert!(error(&dir.path().join("empty.gguf")).ends_with("empty.gguf: an empty file, not a model"));
    // The magic decides for files without an extension.
    tiny("llama", 1).save(dir.path(), "blob");
    open(&dir.path().join("blob")).unwrap();
}

#[test]
fn inspection_of_an_unknown_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny("mamba", 1).key("general.name", V::Str("a\x1b[2Jb")).save(dir.path(), "m.gguf");
    let i = inspect(&path).unwrap();
    assert_eq!((i.architecture.as_deref(), i.tensors.len()), (Some("mamba"), 11));
    let name = i.metadata.iter().find(|m| m.key == "general.name").unwrap();
    assert_eq!(name.value, "a\\u{1b}[2Jb");
}

#[test]
fn safetensors_shards() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
    let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1,
        "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64});
    write("config.json", config.to_string().as_bytes());
    let tensors = tiny_tensors("Llama", "model.", 1);
    let (a, b) = tensors.split_at(4);
    write("x-1.safetensors", &safetensors_zeros("F32", 4, a));
    write("x-2.safetensors", &safetensors_zeros("F16", 2, b));
    let index = |second: &str| {
        let name = |i: usize| if i < 4 { "x-1.safetensors" } else { second };
        let map: serde_json::Map<_, _> =
            tensors.iter().enumerate().map(|(i, t)| (t.0.clone(), name(i).into())).collect();
        write("model.safetensors.index.json", json!({"weight_map": map}).to_string().as_bytes());
    };
    index("x-2.safetensors");
    let model = open(dir.path()).unwrap();
    assert_eq!(attention(&model.spec, 0).1.norm.span.file, 0);
    assert_eq!(attention(&model.spec, 0).1.v.span.file, 1);
    let i = inspect(dir.path()).unwrap();
    assert_eq!((i.format.as_str(), i.files.len(), i.totals.len()), ("safetensors", 2, 2));
    // A lone shard can be inspected.
    assert_eq!(inspect(&dir.path().join("x-1.safetensors")).unwrap().tensors.len(), 4);
    index("x-3.safetensors");
    assert!(error(dir.path()).ends_with("x-3.safetensors: shard 2 of 2 is missing"), "{}", error(dir.path()));
    index("../x-2.safetensors");
    assert!(error(dir.path()).contains("not a plain file name"), "{}", error(dir.path()));
    index("x-1.safetensors");
    assert!(error(dir.path()).contains("which does not hold it"), "{}", error(dir.path()));
    write("model.safetensors.index.json", b"{}");
    assert!(error(dir.path()).contains("weight_map"), "{}", error(dir.path()));
    write("config.json", b"{");
    assert!(error(dir.path()).contains("config.json: EOF"), "{}", error(dir.path()));
}

#[test]
fn file_truncated_while_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny("llama", 1).save(dir.path(), "m.gguf");
    let model = open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let text =
        model.source.read(&attention(&model.spec, 0).1.v.span, 0, &mut [0; 8]).unwrap_err().to_string();
    assert!(text.contains("m.gguf: file ends before byte"), "{text}");
}
