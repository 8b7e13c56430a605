//! Every hyperparameter that is read: its names in both formats, and what holds where a file leaves it out.
//!
//! The tables are the documentation. [`Key`] lists the names, the usual one first: GGUF names stand after `ARCHITECTURE.`, and
//! further names are those that other writers are known to use. [`CONFIG_DEFAULTS`] are the defaults of the configuration classes of
//! `transformers` 5, which is what a `config.json` that lacks a key means. GGUF has no such defaults: [`GGUF_DEFAULTS`] are what
//! the published models of an architecture have, and taking one is told. A required key in neither table is an error by name.

/// One hyperparameter. An empty list means that the format has no such key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub gguf: &'static [&'static str],
    pub json: &'static [&'static str],
}

macro_rules! keys {
    ($($name:ident = [$($gguf:literal),*], [$($json:literal),*];)*) => {
        $(pub(super) const $name: Key = Key { gguf: &[$($gguf),*], json: &[$($json),*] };)*

        /// All keys, to tell known names from unknown ones.
        const ALL: &[Key] = &[$($name),*];
    };
}

keys! {
    WIDTH = ["embedding_length"], ["hidden_size"];
    LAYERS = ["block_count"], ["num_hidden_layers"];
    HIDDEN = ["feed_forward_length"], ["intermediate_size"];
    HEADS = ["attention.head_count"], ["num_attention_heads"];
    KV_HEADS = ["attention.head_count_kv"], ["num_key_value_heads"];
    HEAD_DIM = ["attention.key_length"], ["head_dim"];
    VALUE_DIM = ["attention.value_length"], ["v_head_dim"];
    HEAD_DIM_LOCAL = ["attention.key_length_swa"], [];
    VALUE_DIM_LOCAL = ["attention.value_length_swa"], [];
    CONTEXT = ["context_length"], ["max_position_embeddings"];
    NORM_EPS = ["attention.layer_norm_rms_epsilon"], ["rms_norm_eps"];
    LFM2_NORM_EPS = [], ["norm_eps"];
    VOCAB = ["vocab_size"], ["vocab_size"];
    LAYER_NORM_EPS = ["attention.layer_norm_epsilon"], ["layer_norm_eps"];
    TOKEN_TYPES = [], ["type_vocab_size"];
    POSITION_TYPE = [], ["position_embedding_type"];
    IS_DECODER = [], ["is_decoder"];
    POOLING = ["pooling_type"], [];
    CAUSAL = ["attention.causal"], [];
    WINDOW = ["attention.sliding_window"], ["sliding_window"];
    WINDOW_PATTERN = ["attention.sliding_window_pattern"], ["sliding_window_pattern"];
    WINDOW_FIRST_LAYER = [], ["max_window_layers"];
    WINDOW_USED = [], ["use_sliding_window"];
    LAYER_TYPES = [], ["layer_types"];
    ATTENTION_LAYERS = [], ["full_attn_idxs"];
    CONV_KERNEL = ["shortconv.l_cache"], ["conv_L_cache"];
    BLOCK_HIDDEN = [], ["block_ff_dim"];
    HIDDEN_ADJUSTED = [], ["block_auto_adjust_ff_dim"];
    HIDDEN_FACTOR = [], ["block_ffn_dim_multiplier"];
    HIDDEN_MULTIPLE = [], ["block_multiple_of"];
    ATTENTION_SCALE = ["attention.scale"], [];
    QUERY_SCALAR = [], ["query_pre_attn_scalar"];
    ATTENTION_SOFT_CAP = ["attn_logit_softcapping"], ["attn_logit_softcapping"];
    FINAL_SOFT_CAP = ["final_logit_softcapping"], ["final_logit_softcapping"];
    ATTENTION_BIAS = [], ["attention_bias"];
    TIED = [], ["tie_word_embeddings"];
    ACTIVATION = ["hidden_activation", "hidden_act"], ["hidden_act"];
    GEMMA_ACTIVATION = [], ["hidden_activation"];
    ROPE_DIMS = ["rope.dimension_count"], [];
    ROPE_DIMS_LOCAL = ["rope.dimension_count_swa"], [];
    ROPE_BASE = ["rope.freq_base", "rope.global.freq_base"], ["rope_theta"];
    ROPE_BASE_LOCAL = ["rope.freq_base_swa", "rope.local.freq_base", "rope.local_freq_base"], ["rope_local_base_freq"];
    ROPE_PARTIAL = [], ["partial_rotary_factor"];
    ROPE_TYPE = ["rope.scaling.type"], ["rope_type", "type"];
    ROPE_FACTOR = ["rope.scaling.factor", "rope.scale_linear"], ["factor"];
    ROPE_CONTEXT = ["rope.scaling.original_context_length"], ["original_max_position_embeddings"];
    ROPE_ATTENTION = ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"], ["attention_factor"];
    ROPE_BETA_FAST = ["rope.scaling.yarn_beta_fast", "rope.scaling.beta_fast"], ["beta_fast"];
    ROPE_BETA_SLOW = ["rope.scaling.yarn_beta_slow", "rope.scaling.beta_slow"], ["beta_slow"];
    ROPE_LOW = [], ["low_freq_factor"];
    ROPE_HIGH = [], ["high_freq_factor"];
    ROPE_MSCALE = [], ["mscale"];
    ROPE_MSCALE_ALL = [], ["mscale_all_dim"];
}

