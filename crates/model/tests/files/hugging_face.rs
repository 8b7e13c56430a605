//! From `config.json` and safetensors to block specs.

use std::path::Path;

use serde_json::{Value, json};
use unicorn_core::rope::RopeScaling;
use unicorn_core::{Activation, Block, RopeSpec, RopeStyle, TensorType};
use unicorn_model::{ModelError, OpenModel, open};

use crate::architectures::{attention, ffn, head};
use crate::writer::{safetensors_zeros, tiny_tensors};

pub fn config(class: &str, layers: usize) -> Value {
    json!({
        "architectures": [class], "hidden_size": 32, "num_hidden_layers": layers, "intermediate_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
        "vocab_size": 6, "max_position_embeddings": 128, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "rope_scaling": null,
    })
}

pub fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

pub fn save(dir: &Path, config: &Value, dtype: &str, tensors: &[(String, Vec<u64>)]) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let size = if dtype == "F32" { 4 } else { 2 };
    std::fs::write(dir.join("model.safetensors"), safetensors_zeros(dtype, size, tensors)).unwrap();
}

pub fn open_with(config: &Value, layers: usize) -> Result<OpenModel, ModelError> {
    let class = config["architectures"][0].as_str().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), config, "F32", &tiny_tensors(&class, "model.", layers));
    open(dir.path())
}

#[track_caller]
pub fn error(config: &Value) -> String {
    open_with(config, 1).map(|m| m.spec).unwrap_err().to_string()
}

#[test]
fn llama_and_mistral() {
    let model = open_with(&config("LlamaForCausalLM", 2), 2).unwrap();
    assert_eq!((model.spec.architecture.as_str(), model.spec.layers()), ("llama", 2));
    let (a, w) = attention(&model.spec, 1);
    assert_eq!(a.rope, RopeSpec::new(RopeStyle::Neox, 8, 10_000.0, &RopeScaling::None));
    assert_eq!((a.norm.weight_offset, a.window), (0.0, None));
    assert_eq!(w.k.name, "model.layers.1.self_attn.k_proj.weight");
    let Block::Ffn { weights, .. } = &model.spec.blocks[2] else { panic!("ffn") };
    assert_eq!(weights.norm.name, "model.layers.0.post_attention_layernorm.weight");
    let model = open_with(&with(config("MistralForCausalLM", 1), json!({"sliding_window": 16})), 1).unwrap();
    assert_eq!(attention(&model.spec, 0).0.window, Some(16));
}

#[test]
fn rope_scaling() {
    let rope = |changes: Value| {
        let model = open_with(&with(config("LlamaForCausalLM", 1), changes), 1).unwrap();
        attention(&model.spec, 0).0.rope.clone()
    };
    let expected = |base: f32, scaling: &RopeScaling| RopeSpec::new(RopeStyle::Neox, 8, base, scaling);
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 32,
    };
    let parameters = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_theta": 5e5});
    assert_eq!(rope(json!({"rope_scaling": parameters, "rope_theta": 5e5})), expected(5e5, &llama3));
    assert_eq!(rope(json!({"rope_parameters": parameters})), expected(5e5, &llama3));
    let linear = json!({"type": "linear", "factor": 4});
    assert_eq!(rope(json!({"rope_scaling": linear})), expected(1e4, &RopeScaling::Linear { factor: 4.0 }));
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 32,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: Some(0.1 * 4f32.ln() + 1.0),
    };
    let parameters = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    assert_eq!(rope(json!({"rope_scaling": parameters})), expected(1e4, &yarn));
    assert_eq!(rope(json!({"rope_scaling": {"rope_type": "default"}})), expected(1e4, &RopeScaling::None));
    let half = RopeSpec::new(RopeStyle::Neox, 4, 1e4, &RopeScaling::None);
    assert_eq!(rope(json!({"partial_rotary_factor": 0.5})), half);
    let bad = |scaling: Value| error(&with(config("LlamaForCausalLM", 1), json!({"rope_scaling": scaling})));
    assert_eq!(bad(json!({"type": "dynamic", "factor": 2})), "rope_type \"dynamic\" is not supported");
    assert_eq!(bad(json!({"type": "linear"})), "key factor is missing");
    assert_eq!(bad(json!({"type": "linear", "factor": 0})), "key factor: 0 is not above zero");
}

