//! Files that are no models, and what can be told before a model is fetched.

use std::path::Path;

use serde_json::json;
use unicorn_model::{HeaderVerdict, check_config, check_gguf_header, inspect, open, open_tokenizer};

use crate::hugging_face::{config, save, with};
use crate::writer::{V, safetensors_zeros, tiny, tiny_tensors};

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:3b0c\nsize 98362432\n";

#[track_caller]
fn error(path: &Path) -> String {
    open(path).map(|m| m.spec).unwrap_err().to_string()
}

#[test]
fn wrong_files_by_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, what) in [
        ("pointer.gguf", POINTER.as_bytes(), "a Git LFS pointer, not the file"),
        ("pointer.safetensors", POINTER.as_bytes(), "a Git LFS pointer, not the file"),
        ("page.gguf", b"<!DOCTYPE html><html></html>", "an HTML page, not a model"),
        ("page.safetensors", b"<html></html>", "an HTML page, not a model"),
        ("answer.gguf", br#"{"error":"Repository not found"}"#, "Repository not found"),
        ("empty.safetensors", b"", "an empty file"),
        ("old.bin", b"lmgg\x01\0\0\0\0\0", "ggml format of before 2023"),
        ("old.gguf", b"tjgg\x03\0\0\0\0\0", "ggjt format of before 2023"),
        ("pytorch_model.bin", b"PK\x03\x04\x00\x00", "a PyTorch checkpoint; convert it to safetensors"),
        ("model.pth", b"\x80\x02}q\x00.", "a PyTorch checkpoint; convert it to safetensors"),
        ("model.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX model"),
        ("model.gguf.zip", b"PK\x03\x04\x00\x00", "a zip archive"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let text = error(&path);
        assert!(text.contains(what), "{name}: {text}");
        assert_eq!(text.matches(name).count(), 1, "{text}");
        assert_eq!(inspect(&path).unwrap_err().to_string(), text);
    }
    // The magic decides, not the name.
    tiny("llama", 1).save(dir.path(), "named.safetensors");
    open(&dir.path().join("named.safetensors")).unwrap();
}

#[test]
fn folders_with_wrong_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    save(dir.path(), &config("LlamaForCausalLM", 1), "F32", &tiny_tensors("Llama", "model.", 1));
    let weights = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    write("model.safetensors", POINTER.as_bytes());
    assert!(error(dir.path()).ends_with("(`git lfs pull` fetches it)"), "{}", error(dir.path()));
    write("model.safetensors", &weights);
    open(dir.path()).unwrap();
    write("tokenizer.json", POINTER.as_bytes());
    let text = open_tokenizer(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("tokenizer.json: a Git LFS pointer"), "{text}");
    write("config.json", b"<html>");
    assert!(error(dir.path()).ends_with("config.json: an HTML page, not a model"), "{}", error(dir.path()));
    write("config.json", config("LlamaForCausalLM", 1).to_string().as_bytes());
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    write("model-00001-of-00002.safetensors", &weights);
    let text = error(dir.path());
    assert!(text.contains("shards without model.safetensors.index.json"), "{text}");
    let text = error(&dir.path().join("model-00001-of-00002.safetensors"));
    assert!(text.contains("one of 2 shards; give the folder"), "{text}");
    write("model.safetensors.index.json", POINTER.as_bytes());
    assert!(error(dir.path()).contains("index.json: a Git LFS pointer"), "{}", error(dir.path()));
}

