//! What holds where a file leaves a hyperparameter out, under which names it may stand, and what is refused.

use serde_json::{Value, json};
use unicorn_core::rope::RopeScaling;
use unicorn_core::{Activation, RopeSpec, RopeStyle};

use crate::architectures::{attention, ffn, head, open_gguf};
use crate::hugging_face::{config, error, open_with, with};
use crate::writer::{Gguf, V, tiny};

fn neox(base: f32) -> RopeSpec {
    RopeSpec::new(RopeStyle::Neox, 8, base, &RopeScaling::None)
}

fn lacking(mut g: Gguf, key: &str) -> Gguf {
    let before = g.keys.len();
    g.keys.retain(|k| k.0 != key);
    assert_eq!(g.keys.len() + 1, before, "{key}");
    g
}

fn without(mut config: Value, keys: &[&str]) -> Value {
    keys.iter().for_each(|key| drop(config.as_object_mut().unwrap().remove(*key)));
    config
}

#[test]
fn names_of_other_writers() {
    // As Ollama writes Gemma 3.
    let g = lacking(tiny("gemma3", 6), "gemma3.rope.freq_base")
        .key("gemma3.rope.global.freq_base", V::F32(500_000.0))
        .key("gemma3.rope.local.freq_base", V::F32(20_000.0));
    let model = open_gguf(&g).unwrap();
    assert_eq!(attention(&model.spec, 5).0.rope, neox(500_000.0));
    assert_eq!(attention(&model.spec, 0).0.rope, neox(20_000.0));
    assert!(model.notices.is_empty(), "{:?}", model.notices);
    // Two names that agree are one value, two that do not are none.
    let both = g.clone().key("gemma3.rope.freq_base", V::F32(500_000.0));
    assert_eq!(attention(&open_gguf(&both).unwrap().spec, 5).0.rope, neox(500_000.0));
    let text = open_gguf(&g.key("gemma3.rope.freq_base", V::F32(1e6))).unwrap_err().to_string();
    assert_eq!(text, "key gemma3.rope.global.freq_base: contradicts gemma3.rope.freq_base");
}

#[test]
fn gguf_without_a_base() {
    for (architecture, base) in [("llama", 1e4), ("qwen2", 1e6), ("qwen3", 1e6), ("gemma3", 1e6)] {
        let key = format!("{architecture}.rope.freq_base");
        let model = open_gguf(&lacking(tiny(architecture, 6), &key)).unwrap();
        let rope = &attention(&model.spec, 5).0.rope;
        assert_eq!(rope, &RopeSpec::new(rope.style, 8, base, &RopeScaling::None), "{architecture}");
        let told: Vec<String> = model.notices.iter().map(ToString::to_string).collect();
        let [text] = &told[..] else { panic!("{told:?}") };
        assert!(
            text.contains("m.gguf: key ") && text.contains(&key) && text.contains("is assumed"),
            "{text}"
        );
    }
    // The local base of Gemma 3 has never been another.
    assert_eq!(attention(&open_gguf(&tiny("gemma3", 1)).unwrap().spec, 0).0.rope, neox(1e4));
}

#[test]
fn gguf_without_a_head_length_tells_it_by_its_tensors() {
    let mut g = tiny("qwen3", 1);
    for (name, dims) in [
        ("attn_q.weight", vec![32, 64]),
        ("attn_k.weight", vec![32, 32]),
        ("attn_v.weight", vec![32, 32]),
        ("attn_output.weight", vec![64, 32]),
        ("attn_q_norm.weight", vec![16]),
        ("attn_k_norm.weight", vec![16]),
    ] {
        let t = g.tensor(&format!("blk.0.{name}"));
        t.bytes = 4 * dims.iter().product::<u64>();
        t.dims = dims;
    }
    assert_eq!(attention(&open_gguf(&g).unwrap().spec, 0).0.head_dim, 16);
}

