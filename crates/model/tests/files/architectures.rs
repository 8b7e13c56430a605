//! From GGUF metadata to block specs.

use unicorn_core::rope::RopeScaling;
use unicorn_core::{
    Activation, AttentionSpec, AttentionWeights, Block, BlockKind, FfnSpec, HeadSpec, ModelSpec, RopeSpec,
    RopeStyle, StateSpec, TensorType, WeightSource,
};
use unicorn_model::{ModelError, OpenModel, inspect, open};

use crate::writer::{Gguf, V, tiny};

pub fn open_gguf(g: &Gguf) -> Result<OpenModel, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    open(&g.save(dir.path(), "m.gguf"))
}

pub fn attention(spec: &ModelSpec, layer: usize) -> (&AttentionSpec, &AttentionWeights) {
    match &spec.blocks[1 + 2 * layer] {
        Block::Attention { spec, weights } => (spec, weights),
        other => panic!("{:?}", other.kind()),
    }
}

pub fn ffn(spec: &ModelSpec, layer: usize) -> &FfnSpec {
    match &spec.blocks[2 + 2 * layer] {
        Block::Ffn { spec, .. } => spec,
        other => panic!("{:?}", other.kind()),
    }
}

pub fn head(spec: &ModelSpec) -> &HeadSpec {
    match spec.blocks.last().unwrap() {
        Block::Head { spec, .. } => spec,
        other => panic!("{:?}", other.kind()),
    }
}

fn rope(style: RopeStyle, base: f32, scaling: &RopeScaling) -> RopeSpec {
    RopeSpec::new(style, 8, base, scaling)
}

#[test]
fn llama() {
    let model = open_gguf(&tiny("llama", 2)).unwrap();
    let spec = &model.spec;
    assert_eq!((spec.architecture.as_str(), spec.name.as_str()), ("llama", "Tiny"));
    assert_eq!((spec.width, spec.vocab, spec.context_max, spec.layers()), (32, 6, 128, 2));
    let kinds: Vec<_> = spec.blocks.iter().map(Block::kind).collect();
    use BlockKind::*;
    assert_eq!(kinds, [Embedding, Mixer, Ffn, Mixer, Ffn, Head]);
    let (a, w) = attention(spec, 1);
    assert_eq!((a.heads, a.kv_heads, a.head_dim), (4, 2, 8));
    assert_eq!(a.scale, 1.0 / 8f32.sqrt());
    assert_eq!(a.rope, rope(RopeStyle::Normal, 10_000.0, &RopeScaling::None));
    assert_eq!((a.norm.eps, a.norm.weight_offset), (1e-5, 0.0));
    assert!(a.window.is_none() && a.qk_norm.is_none() && a.post_norm.is_none() && w.q_bias.is_none());
    assert_eq!(
        (w.k.name.as_str(), w.k.rows, w.k.cols, w.k.ty),
        ("blk.1.attn_k.weight", 16, 32, TensorType::F32)
    );
    assert_eq!(w.norm.rows, 1);
    assert_eq!((ffn(spec, 0).hidden, ffn(spec, 0).activation), (64, Activation::Silu));
    // Tied: the same span, counted once.
    let (Block::Embedding { table, spec: e }, Block::Head { weight, .. }) =
        (&spec.blocks[0], &spec.blocks[5])
    else {
        panic!("ends")
    };
    assert_eq!((table.span, e.scale), (weight.span, 1.0));
    assert_eq!(spec.parameters(), 32 * 6 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64));
}

#[test]
fn untied_head_bias_and_explicit_sizes() {
    let mut g = tiny("llama", 1).f32("output.weight", &[32, 6]).f32("blk.0.attn_output.bias", &[32]);
    for (name, dims) in
        [("attn_q", [32, 64]), ("attn_k", [32, 32]), ("attn_v", [32, 32]), ("attn_output", [64, 32])]
    {
        let t = g.tensor(&format!("blk.0.{name}.weight"));
        t.dims = dims.to_vec();
        t.bytes = 4 * dims[0] * dims[1];
    }
    g.set("llama.attention.key_length", V::U32(16));
    g.set("llama.rope.dimension_count", V::U32(8));
    g.set("llama.rope.freq_base", V::F32(500_000.0));
    g.set("llama.attention.sliding_window", V::U32(16));
    g.set("llama.final_logit_softcapping", V::F32(30.0));
    g.set("llama.attention.head_count_kv", V::U32s(vec![2]));
    let model = open_gguf(&g).unwrap();
    let (a, w) = attention(&model.spec, 0);
    assert_eq!((a.head_dim, a.window), (16, Some(16)));
    assert_eq!(a.rope, rope(RopeStyle::Normal, 500_000.0, &RopeScaling::None));
    assert!(w.o_bias.is_some());
    assert_eq!(head(&model.spec).soft_cap, Some(30.0));
    let Some(Block::Head { weight, .. }) = model.spec.blocks.last() else { panic!("head") };
    assert_eq!(weight.name, "output.weight");
}