#[test]
fn projectors_and_damaged_files_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let projector = tiny("clip", 1);
    tiny("llama", 1).save(dir.path(), "X-Q4_K_M.gguf");
    projector.save(dir.path(), "X.mmproj-f16.gguf");
    projector.save(dir.path(), "mmproj-X.gguf");
    // By what it says inside, whatever its name.
    projector.save(dir.path(), "vision.gguf");
    let model = open(dir.path()).unwrap();
    assert!(inspect(dir.path()).unwrap().files[0].ends_with("X-Q4_K_M.gguf") && model.notices.is_empty());
    std::fs::write(dir.path().join("A.gguf"), POINTER).unwrap();
    let model = open(dir.path()).unwrap();
    let text = model.notices[0].to_string();
    assert!(text.contains("A.gguf is left out of account: a Git LFS pointer"), "{text}");
    let text = error(&dir.path().join("vision.gguf"));
    assert!(text.contains("a vision projector"), "{text}");
    for name in ["X-Q4_K_M.gguf", "vision.gguf"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    assert!(error(dir.path()).contains("A.gguf: a Git LFS pointer"), "{}", error(dir.path()));
    std::fs::remove_file(dir.path().join("A.gguf")).unwrap();
    assert!(error(dir.path()).contains("is a vision projector"), "{}", error(dir.path()));
}

#[test]
fn quantized_checkpoints() {
    let base = || config("Qwen2ForCausalLM", 1);
    for (changes, method) in [
        (json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "GPTQ"),
        (json!({"quantization_config": {"quant_method": "awq"}}), "AWQ"),
        (json!({"quantization_config": {"quant_method": "fp8"}}), "FP8"),
        (json!({"quantization_config": {"quant_method": "mxfp4"}}), "MXFP4"),
        (
            json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}),
            "bitsandbytes",
        ),
        (json!({"quantization_config": {"load_in_8bit": true}}), "bitsandbytes"),
        (json!({"quantization_config": {"quant_method": "compressed-tensors"}}), "compressed-tensors"),
        (json!({"quantization_config": {"quant_method": "brand-new"}}), "brand-new"),
        (json!({"compression_config": {"format": "pack-quantized"}}), "compressed-tensors"),
        (json!({"quantization": {"group_size": 64, "bits": 4}}), "MLX"),
        (
            json!({"text_config": with(base(), json!({"quantization_config": {"quant_method": "hqq"}}))}),
            "HQQ",
        ),
    ] {
        let text = check_config(&with(base(), changes).to_string()).unwrap_err().to_string();
        assert_eq!(text, format!("quantized with {method}, which unicorn does not read"));
    }
    check_config(&with(base(), json!({"quantization_config": null})).to_string()).unwrap();
    // Where the configuration does not tell, the tensors do.
    let dir = tempfile::tempdir().unwrap();
    for (ending, method) in [
        ("g_idx", "GPTQ"),
        ("qweight", "GPTQ or AWQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight_scale_inv", "FP8"),
        ("weight.absmax", "bitsandbytes"),
        ("SCB", "bitsandbytes"),
        ("W_q", "HQQ"),
        ("codebooks", "AQLM"),
        ("scales", "MLX"),
    ] {
        let mut tensors = tiny_tensors("Qwen2", "model.", 1);
        tensors.push((format!("model.layers.0.mlp.up_proj.{ending}"), vec![4]));
        save(dir.path(), &base(), "F32", &tensors);
        assert_eq!(error(dir.path()), format!("quantized with {method}, which unicorn does not read"));
    }
    std::fs::write(
        dir.path().join("model.safetensors"),
        safetensors_zeros("F8_E4M3", 1, &tiny_tensors("Qwen2", "model.", 1)),
    )
    .unwrap();
    assert_eq!(error(dir.path()), "quantized with FP8, which unicorn does not read");
}

#[test]
fn a_configuration_is_judged_before_the_weights_are_there() {
    for class in [
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma3ForCausalLM",
    ] {
        check_config(&config(class, 6).to_string()).unwrap();
    }
    let fails = |text: &str| check_config(text).unwrap_err().to_string();
    assert!(
        fails(&config("MambaForCausalLM", 1).to_string())
            .starts_with("unknown architecture \"MambaForCausalLM\"")
    );
    let moe = with(config("Qwen3ForCausalLM", 1), json!({"num_experts": 64}));
    assert!(fails(&moe.to_string()).contains("mixture of experts"));
    let rope =
        with(config("LlamaForCausalLM", 1), json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}));
    assert!(fails(&rope.to_string()).contains("\"dynamic\" is not supported"));
    assert!(fails("{}").contains("architectures is missing"));
    assert!(fails("<html>").contains("an HTML page"));
    assert!(fails(POINTER).contains("Git LFS pointer"));
    assert!(fails("{").contains("config.json: EOF"));
}