/// A file of Gemma 3 with the layers and the width of a published one; its heads and its ffn stay tiny.
fn gemma_of(layers: usize, width: u64) -> Gguf {
    let mut g = lacking(tiny("gemma3", layers), "gemma3.attention.sliding_window");
    g.set("gemma3.embedding_length", V::U32(width as u32));
    for t in &mut g.tensors {
        for dim in t.dims.iter_mut().filter(|dim| **dim == 32) {
            *dim = width;
        }
        // The queries of four heads of eight keep their rows.
        match t.name.rsplit('.').nth(1) {
            Some("attn_q") => t.dims[1] = 32,
            Some("attn_output") => t.dims[0] = 32,
            _ => {}
        }
        // Two bytes an element, so that the files stay small.
        (t.ty, t.bytes) = (1, 2 * t.dims.iter().product::<u64>());
    }
    g
}

#[test]
fn gemma3_by_its_size() {
    for (layers, width, window, factor) in [(18, 640, 512, 1.0), (34, 2560, 1024, 8.0)] {
        let model = open_gguf(&gemma_of(layers, width)).unwrap();
        assert_eq!(attention(&model.spec, 0).0.window, Some(window));
        let scaling = if factor == 1.0 { RopeScaling::None } else { RopeScaling::Linear { factor } };
        let expected = RopeSpec::new(RopeStyle::Neox, 8, 10_000.0, &scaling);
        assert_eq!(attention(&model.spec, 5).0.rope, expected, "{layers}");
        assert_eq!(model.notices.len(), if factor == 1.0 { 1 } else { 2 }, "{:?}", model.notices);
    }
    let text = open_gguf(&gemma_of(7, 32)).unwrap_err().to_string();
    assert_eq!(text, "key gemma3.attention.sliding_window is missing");
    let named = open_gguf(&gemma_of(34, 2560).key("gemma3.rope.scaling.type", V::Str("linear"))).unwrap();
    assert_eq!(attention(&named.spec, 5).0.rope, neox(1e4));
    let told = named.notices.iter().any(|n| n.to_string().contains("rope.scaling.factor is missing; 1 is"));
    assert!(told, "{:?}", named.notices);
    // What the file says holds.
    let none = gemma_of(34, 2560).key("gemma3.rope.scaling.type", V::Str("none"));
    assert_eq!(attention(&open_gguf(&none).unwrap().spec, 5).0.rope, neox(1e4));
}

#[test]
fn gguf_keys_that_are_not_implemented() {
    for (key, value, shown) in [
        ("attention.causal", V::Bool(0), "attention.causal = false"),
        ("attention.clamp_kqv", V::F32(8.0), "attention.clamp_kqv = 8"),
        ("attention.max_alibi_bias", V::F32(8.0), "attention.max_alibi_bias = 8"),
        ("logit_scale", V::F32(0.5), "logit_scale = 0.5"),
        ("embedding_scale", V::F32(12.0), "embedding_scale = 12"),
        ("residual_scale", V::F32(0.2), "residual_scale = 0.2"),
        ("use_parallel_residual", V::Bool(1), "use_parallel_residual = true"),
        ("rope.scale", V::F32(0.25), "rope.scale = 0.25"),
        ("rope.freq_scale", V::F32(0.25), "rope.freq_scale = 0.25"),
        ("rope.scaling.yarn_ext_factor", V::F32(0.5), "rope.scaling.yarn_ext_factor = 0.5"),
        ("rope.scaling.yarn_log_multiplier", V::F32(0.1), "rope.scaling.yarn_log_multiplier = 0.1"),
        ("rope.dimension_sections", V::U32s(vec![2, 1, 1]), "rope.dimension_sections = array of u32"),
        ("attention.value_length", V::U32(4), "attention.value_length = 4 that differs"),
        ("attention.key_length_swa", V::U32(4), "attention.key_length_swa = 4 that differs"),
        ("hidden_act", V::Str("gelu"), "hidden_act \"gelu\""),
        ("expert_count", V::U32(8), "a mixture of experts (qwen2.expert_count = 8)"),
    ] {
        let key = format!("qwen2.{key}");
        let text = open_gguf(&tiny("qwen2", 1).key(&key, value)).unwrap_err().to_string();
        assert!(text.contains(shown) && text.ends_with("is not supported"), "{key}: {text}");
    }
    let harmless = tiny("qwen2", 1)
        .key("qwen2.attention.causal", V::Bool(1))
        .key("qwen2.logit_scale", V::F32(1.0))
        .key("qwen2.expert_count", V::U32(0))
        .key("qwen2.hidden_act", V::Str("silu"))
        .key("qwen2.rope.scaling.finetuned", V::Bool(0))
        .key("qwen2.vision.block_count", V::U32(2));
    assert!(open_gguf(&harmless).unwrap().notices.is_empty());
    let unknown = open_gguf(&harmless.key("qwen2.attention.wobble", V::F32(3.0))).unwrap().notices;
    assert!(unknown[0].to_string().contains("qwen2.attention.wobble has no effect"), "{unknown:?}");
}