#[test]
fn qwen() {
    let base = json!({"use_sliding_window": false, "sliding_window": 8, "max_window_layers": 1});
    let model = open_with(&with(config("Qwen2ForCausalLM", 2), base.clone()), 2).unwrap();
    assert!(attention(&model.spec, 1).1.q_bias.is_some());
    assert_eq!(attention(&model.spec, 1).0.window, None);
    let on = with(with(config("Qwen3ForCausalLM", 2), base), json!({"use_sliding_window": true}));
    let model = open_with(&on, 2).unwrap();
    assert_eq!(attention(&model.spec, 0).0.window, None);
    assert_eq!(attention(&model.spec, 1).0.window, Some(8));
    assert!(attention(&model.spec, 1).0.qk_norm.is_some());
    let listed = with(on, json!({"layer_types": ["sliding_attention", "full_attention"]}));
    let model = open_with(&listed, 2).unwrap();
    assert_eq!(attention(&model.spec, 0).0.window, Some(8));
    assert_eq!(attention(&model.spec, 1).0.window, None);
}

/// Two layers, a convolution and an attention, with a hidden width.
fn lfm2_tensors(hidden: u64) -> Vec<(String, Vec<u64>)> {
    let mut all: Vec<(String, Vec<u64>)> =
        vec![("embed_tokens".into(), vec![6, 32]), ("embedding_norm".into(), vec![32])];
    for layer in 0..2 {
        let mut add =
            |name: &str, shape: &[u64]| all.push((format!("layers.{layer}.{name}"), shape.to_vec()));
        add("operator_norm", &[32]);
        add("ffn_norm", &[32]);
        for (name, shape) in [("w1", [hidden, 32]), ("w3", [hidden, 32]), ("w2", [32, hidden])] {
            add(&format!("feed_forward.{name}"), &shape);
        }
    }
    for (name, shape) in [("in_proj", &[96, 32][..]), ("conv", &[32, 1, 3]), ("out_proj", &[32, 32])] {
        all.push((format!("layers.0.conv.{name}"), shape.to_vec()));
    }
    for (name, shape) in [
        ("q_proj", &[32, 32][..]),
        ("k_proj", &[16, 32]),
        ("v_proj", &[16, 32]),
        ("out_proj", &[32, 32]),
        ("q_layernorm", &[8]),
        ("k_layernorm", &[8]),
    ] {
        all.push((format!("layers.1.self_attn.{name}"), shape.to_vec()));
    }
    all.into_iter().map(|(name, shape)| (format!("model.{name}.weight"), shape)).collect()
}

#[test]
fn lfm2() {
    let base = with(
        config("Lfm2ForCausalLM", 2),
        json!({"norm_eps": 1e-5, "head_dim": null, "full_attn_idxs": [1]}),
    );
    let open_hidden = |changes: Value, hidden: u64| {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &with(base.clone(), changes), "F32", &lfm2_tensors(hidden));
        open(dir.path()).map(|m| m.spec).map_err(|e| e.to_string())
    };
    // Two thirds of 64, rounded up to the default multiple.
    let spec = open_hidden(json!({}), 256).unwrap();
    let Block::ShortConv { spec: c, weights } = &spec.blocks[1] else { panic!("the first mixer") };
    assert_eq!((c.kernel, c.norm.eps, weights.conv.rows, weights.conv.cols), (3, 1e-5, 32, 3));
    assert_eq!(weights.norm.name, "model.layers.0.operator_norm.weight");
    let (a, w) = attention(&spec, 1);
    assert_eq!(
        (a.head_dim, a.qk_norm.is_some(), w.o.name.as_str()),
        (8, true, "model.layers.1.self_attn.out_proj.weight")
    );
    for (changes, hidden) in [
        (json!({"block_auto_adjust_ff_dim": false}), 64),
        (json!({"block_multiple_of": 4}), 44),
        (json!({"block_multiple_of": 4, "block_ff_dim": 100}), 68),
        (json!({"block_multiple_of": 4, "block_ffn_dim_multiplier": 2.0}), 84),
    ] {
        assert_eq!(ffn(&open_hidden(changes, hidden).unwrap(), 0).hidden, hidden as usize);
    }
    let types = json!({"layer_types": ["full_attention", "conv"]});
    assert_eq!(
        open_hidden(types, 256).unwrap_err(),
        "tensor model.layers.0.self_attn.q_proj.weight is missing"
    );
    let text = open_hidden(json!({"layer_types": ["conv", "mamba"]}), 256).unwrap_err();
    assert_eq!(text, "key layer_types: \"mamba\" is not supported");
    assert_eq!(
        open_hidden(json!({"conv_bias": true}), 256).unwrap_err(),
        "conv_bias = true is not supported"
    );
}

