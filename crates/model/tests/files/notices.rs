//! What is told of a model that opens: guesses, recommendations that cannot be followed, files that are missing.

use std::path::Path;

use serde_json::{Value, json};
use unicorn_model::{OpenModel, open, open_tokenizer};

use crate::architectures::open_gguf;
use crate::hugging_face::{config, open_with, save, with};
use crate::writer::{Gguf, V, array, tiny, tiny_tensors};

fn told(model: &OpenModel) -> Vec<String> {
    model.notices.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn assert_told(model: &OpenModel, parts: &[&str]) {
    let told = told(model);
    let found = told.iter().any(|text| parts.iter().all(|part| text.contains(part)));
    assert!(found, "{parts:?} is not among {told:?}");
}

fn lacking(mut g: Gguf, key: &str) -> Gguf {
    g.keys.retain(|k| k.0 != key);
    g
}

#[test]
fn guesses_about_tokens() {
    assert!(told(&open_gguf(&tiny("qwen2", 1)).unwrap()).is_empty());
    for pre in [None, Some(""), Some(" ")] {
        let mut g = lacking(tiny("qwen2", 1), "tokenizer.ggml.pre");
        pre.into_iter().for_each(|pre| g.set("tokenizer.ggml.pre", V::Str(pre)));
        let model = open_gguf(&g).unwrap();
        assert_told(&model, &["m.gguf: key tokenizer.ggml.pre is missing", "\"default\" is assumed"]);
        let dir = tempfile::tempdir().unwrap();
        let notices = open_tokenizer(&g.save(dir.path(), "m.gguf")).unwrap().notices;
        assert!(notices[0].to_string().contains("tokenizer.ggml.pre"), "{notices:?}");
    }
    let model = open_gguf(&lacking(tiny("qwen2", 1), "tokenizer.ggml.token_type")).unwrap();
    assert_told(&model, &["key tokenizer.ggml.token_type is missing", "ordinary"]);
    let types = [1, 9, 1, 1, 7, 3].iter().flat_map(|t: &i32| t.to_le_bytes());
    let g = tiny("qwen2", 1).key("tokenizer.ggml.token_type", V::Raw(9, array(5, 6, types)));
    assert_told(
        &open_gguf(&g).unwrap(),
        &["key tokenizer.ggml.token_type", "2 tokens are of unknown types such as 9"],
    );
    let spm = lacking(tiny("llama", 1), "tokenizer.ggml.eos_token_id")
        .key("tokenizer.ggml.model", V::Str("llama"))
        .key("tokenizer.ggml.scores", V::F32s(vec![0.0; 6]));
    let model = open_gguf(&spm).unwrap();
    assert_told(&model, &["key tokenizer.ggml.bos_token_id is missing", "token 1 is assumed"]);
    assert_told(&model, &["key tokenizer.ggml.eos_token_id is missing", "token 2 is assumed"]);
}

#[test]
fn end_tokens_of_a_gguf() {
    let ends = |g: &Gguf| {
        let model = open_gguf(g).unwrap();
        // Built from the tokenizer's own reading of the file.
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = open(&g.save(dir.path(), "m.gguf")).unwrap().tokenizer().unwrap().tokenizer;
        (tokenizer.end_tokens().to_vec(), told(&model))
    };
    let g = tiny("qwen2", 1)
        .key("tokenizer.ggml.eos_token_id", V::U32(0))
        .key("tokenizer.ggml.eot_token_id", V::U32(1))
        .key("tokenizer.ggml.eom_token_id", V::I32(2))
        .key("tokenizer.ggml.eos_token_ids", V::U32s(vec![0, 3]));
    // The last is `<|end|>`, known by its text.
    assert_eq!(ends(&g), (vec![0, 1, 2, 3, 5], vec![]));
    let one = tiny("qwen2", 1).key("tokenizer.ggml.eos_token_ids", V::U32(4));
    assert_eq!(ends(&one).0, [4, 5]);
    let bad = tiny("qwen2", 1)
        .key("tokenizer.ggml.eos_token_id", V::U32(600))
        .key("tokenizer.ggml.eot_token_id", V::I32(-7))
        .key("tokenizer.ggml.eom_token_id", V::Str("x"))
        .key("tokenizer.ggml.bos_token_id", V::U32(6))
        .key("tokenizer.ggml.eos_token_ids", V::U32s(vec![3, 9]));
    let (ids, told) = ends(&bad);
    assert_eq!(ids, [3, 5]);
    for (key, reason) in [
        ("eos_token_id", "token 600 is past the vocabulary of 6 tokens"),
        ("eot_token_id", "-7 is no token"),
        ("eom_token_id", "expected an id, found string"),
        ("bos_token_id", "token 6 is past the vocabulary"),
        ("eos_token_ids", "token 9 is past the vocabulary"),
    ] {
        let start = format!("m.gguf: key tokenizer.ggml.{key} is not used: ");
        assert!(told.iter().any(|t| t.contains(&start) && t.contains(reason)), "{key}: {told:?}");
    }
    // -1 and the largest u32 are how writers say that there is none.
    let absent = tiny("qwen2", 1)
        .key("tokenizer.ggml.eot_token_id", V::I32(-1))
        .key("tokenizer.ggml.eom_token_id", V::U32(u32::MAX));
    assert_eq!(ends(&absent), (vec![5], vec![]));
}

/// A folder whose tokenizer has the tokens a to f, `<|im_end|>` at the end.
fn folder(dir: &Path, config: &Value) {
    save(dir, config, "F32", &tiny_tensors("Llama", "model.", 1));
    let tokenizer = json!({"version": "1.0", "model": {"type": "WordLevel", "unk_token": "a",
        "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}},
        "added_tokens": [{"id": 5, "content": "<|im_end|>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false}]});
    write(dir, "tokenizer.json", &tokenizer);
}

fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), value.to_string()).unwrap();
}

#[test]
fn end_tokens_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ends = || {
        let open = open(dir).unwrap().tokenizer().unwrap();
        (open.tokenizer.end_tokens().to_vec(), open.tokenizer.eos())
    };
    folder(dir, &config("LlamaForCausalLM", 1));
    assert_eq!(ends(), (vec![5], None));
    // config.json alone, an id or a list.
    folder(dir, &with(config("LlamaForCausalLM", 1), json!({"eos_token_id": 1})));
    assert_eq!(ends(), (vec![1, 5], Some(1)));
    folder(dir, &with(config("LlamaForCausalLM", 1), json!({"eos_token_id": [1, 2]})));
    assert_eq!(ends(), (vec![1, 2, 5], Some(1)));
    let text = json!({"eos_token_id": 4, "text_config": with(config("LlamaForCausalLM", 1), json!({"eos_token_id": 3}))});
    folder(dir, &with(config("LlamaForCausalLM", 1), text));
    assert_eq!(ends().0, [3, 4, 5]);
    folder(dir, &with(config("LlamaForCausalLM", 1), json!({"eos_token_id": 1})));
    write(dir, "generation_config.json", &json!({"eos_token_id": [2]}));
    assert_eq!(ends(), (vec![1, 2, 5], Some(2)));
    write(dir, "special_tokens_map.json", &json!({"eos_token": {"content": "d"}}));
    assert_eq!(ends(), (vec![1, 2, 3, 5], Some(3)));
    write(dir, "tokenizer_config.json", &json!({"eos_token": "e", "bos_token": {"content": "b"}}));
    assert_eq!(ends(), (vec![1, 2, 3, 4, 5], Some(4)));
    assert!(told(&open(dir).unwrap()).is_empty(), "{:?}", told(&open(dir).unwrap()));
    // What cannot be followed is told, and the rest holds.
    write(dir, "generation_config.json", &json!({"eos_token_id": [2, 999, -1], "bos_token_id": "x"}));
    write(dir, "tokenizer_config.json", &json!({"eos_token": 7, "bos_token": "no such token"}));
    std::fs::write(dir.join("special_tokens_map.json"), "[").unwrap();
    assert_eq!(ends(), (vec![1, 2, 5], Some(2)));
    assert_told(&open(dir).unwrap(), &["special_tokens_map.json is left out of account"]);
    write(dir, "special_tokens_map.json", &json!({"eos_token": {"content": "d"}}));
    assert_eq!(ends(), (vec![1, 2, 3, 5], Some(3)));
    let model = open(dir).unwrap();
    assert_told(
        &model,
        &["generation_config.json: key eos_token_id", "token 999 is past the vocabulary of 6"],
    );
    assert_told(&model, &["generation_config.json: key eos_token_id", "-1 is no token"]);
    assert_told(&model, &["generation_config.json: key bos_token_id", "the string \"x\""]);
    assert_told(&model, &["tokenizer_config.json: key eos_token", "found 7"]);
    assert_eq!(model.generation_defaults().stop_tokens, [2]);
    let notices = model.tokenizer().unwrap().notices;
    assert!(notices[0].to_string().contains("no token \"no such token\""), "{notices:?}");
}

#[test]
fn no_end_at_all() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), &config("LlamaForCausalLM", 1));
    let tokenizer = json!({"version": "1.0", "added_tokens": [],
        "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1}}});
    write(dir.path(), "tokenizer.json", &tokenizer);
    let notices = open(dir.path()).unwrap().tokenizer().unwrap().notices;
    assert!(notices[0].to_string().contains("no token ends an answer"), "{notices:?}");
}

#[test]
fn sampling_defaults_out_of_range() {
    let g = tiny("qwen2", 1)
        .key("general.sampling.temp", V::F32(-1.0))
        .key("general.sampling.top_p", V::F32(1.5))
        .key("general.sampling.min_p", V::F32(f32::NAN))
        .key("general.sampling.penalty_repeat", V::F32(0.0))
        .key("general.sampling.top_k", V::Str("many"));
    let model = open_gguf(&g).unwrap();
    for (key, reason) in [
        ("temp", "-1 is out of range"),
        ("top_p", "1.5 is out of range"),
        ("min_p", "NaN is out of range"),
        ("penalty_repeat", "0 is out of range"),
        ("top_k", "expected a number, found string"),
    ] {
        assert_told(&model, &[&format!("m.gguf: key general.sampling.{key} is not used"), reason]);
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    folder(dir, &config("LlamaForCausalLM", 1));
    assert_told(&open(dir).unwrap(), &["/generation_config.json is missing; what"]);
    assert_told(&open(dir).unwrap(), &["/tokenizer_config.json is missing; the"]);
    let bad = json!({"temperature": "hot", "top_p": -0.1, "top_k": 2.5, "repetition_penalty": 1.1, "do_sample": "no",
        "min_p": null, "stop_strings": ["END"], "suppress_tokens": []});
    write(dir, "generation_config.json", &bad);
    let model = open(dir).unwrap();
    let d = model.generation_defaults();
    assert_eq!((d.temperature, d.top_p, d.top_k, d.repeat_penalty), (None, None, None, Some(1.1)));
    for (key, reason) in [
        ("temperature", "the string \"hot\""),
        ("top_p", "-0.1 is out of range"),
        ("top_k", "2.5 is not a number of tokens"),
        ("do_sample", "expected true or false"),
    ] {
        assert_told(&model, &[&format!("generation_config.json: key {key} is not used"), reason]);
    }
    assert_told(&model, &["generation_config.json: stop_strings has no effect"]);
    assert!(told(&model).iter().all(|t| !t.contains("suppress_tokens")));
    std::fs::write(dir.join("generation_config.json"), "{").unwrap();
    let model = open(dir).unwrap();
    assert_eq!(model.generation_defaults(), Default::default());
    assert_told(&model, &["generation_config.json is left out of account: EOF"]);
}

#[test]
fn empty_templates_are_none() {
    for empty in ["", "  \n", "\u{feff}"] {
        let g = tiny("qwen2", 1).key("tokenizer.chat_template", V::Str(empty));
        let dir = tempfile::tempdir().unwrap();
        let model = open(&g.save(dir.path(), "m.gguf")).unwrap();
        assert_eq!(model.chat_template().unwrap(), None);
        assert_told(&model, &["key tokenizer.chat_template is not used", "empty"]);
        let dir = dir.path().join("folder");
        std::fs::create_dir(&dir).unwrap();
        folder(&dir, &config("LlamaForCausalLM", 1));
        write(&dir, "tokenizer_config.json", &json!({"chat_template": empty}));
        assert_eq!(open(&dir).unwrap().chat_template().unwrap(), None);
        assert_told(&open(&dir).unwrap(), &["tokenizer_config.json: key chat_template is not used"]);
        // An empty file does not hide what another says.
        write(&dir, "tokenizer_config.json", &json!({"chat_template": "T"}));
        std::fs::write(dir.join("chat_template.jinja"), empty).unwrap();
        assert_eq!(open(&dir).unwrap().chat_template().unwrap().as_deref(), Some("T"));
        assert_told(&open(&dir).unwrap(), &["chat_template.jinja is left out of account"]);
    }
}

#[test]
fn models_for_chat_without_a_template() {
    for (name, is_chat) in [
        ("Tiny Instruct", true),
        ("tiny-chat", true),
        ("gemma-3-1b-it", true),
        ("Tiny", false),
        ("Italian", false),
    ] {
        let g = lacking(tiny("qwen2", 1), "tokenizer.chat_template").key("general.name", V::Str(name));
        let model = open_gguf(&g).unwrap();
        assert_eq!(told(&model).len(), usize::from(is_chat), "{name}: {:?}", told(&model));
        if is_chat {
            assert_told(&model, &["key tokenizer.chat_template is missing", name]);
        }
    }
}

#[test]
fn rotary_parameters_without_effect() {
    let told_of = |changes: Value| {
        let model = open_with(&with(config("LlamaForCausalLM", 1), changes), 1).unwrap();
        let told = told(&model);
        told.into_iter()
            .filter(|text| text.contains("rope_") && text.contains("no effect"))
            .collect::<Vec<_>>()
    };
    for untyped in [json!({"factor": 4}), json!({"factor": 4, "rope_type": null, "beta_fast": null})] {
        let told = told_of(json!({"rope_scaling": untyped}));
        assert_eq!(told.len(), 1, "{told:?}");
        let expected = "config.json: rope_scaling.factor has no effect: rope_scaling has no rope_type, which counts as \
            \"default\": nothing is scaled";
        assert!(told[0].ends_with(expected), "{told:?}");
    }
    let many =
        json!({"factor": 8.0, "low_freq_factor": 1.0, "rope_theta": 1e4, "partial_rotary_factor": 1.0});
    let told = told_of(json!({"rope_parameters": many}));
    assert!(
        told[0].contains("rope_parameters.factor, rope_parameters.low_freq_factor has no effect"),
        "{told:?}"
    );
    let told = told_of(json!({"rope_scaling": {"type": "default", "factor": 4}}));
    assert!(
        told[0].ends_with("rope_scaling.factor has no effect: rope_type \"default\" scales nothing"),
        "{told:?}"
    );
    for fine in [
        json!({"rope_scaling": {}}),
        json!({"rope_scaling": {"rope_type": "default", "factor": null}}),
        json!({"rope_parameters": {"rope_theta": 1e4}}),
        json!({"rope_scaling": {"type": "linear", "factor": 4}}),
    ] {
        assert_eq!(told_of(fine), Vec::<String>::new());
    }
}