#[test]
fn gguf_windows_without_a_rule() {
    let g = tiny("qwen2", 2).key("qwen2.attention.sliding_window", V::U32(8));
    let text = open_gguf(&g).unwrap_err().to_string();
    assert!(text.contains("qwen2.attention.sliding_window = 8 without"), "{text}");
    let flags = g.clone().key("qwen2.attention.sliding_window_pattern", V::Bools(vec![true, false]));
    let model = open_gguf(&flags).unwrap();
    assert_eq!((attention(&model.spec, 0).0.window, attention(&model.spec, 1).0.window), (Some(8), None));
    // One that is as long as the context limits nothing.
    let long = tiny("qwen2", 2).key("qwen2.attention.sliding_window", V::U32(128));
    assert_eq!(attention(&open_gguf(&long).unwrap().spec, 0).0.window, None);
    let llama = tiny("llama", 4)
        .key("llama.attention.sliding_window", V::U32(8))
        .key("llama.attention.sliding_window_pattern", V::U32(2));
    let model = open_gguf(&llama).unwrap();
    assert_eq!((attention(&model.spec, 0).0.window, attention(&model.spec, 1).0.window), (Some(8), None));
}

/// What `transformers` 5 takes where the key is absent, seen in the spec, or in the shape that a tensor should have.
#[test]
fn config_defaults_of_each_class() {
    let of_class = |class: &str, keys: &[&str]| open_with(&without(config(class, 6), keys), 6);
    for (class, base) in [
        ("LlamaForCausalLM", 1e4),
        ("MistralForCausalLM", 1e4),
        ("Qwen2ForCausalLM", 1e4),
        ("Qwen3ForCausalLM", 1e4),
        ("Gemma3ForCausalLM", 1e6),
    ] {
        let model = of_class(class, &["rope_theta", "rms_norm_eps"]).unwrap();
        let (a, _) = attention(&model.spec, 5);
        assert_eq!((&a.rope, a.norm.eps), (&neox(base), 1e-6), "{class}");
    }
    let context = |class: &str| of_class(class, &["max_position_embeddings"]).unwrap().spec.context_max;
    assert_eq!(context("LlamaForCausalLM"), 2048);
    assert_eq!(context("MistralForCausalLM"), 131_072);
    assert_eq!((context("Qwen2ForCausalLM"), context("Qwen3ForCausalLM")), (32_768, 32_768));
    assert_eq!(context("Gemma3ForCausalLM"), 131_072);
    let shape = |class: &str, key: &str| of_class(class, &[key]).map(|m| m.spec).unwrap_err().to_string();
    for (class, key, expected) in [
        ("LlamaForCausalLM", "hidden_size", "expected shape [6, 4096]"),
        ("LlamaForCausalLM", "intermediate_size", "expected shape [11008, 32]"),
        ("MistralForCausalLM", "intermediate_size", "expected shape [14336, 32]"),
        ("Qwen2ForCausalLM", "intermediate_size", "expected shape [22016, 32]"),
        ("Gemma3ForCausalLM", "intermediate_size", "expected shape [9216, 32]"),
        ("Qwen3ForCausalLM", "head_dim", "expected shape [512, 32]"),
        ("Gemma3ForCausalLM", "head_dim", "expected shape [1024, 32]"),
        ("Qwen2ForCausalLM", "num_key_value_heads", "32 does not divide the 4 query heads"),
        ("MistralForCausalLM", "num_key_value_heads", "8 does not divide the 4 query heads"),
        ("LlamaForCausalLM", "num_hidden_layers", "model.layers.6.input_layernorm.weight is missing"),
    ] {
        let text = shape(class, key);
        assert!(text.contains(expected), "{class} without {key}: {text}");
    }
    // Absent or null: the width over the heads, and a key and value head for each query head.
    for class in ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"] {
        assert_eq!(attention(&of_class(class, &["head_dim"]).unwrap().spec, 0).0.head_dim, 8);
        let null = with(config(class, 1), json!({"head_dim": null}));
        assert_eq!(attention(&open_with(&null, 1).unwrap().spec, 0).0.head_dim, 8);
    }
    let null = error(&with(config("MistralForCausalLM", 1), json!({"num_key_value_heads": null})));
    assert!(null.contains("k_proj.weight: expected shape [32, 32]"), "{null}");
}