#[test]
fn qwen() {
    let model = open_gguf(&tiny("qwen2", 1)).unwrap();
    let (a, w) = attention(&model.spec, 0);
    assert_eq!(a.rope.style, RopeStyle::Neox);
    assert_eq!(w.k_bias.as_ref().map(|b| (b.rows, b.cols)), Some((1, 16)));
    let text = open_gguf(&tiny("qwen2", 1).without("blk.0.attn_k.bias")).unwrap_err().to_string();
    assert_eq!(text, "tensor blk.0.attn_k.bias is missing");

    let model = open_gguf(&tiny("qwen3", 1)).unwrap();
    let (a, w) = attention(&model.spec, 0);
    assert!(a.qk_norm.is_some() && w.q_norm.is_some() && w.q_bias.is_none());
    assert_eq!(a.rope.style, RopeStyle::Neox);
}

#[test]
fn gemma3() {
    let g = tiny("gemma3", 7)
        .key("gemma3.attention.sliding_window", V::U32(4))
        .key("gemma3.rope.freq_base", V::F32(1e6))
        .key("gemma3.rope.scaling.type", V::Str("linear"))
        .key("gemma3.rope.scaling.factor", V::F32(8.0));
    let model = open_gguf(&g).unwrap();
    let spec = &model.spec;
    let windows: Vec<_> = (0..7).map(|i| attention(spec, i).0.window).collect();
    let local = Some(4);
    assert_eq!(windows, [local, local, local, local, local, None, local]);
    let global = rope(RopeStyle::Neox, 1e6, &RopeScaling::Linear { factor: 8.0 });
    assert_eq!(attention(spec, 5).0.rope, global);
    assert_eq!(attention(spec, 0).0.rope, rope(RopeStyle::Neox, 10_000.0, &RopeScaling::None));
    let (a, w) = attention(spec, 0);
    assert!(a.qk_norm.is_some() && a.post_norm.is_some() && w.post_norm.is_some());
    assert_eq!((a.norm.weight_offset, a.scale), (0.0, 1.0 / 8f32.sqrt()));
    assert_eq!((ffn(spec, 0).activation, ffn(spec, 0).post_norm.is_some()), (Activation::GeluTanh, true));
    let Block::Embedding { spec: e, .. } = &spec.blocks[0] else { panic!("embedding") };
    assert_eq!(e.scale, 32f32.sqrt());

    let flags = V::Bools(vec![false, true, false, false, false, false, false]);
    let model = open_gguf(&g.clone().key("gemma3.attention.sliding_window_pattern", flags)).unwrap();
    assert_eq!(attention(&model.spec, 1).0.window, Some(4));
    assert_eq!(attention(&model.spec, 0).0.window, None);
    // Zero is how writers say that there is no window.
    let model = open_gguf(&tiny("gemma3", 2).key("gemma3.attention.sliding_window", V::U32(0))).unwrap();
    assert_eq!(attention(&model.spec, 0).0.window, None);
}

#[test]
fn lfm2() {
    let model = open_gguf(&tiny("lfm2", 4)).unwrap();
    let spec = &model.spec;
    let states: Vec<_> = spec.blocks.iter().filter_map(Block::state).collect();
    let convolution = StateSpec::Recurrent { floats: 2 * 32 };
    assert_eq!(states, [convolution, convolution, StateSpec::Paged, convolution]);
    let Block::ShortConv { spec: c, weights: w } = &spec.blocks[1] else { panic!("the first mixer") };
    assert_eq!((c.width, c.kernel, c.norm.eps), (32, 3, 1e-5));
    assert_eq!((w.conv.rows, w.conv.cols, w.input.rows, w.output.rows), (32, 3, 96, 32));
    let (a, w) = attention(spec, 2);
    assert!(a.qk_norm.is_some() && w.q_norm.is_some() && a.rope.style == RopeStyle::Neox);
    assert_eq!((a.heads, a.kv_heads, a.head_dim), (4, 2, 8));
    let Some(Block::Head { norm, .. }) = spec.blocks.last() else { panic!("head") };
    assert_eq!(norm.name, "token_embd_norm.weight");
    let with = |key: &str, value: V| {
        let mut g = tiny("lfm2", 3);
        g.set(key, value);
        open_gguf(&g).map(|m| m.spec).expect_err(key).to_string()
    };
    assert_eq!(with("lfm2.shortconv.l_cache", V::U32(1)), "key lfm2.shortconv.l_cache: must be at least 2");
    let text = with("lfm2.shortconv.l_cache", V::U32(4));
    assert_eq!(text, "tensor blk.0.shortconv.conv.weight: expected shape [32, 4], found [32, 3]");
    let text = with("lfm2.attention.head_count_kv", V::U32s(vec![2, 0, 2]));
    assert_eq!(text, "tensor blk.0.attn_q.weight is missing");
    let mut g = tiny("lfm2", 3);
    g.keys.retain(|k| k.0 != "lfm2.shortconv.l_cache");
    assert_eq!(open_gguf(&g).unwrap_err().to_string(), "key lfm2.shortconv.l_cache is missing");
}