/// A class of `transformers`, one column of [`CONFIG_DEFAULTS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma3,
    Lfm2,
    /// Has a table of its own, [`BERT_DEFAULTS`].
    Bert = 99,
}

/// The key has no default: its absence means "none", or the value follows from others.
const NONE: f64 = f64::NAN;

/// Key, then the default in `LlamaConfig`, `MistralConfig`, `Qwen2Config`, `Qwen3Config`, `Gemma3TextConfig` and `Lfm2Config`. Flags are 0 and 1.
/// Where a file says `null`, the default does not hold: `null` is the value "none".
#[rustfmt::skip]
const CONFIG_DEFAULTS: [(&str, [f64; 6]); 22] = [
    ("hidden_size",             [4096.0,  4096.0,    4096.0,   4096.0,   2304.0, 2560.0]),
    ("intermediate_size",       [11008.0, 14336.0,   22016.0,  22016.0,  9216.0, 12288.0]),
    ("num_hidden_layers",       [32.0,    32.0,      32.0,     32.0,     26.0, 32.0]),
    ("num_attention_heads",     [32.0,    32.0,      32.0,     32.0,     8.0, 32.0]),
    ("num_key_value_heads",     [NONE,    8.0,       32.0,     32.0,     4.0, 8.0]),
    ("head_dim",                [NONE,    NONE,      NONE,     128.0,    256.0, NONE]),
    ("max_position_embeddings", [2048.0,  131_072.0, 32_768.0, 32_768.0, 131_072.0, 128_000.0]),
    ("rms_norm_eps",            [1e-6,    1e-6,      1e-6,     1e-6,     1e-6, NONE]),
    ("rope_theta",              [1e4,     1e4,       1e4,      1e4,      1e6, 1e6]),
    ("rope_local_base_freq",    [NONE,    NONE,      NONE,     NONE,     1e4, NONE]),
    ("query_pre_attn_scalar",   [NONE,    NONE,      NONE,     NONE,     256.0, NONE]),
    ("sliding_window",          [NONE,    4096.0,    4096.0,   4096.0,   4096.0, NONE]),
    ("use_sliding_window",      [NONE,    NONE,      0.0,      0.0,      NONE, NONE]),
    ("max_window_layers",       [NONE,    NONE,      28.0,     28.0,     NONE, NONE]),
    ("sliding_window_pattern",  [NONE,    NONE,      NONE,     NONE,     6.0, NONE]),
    ("attention_bias",          [0.0,     NONE,      NONE,     0.0,      0.0, NONE]),
    ("tie_word_embeddings",     [0.0,     0.0,       0.0,      0.0,      1.0, 1.0]),
    ("norm_eps",                 [NONE,    NONE,      NONE,     NONE,     NONE,      1e-5]),
    ("conv_L_cache",             [NONE,    NONE,      NONE,     NONE,     NONE,      3.0]),
    ("block_auto_adjust_ff_dim", [NONE,    NONE,      NONE,     NONE,     NONE,      1.0]),
    ("block_ffn_dim_multiplier", [NONE,    NONE,      NONE,     NONE,     NONE,      1.0]),
    ("block_multiple_of",        [NONE,    NONE,      NONE,     NONE,     NONE,      256.0]),
];

/// Key and default of `BertConfig`.
const BERT_DEFAULTS: [(&str, f64); 8] = [
    ("hidden_size", 768.0),
    ("intermediate_size", 3072.0),
    ("num_hidden_layers", 12.0),
    ("num_attention_heads", 12.0),
    ("max_position_embeddings", 512.0),
    ("layer_norm_eps", 1e-12),
    ("type_vocab_size", 2.0),
    ("is_decoder", 0.0),
];