#[test]
fn windows_of_each_class() {
    let window = |class: &str, changes: Value| {
        let config = with(config(class, 6), changes);
        open_with(&config, 6)
            .map(|m| [0, 5].map(|i| attention(&m.spec, i).0.window))
            .map_err(|e| e.to_string())
    };
    // Mistral: 4096 unless it says otherwise, null for none.
    assert_eq!(window("MistralForCausalLM", json!({})).unwrap(), [Some(4096); 2]);
    assert_eq!(window("MistralForCausalLM", json!({"sliding_window": null})).unwrap(), [None; 2]);
    // Qwen: only where it is switched on, from layer 28.
    assert_eq!(window("Qwen2ForCausalLM", json!({})).unwrap(), [None; 2]);
    let on = json!({"use_sliding_window": true});
    assert_eq!(window("Qwen2ForCausalLM", on).unwrap(), [None; 2]);
    let on = json!({"use_sliding_window": true, "max_window_layers": 3});
    assert_eq!(window("Qwen3ForCausalLM", on).unwrap(), [None, Some(4096)]);
    let listed = json!({"layer_types": vec!["sliding_attention"; 6]});
    assert!(window("Qwen3ForCausalLM", listed).unwrap_err().contains("use_sliding_window is not set"));
    let wrong = window("Qwen2ForCausalLM", json!({"use_sliding_window": "yes"})).unwrap_err();
    assert_eq!(wrong, "key use_sliding_window: expected a bool, found a string");
    // Gemma 3: all but every sixth, 4096 long.
    assert_eq!(window("Gemma3ForCausalLM", json!({})).unwrap(), [Some(4096), None]);
    let null = window("Gemma3ForCausalLM", json!({"sliding_window": null})).unwrap_err();
    assert_eq!(null, "key sliding_window is missing");
    let chunked = json!({"layer_types": vec!["chunked_attention"; 6]});
    assert!(window("Gemma3ForCausalLM", chunked).unwrap_err().contains("layer_types: \"chunked_attention\""));
    // Llama's class does not read the key, and says so.
    let llama = open_with(&with(config("LlamaForCausalLM", 1), json!({"sliding_window": 8})), 1).unwrap();
    assert_eq!(attention(&llama.spec, 0).0.window, None);
    let told = llama.notices.iter().map(ToString::to_string).find(|n| n.contains("sliding_window")).unwrap();
    assert!(told.contains("config.json: sliding_window has no effect"), "{told}");
}