#[test]
fn rope_scaling() {
    let mut g = tiny("llama", 1).f32("rope_freqs.weight", &[4]);
    g.tensor("rope_freqs.weight").data = [1f32, 2.0, 4.0, 8.0].iter().flat_map(|f| f.to_le_bytes()).collect();
    let factors = RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]);
    let model = open_gguf(&g).unwrap();
    assert_eq!(attention(&model.spec, 0).0.rope, rope(RopeStyle::Normal, 10_000.0, &factors));
    g.tensor("rope_freqs.weight").dims = vec![2, 2];
    open_gguf(&g).unwrap();
    g.tensor("rope_freqs.weight").dims = vec![5];
    g.tensor("rope_freqs.weight").bytes = 20;
    let text = open_gguf(&g).unwrap_err().to_string();
    assert_eq!(text, "tensor rope_freqs.weight: expected shape [4], found [5]");
    g.tensor("rope_freqs.weight").dims = vec![4];
    g.tensor("rope_freqs.weight").data = vec![0; 16];
    let text = open_gguf(&g).unwrap_err().to_string();
    assert_eq!(text, "key rope_freqs.weight: divisors must be finite and above zero");

    let yarn = tiny("qwen3", 1)
        .key("qwen3.rope.scaling.type", V::Str("yarn"))
        .key("qwen3.rope.scaling.factor", V::F32(4.0))
        .key("qwen3.rope.scaling.original_context_length", V::U32(32));
    let model = open_gguf(&yarn).unwrap();
    let scaling = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 32,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
    };
    assert_eq!(attention(&model.spec, 0).0.rope, rope(RopeStyle::Neox, 10_000.0, &scaling));
    let text = open_gguf(&tiny("llama", 1).key("llama.rope.scaling.type", V::Str("longrope"))).unwrap_err();
    assert_eq!(text.to_string(), "llama.rope.scaling.type \"longrope\" is not supported");
}

#[test]
fn bad_hyperparameters() {
    let with = |key: &str, value: V| {
        let error = open_gguf(&tiny("llama", 1).key(key, value)).map(|m| m.spec).expect_err(key);
        error.to_string()
    };
    let cases = [
        ("llama.attention.head_count", V::U32(0), "must be at least 1"),
        ("llama.attention.head_count_kv", V::U32(0), "must be at least 1"),
        ("llama.attention.head_count_kv", V::U32(3), "3 does not divide the 4 query heads of layer 0"),
        ("llama.attention.head_count", V::U32(5), "5 does not divide the width 32"),
        ("llama.attention.head_count", V::U32(1 << 31), "2147483648 is more than the limit of 65536"),
        ("llama.attention.head_count", V::U32s(vec![4, 4]), "2 entries for 1 layers"),
        ("llama.attention.head_count", V::Str("4"), "expected an integer, found string"),
        ("llama.attention.head_count", V::I32(-4), "-4 is out of range"),
        ("llama.embedding_length", V::U32(0), "must be at least 1"),
        ("llama.embedding_length", V::U64(1 << 50), "is more than the limit of 1048576"),
        ("llama.block_count", V::U32(0), "must be at least 1"),
        ("llama.block_count", V::U32(100), "100 layers, but the model has only 11 tensors"),
        ("llama.block_count", V::U32(1 << 31), "is more than the limit of 4096"),
        ("llama.attention.key_length", V::U32(1 << 30), "is more than the limit of 16384"),
        ("llama.context_length", V::U32(0), "must be at least 1"),
        ("llama.attention.layer_norm_rms_epsilon", V::F32(f32::NAN), "NaN is not a finite number"),
        ("llama.attention.layer_norm_rms_epsilon", V::F32(-1.0), "-1 is below zero"),
        ("llama.rope.freq_base", V::F32(0.0), "0 is not above zero"),
        ("llama.rope.dimension_count", V::U32(7), "7 rotary dimensions do not fit heads of 8"),
        ("llama.rope.dimension_count", V::U32(10), "10 rotary dimensions do not fit heads of 8"),
        ("llama.rope.scaling.factor", V::F32(-2.0), "-2 is below zero"),
    ];
    for (key, value, reason) in cases {
        let text = with(key, value);
        assert!(text.starts_with(&format!("key {key}: ")) && text.contains(reason), "{key}: {text}");
    }
    let text = with("llama.expert_count", V::U32(8));
    assert_eq!(text, "a mixture of experts (llama.expert_count = 8) is not supported");
    assert!(with("llama.attention.value_length", V::U32(4)).contains("is not supported"));
    let text = with("tokenizer.ggml.tokens", V::Strs(vec!["a"]));
    assert_eq!(text, "tensor token_embd.weight has 6 rows, but tokenizer.ggml.tokens says 1 tokens");
    let text = with("llama.vocab_size", V::U32(7));
    assert_eq!(text, "tensor token_embd.weight has 6 rows, but llama.vocab_size says 7 tokens");
    for key in
        ["embedding_length", "block_count", "feed_forward_length", "attention.head_count", "context_length"]
    {
        let mut g = tiny("llama", 1);
        g.keys.retain(|k| k.0 != format!("llama.{key}"));
        assert_eq!(open_gguf(&g).unwrap_err().to_string(), format!("key llama.{key} is missing"));
    }
}

