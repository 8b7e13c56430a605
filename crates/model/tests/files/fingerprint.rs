//! What tells one model from another.

use std::path::Path;

use serde_json::json;
use unicorn_model::open;

use crate::writer::{Gguf, V, safetensors_zeros, tiny, tiny_tensors};

fn of(path: &Path) -> [u8; 32] {
    open(path).unwrap().fingerprint().unwrap()
}

/// A tensor that is read in part only.
const LARGE: usize = 64 << 10;

fn with_large() -> Gguf {
    tiny("llama", 1).f32("large.weight", &[32, 512])
}

#[test]
fn a_name_does_not_count_and_every_sampled_byte_does() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_large();
    let first = of(&model.save(dir.path(), "a.gguf"));
    assert_eq!(of(&model.save(dir.path(), "another.gguf")), first);

    let changed = |change: &dyn Fn(&mut Gguf)| {
        let mut model = with_large();
        change(&mut model);
        of(&model.save(dir.path(), "a.gguf"))
    };
    let byte = |at: usize| {
        changed(&|model: &mut Gguf| {
            let tensor = model.tensor("large.weight");
            tensor.data = vec![0; LARGE];
            tensor.data[at] = 1;
        })
    };
    let sampled = [0, 4095, LARGE - 4096, LARGE - 1].map(byte);
    for (i, seen) in sampled.iter().enumerate() {
        assert!(*seen != first && !sampled[..i].contains(seen), "{i}");
    }
    // This is what it does not see, and what its documentation says.
    assert_eq!(byte(LARGE / 2), first);

    // A small tensor is read as a whole.
    let small = changed(&|model| model.tensor("blk.0.ffn_up.weight").data = vec![0, 0, 0, 0, 1]);
    assert_ne!(small, first);
    assert_ne!(changed(&|model| model.set("llama.rope.freq_base", V::F32(10_001.0))), first);
    assert_ne!(changed(&|model| model.tensors.swap(0, 1)), first);
    assert_ne!(changed(&|model| *model = tiny("llama", 1)), first);
}

#[test]
fn shards_count_all() {
    let dir = tempfile::tempdir().unwrap();
    let whole = with_large();
    let save = |name: &str, byte: u8| {
        let folder = dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..2 {
            let mut shard = Gguf { keys: whole.keys.clone(), ..Gguf::default() };
            shard.set("split.no", V::U32(i));
            shard.set("split.count", V::U32(2));
            shard.set("split.tensors.count", V::I32(whole.tensors.len() as i32));
            shard.tensors = whole.tensors.iter().skip(i as usize).step_by(2).cloned().collect();
            if i == 1 {
                shard.tensors.last_mut().unwrap().data = vec![byte];
            }
            shard.save(&folder, &format!("m-{:05}-of-00002.gguf", i + 1));
        }
        of(&folder.join("m-00001-of-00002.gguf"))
    };
    let first = save("a", 0);
    assert_eq!(save("b", 0), first);
    assert_ne!(save("a", 1), first);
}

#[test]
fn directories_count_their_config_too() {
    let save = |base: f64, byte: u8| {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1,
            "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": base});
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let mut weights = safetensors_zeros("F16", 2, &tiny_tensors("Llama", "model.", 1));
        *weights.last_mut().unwrap() = byte;
        std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        of(dir.path())
    };
    let first = save(10_000.0, 0);
    assert_eq!(save(10_000.0, 0), first);
    assert_ne!(save(20_000.0, 0), first);
    assert_ne!(save(10_000.0, 1), first);
}

#[test]
fn a_file_that_was_cut_off_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = with_large().save(dir.path(), "a.gguf");
    let model = open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(3000).unwrap();
    let error = model.fingerprint().unwrap_err().to_string();
    assert!(error.contains("a.gguf: file ends before byte"), "{error}");
}