#[test]
fn rotary_embeddings_old_and_new() {
    let rope = |class: &str, changes: Value| {
        let model = open_with(&with(without(config(class, 6), &["rope_theta"]), changes), 6);
        model.map(|m| [0, 5].map(|i| attention(&m.spec, i).0.rope.clone())).map_err(|e| e.to_string())
    };
    let linear =
        |base: f32, factor: f32| RopeSpec::new(RopeStyle::Neox, 8, base, &RopeScaling::Linear { factor });
    let newer = json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}});
    assert_eq!(rope("Qwen2ForCausalLM", newer).unwrap()[0], linear(5e5, 2.0));
    // Where both are there, the older one holds.
    let both = json!({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 3.0}});
    assert_eq!(rope("LlamaForCausalLM", both).unwrap()[0], linear(1e4, 3.0));
    // Gemma 3: a base for each kind of layer, with defaults for each.
    let nested = json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}});
    assert_eq!(rope("Gemma3ForCausalLM", nested).unwrap(), [neox(1e4), linear(1e6, 8.0)]);
    let nested =
        json!({"rope_parameters": {"sliding_attention": {"rope_theta": 3e4}, "full_attention": null}});
    assert_eq!(rope("Gemma3ForCausalLM", nested).unwrap(), [neox(3e4), neox(1e6)]);
    assert_eq!(
        rope("Gemma3ForCausalLM", json!({"rope_local_base_freq": 2e4})).unwrap(),
        [neox(2e4), neox(1e6)]
    );
    for (scaling, reason) in [
        (json!({"rope_type": "dynamic", "factor": 2.0}), "rope_type \"dynamic\" is not supported"),
        (
            json!({"rope_type": "longrope", "factor": 2.0, "long_factor": [1.0]}),
            "long_factor = an array is not",
        ),
        (json!({"rope_type": "yarn", "factor": 2.0, "truncate": false}), "truncate = false is not supported"),
        (json!({"type": "mrope", "mrope_section": [1, 1, 2]}), "mrope_section = an array is not supported"),
        (json!({"type": "linear", "rope_type": "default", "factor": 2.0}), "key type: contradicts rope_type"),
    ] {
        assert!(
            rope("LlamaForCausalLM", json!({"rope_scaling": scaling})).unwrap_err().contains(reason),
            "{reason}"
        );
    }
    let text = rope("LlamaForCausalLM", json!({"rope_scaling": "yarn"})).unwrap_err();
    assert_eq!(text, "key rope_scaling: expected an object, found a string");
    let text = rope("LlamaForCausalLM", json!({"rope_theta": null})).unwrap_err();
    assert_eq!(text, "key rope_theta is missing");
}

#[test]
fn config_keys_that_are_not_implemented() {
    for (class, key, value) in [
        ("LlamaForCausalLM", "mlp_bias", json!(true)),
        ("LlamaForCausalLM", "num_local_experts", json!(8)),
        ("Qwen3ForCausalLM", "num_experts", json!(128)),
        ("Gemma3ForCausalLM", "use_bidirectional_attention", json!(true)),
        ("LlamaForCausalLM", "attention_multiplier", json!(0.5)),
        ("LlamaForCausalLM", "logits_scaling", json!(8.0)),
        ("LlamaForCausalLM", "clip_qkv", json!(8.0)),
        ("LlamaForCausalLM", "no_rope_layers", json!([1, 0])),
        ("LlamaForCausalLM", "is_encoder_decoder", json!(true)),
        ("LlamaForCausalLM", "use_qk_norm", json!(true)),
    ] {
        let mut changes = json!({});
        changes[key] = value;
        let text = error(&with(config(class, 1), changes));
        assert!(text.contains(key) && text.ends_with("is not supported"), "{key}: {text}");
    }
    let neutral = json!({"mlp_bias": false, "num_experts": null, "clip_qkv": null, "logits_scaling": 1.0,
        "is_encoder_decoder": false, "attention_bias": false, "attn_logit_softcapping": null});
    open_with(&with(config("LlamaForCausalLM", 1), neutral), 1).unwrap();
}

#[test]
fn biases_of_attention() {
    let text = error(&with(config("LlamaForCausalLM", 1), json!({"attention_bias": true})));
    assert_eq!(text, "tensor model.layers.0.self_attn.q_proj.bias is missing");
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = crate::writer::tiny_tensors("Llama", "model.", 1);
    for (name, len) in [("q", 32), ("k", 16), ("v", 16), ("o", 32)] {
        tensors.push((format!("model.layers.0.self_attn.{name}_proj.bias"), vec![len]));
    }
    let open = |changes: Value| {
        crate::hugging_face::save(dir.path(), &with(config("LlamaForCausalLM", 1), changes), "F32", &tensors);
        unicorn_model::open(dir.path())
    };
    let model = open(json!({"attention_bias": true})).unwrap();
    let (_, w) = attention(&model.spec, 0);
    assert!(w.q_bias.is_some() && w.k_bias.is_some() && w.v_bias.is_some() && w.o_bias.is_some());
    let text = open(json!({})).unwrap_err().to_string();
    assert_eq!(
        text,
        "tensor model.layers.0.self_attn.q_proj.bias in a model of architecture llama is not supported"
    );
}