#[test]
fn bad_architecture() {
    let text = open_gguf(&tiny("mamba", 1)).unwrap_err().to_string();
    assert_eq!(text, "unknown architecture \"mamba\"; known are llama, qwen2, qwen3, gemma3, lfm2, bert");
    let mut g = tiny("llama", 1);
    g.keys.remove(0);
    assert_eq!(open_gguf(&g).unwrap_err().to_string(), "key general.architecture is missing");
    g = tiny("llama", 1);
    g.tensors.clear();
    assert!(open_gguf(&g).unwrap_err().to_string().contains("no tensors"));
}

#[test]
fn every_tensor_is_needed_and_has_one_shape() {
    for (architecture, layers) in [("llama", 2), ("qwen2", 2), ("qwen3", 2), ("gemma3", 2), ("lfm2", 3)] {
        let g = tiny(architecture, layers);
        for t in &g.tensors {
            let text = open_gguf(&g.clone().without(&t.name)).unwrap_err().to_string();
            assert_eq!(text, format!("tensor {} is missing", t.name));
            let mut bad = g.clone();
            let tensor = bad.tensor(&t.name);
            tensor.dims[0] *= 2;
            tensor.bytes *= 2;
            let text = open_gguf(&bad).unwrap_err().to_string();
            let expected = t.dims.iter().rev().collect::<Vec<_>>();
            let start = format!("tensor {}: expected shape {expected:?}, found", t.name);
            assert!(text.starts_with(&start), "{text}");
        }
    }
}

#[test]
fn unused_and_unreadable_tensors() {
    let g = tiny("llama", 1).f32("blk.0.ffn_gate.bias", &[64]);
    let text = open_gguf(&g).unwrap_err().to_string();
    assert_eq!(text, "tensor blk.0.ffn_gate.bias in a model of architecture llama is not supported");
    open_gguf(&tiny("llama", 1).f32("v.patch_embd.weight", &[4])).unwrap();
    let mut g = tiny("llama", 1);
    g.tensor("blk.0.attn_q.weight").ty = 26;
    let text = open_gguf(&g).unwrap_err().to_string();
    assert_eq!(text, "tensor blk.0.attn_q.weight: element type I32 is not supported");
}

#[test]
fn weights_and_text_of_a_gguf() {
    let mut g =
        tiny("llama", 1).key("general.sampling.temp", V::F32(0.6)).key("general.sampling.top_k", V::I32(20));
    g.tensor("blk.0.attn_v.weight").data = vec![1, 2, 3, 4, 5];
    let dir = tempfile::tempdir().unwrap();
    let path = g.save(dir.path(), "m.gguf");
    let model = open(&path).unwrap();
    let mut buf = [0; 4];
    model.source.read(&attention(&model.spec, 0).1.v.span, 1, &mut buf).unwrap();
    assert_eq!(buf, [2, 3, 4, 5]);
    let tokenizer = model.tokenizer().unwrap().tokenizer;
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (6, Some(5)));
    assert_eq!(model.chat_template().unwrap().as_deref(), Some("{{ messages[0].content }}"));
    let defaults = model.generation_defaults();
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (Some(0.6), Some(20), None));
    let i = inspect(&path).unwrap();
    assert_eq!((&i.files[..], i.file_bytes), (&[path][..], g.bytes().len() as u64));
    assert_eq!((i.format.as_str(), i.version, i.architecture.as_deref()), ("GGUF", Some(3), Some("llama")));
    assert_eq!((i.tensors.len(), i.totals.len(), i.totals[0].ty.as_str()), (11, 1, "F32"));
    assert_eq!(i.parameters, model.spec.parameters());
    let tokens = i.metadata.iter().find(|m| m.key == "tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.ty, "array of string");
    assert_eq!(tokens.value, r#"["a", "b", "c", "ab", "abc", "<|end|>"]"#);
}