/// Key, then what the published models of llama, qwen2, qwen3, gemma3 and lfm2 have, and whether that is a guess to be told: the
/// others are not stored by any writer, so that their absence says nothing.
#[rustfmt::skip]
const GGUF_DEFAULTS: [(&str, [f64; 5], bool); 3] = [
    ("rope.freq_base",                   [1e4,  1e6,  1e6,  1e6,  1e6], true),
    ("rope.freq_base_swa",               [NONE, NONE, NONE, 1e4,  NONE], false),
    ("attention.sliding_window_pattern", [NONE, NONE, NONE, 6.0,  NONE], false),
];

/// Limit of hidden widths: no file may ask for memory before its tensors are checked.
pub(super) const HIDDEN_MAX: usize = 1 << 24;

/// Names of GGUF architectures in the order of the columns of [`GGUF_DEFAULTS`].
const GGUF_COLUMNS: [&str; 5] = ["llama", "qwen2", "qwen3", "gemma3", "lfm2"];

/// What a `config.json` of this class means where it lacks the key.
pub(super) fn config_default(class: Class, key: Key) -> Option<f64> {
    let name = key.json.first()?;
    if class == Class::Bert {
        return BERT_DEFAULTS.iter().find(|row| row.0 == *name).map(|row| row.1);
    }
    let row = CONFIG_DEFAULTS.iter().find(|row| row.0 == *name)?;
    Some(row.1[class as usize]).filter(|v| !v.is_nan())
}

/// What is taken where a GGUF file lacks the key, and whether that is a guess.
pub(super) fn gguf_default(architecture: &str, key: Key) -> Option<(f64, bool)> {
    let name = key.gguf.first()?;
    let row = GGUF_DEFAULTS.iter().find(|row| row.0 == *name)?;
    let column = GGUF_COLUMNS.iter().position(|column| *column == architecture)?;
    Some((row.1[column], row.2)).filter(|d| !d.0.is_nan())
}

/// Sizes in which Gemma 3 was published, told apart by layers and width: window in tokens, and factor of the linear scaling of
/// the global rotary embedding. Some writers of GGUF files store neither.
#[rustfmt::skip]
pub(super) const GEMMA3_SIZES: [(usize, usize, usize, f32); 5] = [
    (18, 640,  512,  1.0),
    (26, 1152, 512,  1.0),
    (34, 2560, 1024, 8.0),
    (48, 3840, 1024, 8.0),
    (62, 5376, 1024, 8.0),
];

/// What a key that is not implemented may say without changing anything.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Neutral {
    /// Zero, false, or an empty string or list.
    Off,
    /// One, or zero where writers mean "not set".
    One,
    /// True.
    On,
}

/// GGUF keys that change what a model computes in a way that is not implemented.
pub(super) const GGUF_REFUSED: [(&str, Neutral); 27] = [
    ("expert_count", Neutral::Off),
    ("expert_used_count", Neutral::Off),
    ("attention.causal", Neutral::On),
    ("attention.clamp_kqv", Neutral::Off),
    ("attention.max_alibi_bias", Neutral::Off),
    ("attention.shared_kv_layers", Neutral::Off),
    ("attention.key_length_mla", Neutral::Off),
    ("attention.q_lora_rank", Neutral::Off),
    ("attention.kv_lora_rank", Neutral::Off),
    ("attention.temperature_scale", Neutral::Off),
    ("attention.temperature_length", Neutral::Off),
    ("attention.output_scale", Neutral::One),
    ("embedding_scale", Neutral::One),
    ("residual_scale", Neutral::One),
    ("logit_scale", Neutral::One),
    ("use_parallel_residual", Neutral::Off),
    ("swin_norm", Neutral::Off),
    ("nextn_predict_layers", Neutral::Off),
    ("full_attention_interval", Neutral::Off),
    ("no_rope_layer_step", Neutral::Off),
    ("rope.dimension_sections", Neutral::Off),
    ("rope.freq_scale", Neutral::One),
    ("rope.scale", Neutral::One),
    ("rope.scaling.yarn_ext_factor", Neutral::One),
    ("rope.scaling.extrapolation_factor", Neutral::One),
    // DeepSeek's variant of YaRN, which changes the magnitude.
    ("rope.scaling.yarn_log_multiplier", Neutral::Off),
    ("router_logit_softcapping", Neutral::Off),
];

/// GGUF keys that are known to change nothing here.
const GGUF_IRRELEVANT: [&str; 6] = [
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "attention.layer_norm_epsilon",
    "leading_dense_block_count",
    "attention.head_count_kv_original",
    "parameter_count",
];