#[test]
fn activations_by_the_key_of_the_class() {
    let activation = |class: &str, changes: Value| {
        let model = open_with(&with(without(config(class, 6), &["hidden_act"]), changes), 6);
        model.map(|m| ffn(&m.spec, 0).activation).map_err(|e| e.to_string())
    };
    assert_eq!(activation("LlamaForCausalLM", json!({})).unwrap(), Activation::Silu);
    assert_eq!(activation("Gemma3ForCausalLM", json!({})).unwrap(), Activation::GeluTanh);
    let tanh = json!({"hidden_act": "gelu_pytorch_tanh"});
    assert_eq!(activation("LlamaForCausalLM", tanh).unwrap(), Activation::GeluTanh);
    // transformers reads the other key in Gemma 3.
    assert_eq!(activation("Gemma3ForCausalLM", json!({"hidden_act": "silu"})).unwrap(), Activation::GeluTanh);
    let text = activation("Gemma3ForCausalLM", json!({"hidden_activation": "gelu"})).unwrap_err();
    assert_eq!(text, "hidden_activation \"gelu\" is not supported");
    assert!(
        activation("LlamaForCausalLM", json!({"hidden_act": 3})).unwrap_err().contains("expected a string")
    );
}

#[test]
fn soft_caps_and_scales() {
    let model = open_with(&with(config("Gemma3ForCausalLM", 6), json!({"final_logit_softcapping": 30.0})), 6)
        .unwrap();
    assert_eq!(head(&model.spec).soft_cap, Some(30.0));
    // 256 is the default of the class, whatever the length of the heads.
    assert_eq!(attention(&model.spec, 0).0.scale, 1.0 / 16.0);
    let capped = with(config("Gemma3ForCausalLM", 6), json!({"attn_logit_softcapping": 50.0}));
    let model = open_with(&capped, 6).unwrap();
    assert_eq!(attention(&model.spec, 0).0.soft_cap, None);
    assert!(model.notices.iter().any(|n| n.to_string().contains("attn_logit_softcapping has no effect")));
}

#[test]
fn heads_that_are_tied_unsaid() {
    let unsaid = without(config("LlamaForCausalLM", 1), &["tie_word_embeddings"]);
    let model = open_with(&unsaid, 1).unwrap();
    let told =
        model.notices.iter().map(ToString::to_string).find(|n| n.contains("tie_word_embeddings")).unwrap();
    assert!(told.contains("true is assumed") && told.contains("lm_head.weight"), "{told}");
    let gemma = open_with(&without(config("Gemma3ForCausalLM", 6), &["tie_word_embeddings"]), 6).unwrap();
    assert!(gemma.notices.iter().all(|n| !n.to_string().contains("tie_word")));
}

#[test]
fn the_class_by_its_model_type() {
    for (model_type, class) in [("qwen3", "Qwen3"), ("llama", "Llama"), ("gemma3_text", "Gemma3")] {
        let mut named = config(&format!("{class}ForCausalLM"), 6);
        named["model_type"] = json!(model_type);
        let dir = tempfile::tempdir().unwrap();
        let tensors = crate::writer::tiny_tensors(class, "model.", 6);
        crate::hugging_face::save(dir.path(), &without(named, &["architectures"]), "F32", &tensors);
        unicorn_model::open(dir.path()).unwrap_or_else(|e| panic!("{class}: {e}"));
    }
    let text = error(&with(config("LlamaForCausalLM", 1), json!({"architectures": ["MambaForCausalLM"]})));
    assert!(text.starts_with("unknown architecture \"MambaForCausalLM\""), "{text}");
}