#[test]
fn a_gguf_is_judged_by_its_first_bytes() {
    let g = tiny("qwen3", 1);
    let (bytes, head) = (g.bytes(), g.head().len());
    for len in 0..head {
        assert_eq!(check_gguf_header(&bytes[..len]).unwrap(), HeaderVerdict::Incomplete, "{len}");
    }
    for len in [head, head + 1, bytes.len()] {
        assert_eq!(check_gguf_header(&bytes[..len]).unwrap(), HeaderVerdict::Runs, "{len}");
    }
    let fails = |bytes: &[u8]| check_gguf_header(bytes).unwrap_err().to_string();
    // The architecture is the first key.
    let other = tiny("mamba", 1).bytes();
    assert!(fails(&other[..100]).starts_with("unknown architecture \"mamba\""));
    assert!(fails(&tiny("clip", 1).bytes()[..100]).contains("a vision projector"));
    let mut adapter = tiny("llama", 1);
    adapter.keys.insert(1, ("general.type".into(), V::Str("adapter")));
    assert!(fails(&adapter.bytes()[..150]).contains("an adapter (LoRA)"));
    let mut moe = tiny("llama", 1);
    moe.keys.insert(1, ("llama.expert_count".into(), V::U32(8)));
    assert!(fails(&moe.bytes()[..200]).contains("mixture of experts"));
    let mut types = tiny("llama", 1);
    types.tensor("blk.0.attn_q.weight").ty = 26;
    assert!(fails(&types.head()).contains("element type I32 is not supported"));
    assert!(fails(POINTER.as_bytes()).contains("a Git LFS pointer"));
    assert!(fails(b"GGUF\x09\0\0\0").contains("version 9 is not supported"));
    let mut missing = tiny("llama", 1);
    missing.keys.retain(|k| k.0 != "llama.context_length");
    assert_eq!(fails(&missing.bytes()), "key llama.context_length is missing");
    // A first shard describes only some of the tensors.
    let mut shard = tiny("llama", 1).without("blk.0.attn_q.weight").key("split.count", V::U32(2));
    shard.set("split.no", V::U32(0));
    assert_eq!(check_gguf_header(&shard.bytes()).unwrap(), HeaderVerdict::Runs);
}

#[test]
fn names_from_files_are_escaped() {
    let evil = "evil\u{1b}[31m\u{202e}\nname";
    let with_tensor = tiny("llama", 1).f32(format!("blk.0.{evil}"), &[4]);
    let dir = tempfile::tempdir().unwrap();
    let mut texts = vec![
        error(&with_tensor.save(dir.path(), "tensor.gguf")),
        error(&tiny("ev\u{1b}[31mil", 1).save(dir.path(), "architecture.gguf")),
    ];
    let mut twice = tiny("llama", 1);
    twice.keys.push((evil.to_owned(), V::U8(1)));
    twice.keys.push((evil.to_owned(), V::U8(1)));
    texts.push(error(&twice.save(dir.path(), "key.gguf")));
    let unknown = tiny("llama", 1).key(&format!("llama.{evil}"), V::U8(1));
    texts.push(open(&unknown.save(dir.path(), "notice.gguf")).unwrap().notices[0].to_string());
    let pre = tiny("llama", 1).key("tokenizer.ggml.pre", V::Str("ev\u{1b}[31mil"));
    let model = open(&pre.save(dir.path(), "pre.gguf")).unwrap();
    texts.push(model.tokenizer().map(|_| ()).unwrap_err().to_string());
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), &with(config("LlamaForCausalLM", 1), json!({"architectures": [evil]})), "F32", &[]);
    texts.push(error(folder.path()));
    let header = json!({evil: {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}).to_string();
    std::fs::write(folder.path().join("model.safetensors"), crate::writer::safetensors(&header, &[0; 4]))
        .unwrap();
    texts.push(error(folder.path()));
    for text in texts {
        assert!(text.contains("\\u{1b}[31m"), "{text:?}");
        assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
    }
}