fn gemma() -> Value {
    with(
        config("Gemma3ForCausalLM", 7),
        json!({"hidden_act": null, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4, "rope_theta": 1e6,
            "rope_local_base_freq": 5000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0, "tie_word_embeddings": null}),
    )
}

#[test]
fn gemma3() {
    let check = |config: &Value| {
        let model = open_with(config, 7).unwrap();
        let (a, w) = attention(&model.spec, 0);
        assert_eq!(a.rope, RopeSpec::new(RopeStyle::Neox, 8, 5000.0, &RopeScaling::None));
        assert_eq!((a.window, a.scale, a.norm.weight_offset), (Some(4), 0.25, 1.0));
        assert_eq!(a.qk_norm.map(|n| n.weight_offset), Some(1.0));
        assert_eq!(w.post_norm.as_ref().unwrap().name, "model.layers.0.post_attention_layernorm.weight");
        let (a, _) = attention(&model.spec, 5);
        assert_eq!(a.rope, RopeSpec::new(RopeStyle::Neox, 8, 1e6, &RopeScaling::Linear { factor: 8.0 }));
        assert_eq!(a.window, None);
        assert_eq!(ffn(&model.spec, 0).activation, Activation::GeluTanh);
        assert_eq!((head(&model.spec).soft_cap, head(&model.spec).norm.weight_offset), (Some(30.0), 1.0));
    };
    check(&gemma());
    let nested = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    });
    let newer = json!({"rope_parameters": nested, "rope_theta": null, "rope_scaling": null, "rope_local_base_freq": null});
    check(&with(gemma(), newer));
    let types = ["sliding_attention", "full_attention"].map(|t| json!(t));
    let types: Vec<_> = [0, 0, 0, 0, 0, 1, 0].iter().map(|i: &usize| types[*i].clone()).collect();
    check(&with(gemma(), json!({"layer_types": types, "sliding_window_pattern": 3})));
    let model = open_with(&with(gemma(), json!({"sliding_window_pattern": 2})), 7).unwrap();
    assert_eq!((0..4).filter(|i| attention(&model.spec, *i).0.window.is_none()).count(), 2);
}

#[test]
fn gemma3_multimodal() {
    for prefix in ["language_model.model.", "model.language_model."] {
        let mut text = gemma();
        for key in ["architectures", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"] {
            text.as_object_mut().unwrap().remove(key);
        }
        let config = json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text});
        let mut tensors = tiny_tensors("Gemma3", prefix, 7);
        tensors.push(("vision_tower.x.weight".into(), vec![4]));
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &config, "BF16", &tensors);
        let model = open(dir.path()).unwrap();
        assert_eq!((model.spec.layers(), model.spec.context_max), (7, 131_072));
        assert_eq!(attention(&model.spec, 0).1.q.ty, TensorType::BF16);
    }
}