/// Parts of other models that share a file with the language model.
const GGUF_OTHER_PARTS: [&str; 4] = ["vision.", "audio.", "mm.", "projector."];

/// Whether anything here reads the GGUF key, given without the architecture, or knows that it changes nothing.
pub(super) fn is_known_gguf(name: &str) -> bool {
    ALL.iter().any(|key| key.gguf.contains(&name))
        || GGUF_REFUSED.iter().any(|(refused, _)| *refused == name)
        || GGUF_IRRELEVANT.contains(&name)
        || GGUF_OTHER_PARTS.iter().any(|part| name.starts_with(part))
}

/// `config.json` keys that change what a model computes in a way that is not implemented. Those that a class of `transformers`
/// reads are listed, and those that code shipped beside a model reads and that a class of these names would miss.
pub(super) const CONFIG_REFUSED: [(&str, Neutral); 36] = [
    ("conv_bias", Neutral::Off),
    ("mlp_bias", Neutral::Off),
    ("use_bidirectional_attention", Neutral::Off),
    ("is_encoder_decoder", Neutral::Off),
    ("add_cross_attention", Neutral::Off),
    ("num_local_experts", Neutral::Off),
    ("num_experts", Neutral::Off),
    ("n_routed_experts", Neutral::Off),
    ("moe_intermediate_size", Neutral::Off),
    ("num_nextn_predict_layers", Neutral::Off),
    ("alibi", Neutral::Off),
    ("parallel_attn", Neutral::Off),
    ("use_parallel_residual", Neutral::Off),
    ("clip_qkv", Neutral::Off),
    ("use_qk_norm", Neutral::Off),
    ("qk_norm", Neutral::Off),
    ("qk_layernorm", Neutral::Off),
    ("no_rope_layers", Neutral::Off),
    ("no_rope_layer_interval", Neutral::Off),
    ("attention_chunk_size", Neutral::Off),
    ("attn_temperature_tuning", Neutral::Off),
    ("attention_multiplier", Neutral::One),
    ("embedding_multiplier", Neutral::One),
    ("residual_multiplier", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("logit_scale", Neutral::One),
    ("scale_emb", Neutral::One),
    ("scale_depth", Neutral::One),
    ("dim_model_base", Neutral::Off),
    ("scale_attn_by_inverse_layer_idx", Neutral::Off),
    ("kv_lora_rank", Neutral::Off),
    ("q_lora_rank", Neutral::Off),
    ("num_kv_shared_layers", Neutral::Off),
    ("hidden_size_per_layer_input", Neutral::Off),
    ("cross_layer_sharing", Neutral::Off),
    ("use_mrope", Neutral::Off),
];

/// Keys of rotary embeddings that no implemented kind reads.
pub(super) const ROPE_REFUSED: [(&str, Neutral); 5] = [
    ("mrope_section", Neutral::Off),
    ("mrope_interleaved", Neutral::Off),
    ("short_factor", Neutral::Off),
    ("long_factor", Neutral::Off),
    ("truncate", Neutral::On),
];

/// Keys that have a meaning in some class and none in this one: `transformers` loads the model and does not look at them.
pub(super) fn without_effect(class: Class) -> &'static [Key] {
    match class {
        Class::Llama => {
            &[WINDOW, LAYER_TYPES, WINDOW_PATTERN, ATTENTION_SOFT_CAP, FINAL_SOFT_CAP, QUERY_SCALAR]
        }
        Class::Mistral => &[WINDOW_PATTERN, ATTENTION_BIAS, ATTENTION_SOFT_CAP, FINAL_SOFT_CAP, QUERY_SCALAR],
        Class::Qwen2 => &[WINDOW_PATTERN, ATTENTION_BIAS, ATTENTION_SOFT_CAP, FINAL_SOFT_CAP, QUERY_SCALAR],
        Class::Qwen3 => &[WINDOW_PATTERN, ATTENTION_SOFT_CAP, FINAL_SOFT_CAP, QUERY_SCALAR],
        Class::Lfm2 => &[
            ACTIVATION,
            ATTENTION_BIAS,
            WINDOW,
            WINDOW_PATTERN,
            ATTENTION_SOFT_CAP,
            FINAL_SOFT_CAP,
            QUERY_SCALAR,
        ],
        // It stores the cap of the attention scores without applying it.
        Class::Gemma3 => &[ATTENTION_SOFT_CAP],
        Class::Bert => &[],
    }
}