#[test]
fn tied_and_untied_heads() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tiny_tensors("Llama", "model.", 1);
    let head = |config: &Value, tensors: &[(String, Vec<u64>)]| {
        save(dir.path(), config, "F16", tensors);
        open(dir.path())
            .map(|m| m.spec.blocks.last().unwrap().weights()[1].name.clone())
            .map_err(|e| e.to_string())
    };
    let tied = config("LlamaForCausalLM", 1);
    let untied = with(tied.clone(), json!({"tie_word_embeddings": false}));
    assert_eq!(head(&tied, &tensors).unwrap(), "model.embed_tokens.weight");
    assert_eq!(head(&untied, &tensors).unwrap_err(), "tensor lm_head.weight is missing");
    tensors.push(("lm_head.weight".into(), vec![6, 32]));
    assert_eq!(head(&untied, &tensors).unwrap(), "lm_head.weight");
    assert_eq!(head(&tied, &tensors).unwrap(), "model.embed_tokens.weight");
    tensors.last_mut().unwrap().1 = vec![7, 32];
    assert_eq!(
        head(&untied, &tensors).unwrap_err(),
        "tensor lm_head.weight: expected shape [6, 32], found [7, 32]"
    );
}

#[test]
fn bad_configurations() {
    let change = |changes: Value| error(&with(config("LlamaForCausalLM", 1), changes));
    assert_eq!(change(json!({"num_attention_heads": 0})), "key num_attention_heads: must be at least 1");
    assert_eq!(change(json!({"hidden_size": "32"})), "key hidden_size: expected an integer, found a string");
    assert_eq!(change(json!({"hidden_size": null})), "key hidden_size is missing");
    assert_eq!(change(json!({"hidden_act": "relu"})), "hidden_act \"relu\" is not supported");
    assert_eq!(
        change(json!({"num_local_experts": 8})),
        "a mixture of experts (num_local_experts = 8) is not supported"
    );
    let text = change(json!({"vocab_size": 7}));
    assert_eq!(text, "tensor model.embed_tokens.weight has 6 rows, but vocab_size says 7 tokens");
    assert_eq!(
        change(json!({"num_hidden_layers": 1e30})),
        "key num_hidden_layers: expected an integer, found 1e+30"
    );
    assert!(
        error(&config("MambaForCausalLM", 1))
            .starts_with("unknown architecture \"MambaForCausalLM\"; known are Llama")
    );
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &config("LlamaForCausalLM", 1), "I16", &tiny_tensors("Llama", "model.", 1));
    let text = open(dir.path()).unwrap_err().to_string();
    assert_eq!(text, "quantized with a method that stores I16 weights, which unicorn does not read");
}

#[test]
fn generation_defaults_and_templates() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &config("LlamaForCausalLM", 1), "F32", &tiny_tensors("Llama", "model.", 1));
    let model = open(dir.path()).unwrap();
    assert_eq!(model.generation_defaults(), Default::default());
    assert_eq!(model.chat_template().unwrap(), None);
    assert!(model.tokenizer().map(|_| ()).unwrap_err().to_string().starts_with("no tokenizer: "));
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "generation_config.json",
        r#"{"temperature":0.7,"top_k":20,"top_p":0.8,"eos_token_id":[4,5],"repetition_penalty":1.05}"#,
    );
    let d = model.generation_defaults();
    assert_eq!(
        (d.temperature, d.top_k, d.top_p, d.repeat_penalty),
        (Some(0.7), Some(20), Some(0.8), Some(1.05))
    );
    assert_eq!(d.stop_tokens, [4, 5]);
    write("generation_config.json", r#"{"temperature":-1,"top_k":20}"#);
    let d = model.generation_defaults();
    assert_eq!((d.temperature, d.top_k), (None, Some(20)));
    for all in ["0", "-1"] {
        write("generation_config.json", &format!(r#"{{"top_k":{all}}}"#));
        assert_eq!(model.generation_defaults().top_k, Some(0));
    }
    write(
        "tokenizer_config.json",
        r#"{"chat_template":[{"name":"tool","template":"T"},{"name":"default","template":"D"}]}"#,
    );
    assert_eq!(model.chat_template().unwrap().as_deref(), Some("D"));
    write("chat_template.json", r#"{"chat_template":"J"}"#);
    assert_eq!(model.chat_template().unwrap().as_deref(), Some("J"));
    write("chat_template.jinja", "X");
    assert_eq!(model.chat_template().unwrap().as_deref(), Some("X"));
    let vocabulary = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"},"added_tokens":[]}"#;
    write("tokenizer.json", vocabulary);
    assert_eq!(model.tokenizer().unwrap().tokenizer.vocab_size(), 2);
}
