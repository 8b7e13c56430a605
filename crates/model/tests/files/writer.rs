//! Small writers of model files, right or wrong in every field.

use std::path::{Path, PathBuf};

/// A metadata value to write.
#[derive(Clone)]
pub enum V {
    U8(u8),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(u8),
    U64(u64),
    Str(&'static str),
    Strs(Vec<&'static str>),
    F32s(Vec<f32>),
    U32s(Vec<u32>),
    Bools(Vec<bool>),
    /// Type id and raw bytes.
    Raw(u32, Vec<u8>),
}

impl V {
    fn write(&self, out: &mut Vec<u8>) {
        let (id, bytes): (u32, Vec<u8>) = match self {
            V::U8(v) => (0, vec![*v]),
            V::U32(v) => (4, v.to_le_bytes().to_vec()),
            V::I32(v) => (5, v.to_le_bytes().to_vec()),
            V::F32(v) => (6, v.to_le_bytes().to_vec()),
            V::Bool(v) => (7, vec![*v]),
            V::U64(v) => (10, v.to_le_bytes().to_vec()),
            V::Str(v) => (8, string(v)),
            V::Strs(v) => (9, array(8, v.len(), v.iter().flat_map(|s| string(s)))),
            V::F32s(v) => (9, array(6, v.len(), v.iter().flat_map(|f| f.to_le_bytes()))),
            V::U32s(v) => (9, array(4, v.len(), v.iter().flat_map(|f| f.to_le_bytes()))),
            V::Bools(v) => (9, array(7, v.len(), v.iter().map(|b| *b as u8))),
            V::Raw(id, bytes) => (*id, bytes.clone()),
        };
        out.extend(id.to_le_bytes());
        out.extend(bytes);
    }
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn array(id: u32, len: usize, bytes: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let mut out = id.to_le_bytes().to_vec();
    out.extend((len as u64).to_le_bytes());
    out.extend(bytes);
    out
}

/// A tensor to write; `bytes` of zeros unless `data` is given.
#[derive(Clone)]
pub struct T {
    pub name: String,
    /// Innermost first, as in the file.
    pub dims: Vec<u64>,
    pub ty: u32,
    /// Relative to the data; the next aligned byte when absent.
    pub offset: Option<u64>,
    pub bytes: u64,
    pub data: Vec<u8>,
}

#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    pub keys: Vec<(String, V)>,
    pub tensors: Vec<T>,
    pub alignment: u64,
}

impl Default for Gguf {
    fn default() -> Gguf {
        let (keys, tensors) = (Vec::new(), Vec::new());
        Gguf {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            keys,
            tensors,
            alignment: 32,
        }
    }
}

impl Gguf {
    pub fn key(mut self, key: &str, value: V) -> Gguf {
        self.set(key, value);
        self
    }

    /// Replaces or adds.
    pub fn set(&mut self, key: &str, value: V) {
        match self.keys.iter_mut().find(|k| k.0 == key) {
            Some(slot) => slot.1 = value,
            None => self.keys.push((key.to_owned(), value)),
        }
    }

    /// An F32 tensor of zeros; `dims` innermost first.
    pub fn f32(mut self, name: impl Into<String>, dims: &[u64]) -> Gguf {
        let bytes = 4 * dims.iter().product::<u64>();
        let (name, dims) = (name.into(), dims.to_vec());
        self.tensors.push(T { name, dims, ty: 0, offset: None, bytes, data: Vec::new() });
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut T {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub fn without(mut self, name: &str) -> Gguf {
        self.tensors.retain(|t| t.name != name);
        self
    }

    pub fn head(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            out.extend(string(key));
            value.write(&mut out);
        }
        let mut next = 0;
        for t in &self.tensors {
            out.extend(string(&t.name));
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.ty.to_le_bytes());
            out.extend(t.offset.unwrap_or(next).to_le_bytes());
            next = (next + t.bytes).next_multiple_of(self.alignment);
        }
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.head();
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        for t in &self.tensors {
            let start = out.len();
            out.extend(&t.data);
            out.resize(start + t.bytes as usize, 0);
            out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        }
        out
    }

    pub fn save(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}

/// A whole tiny model of an architecture, with a tokenizer: width 32, 4 heads of 8 over 2 KV heads, hidden 64, 6 tokens.
pub fn tiny(architecture: &'static str, layers: usize) -> Gguf {
    let a = |name: &str| format!("{architecture}.{name}");
    let mut g = Gguf::default()
        .key("general.architecture", V::Str(architecture))
        .key("general.name", V::Str("Tiny"))
        .key(&a("embedding_length"), V::U32(32))
        .key(&a("block_count"), V::U32(layers as u32))
        .key(&a("feed_forward_length"), V::U32(64))
        .key(&a("attention.head_count"), V::U32(4))
        .key(&a("attention.head_count_kv"), V::U32(2))
        .key(&a("attention.layer_norm_rms_epsilon"), V::F32(1e-5))
        .key(&a("context_length"), V::U32(128))
        .key(&a("rope.freq_base"), V::F32(10_000.0))
        .key("tokenizer.ggml.model", V::Str("gpt2"))
        .key("tokenizer.ggml.pre", V::Str("gpt-2"))
        .key("tokenizer.ggml.tokens", V::Strs(vec!["a", "b", "c", "ab", "abc", "<|end|>"]))
        .key(
            "tokenizer.ggml.token_type",
            V::Raw(9, array(5, 6, [1, 1, 1, 1, 1, 3].iter().flat_map(|t: &i32| t.to_le_bytes()))),
        )
        .key("tokenizer.ggml.merges", V::Strs(vec!["a b", "ab c"]))
        .key("tokenizer.ggml.eos_token_id", V::U32(5))
        .key("tokenizer.chat_template", V::Str("{{ messages[0].content }}"))
        .f32("token_embd.weight", &[32, 6])
        .f32("output_norm.weight", &[32]);
    if architecture == "lfm2" {
        // Two convolutions, then attention.
        let kv = (0..layers).map(|i| if i % 3 == 2 { 2 } else { 0 }).collect();
        g.tensors.pop();
        g.set("lfm2.attention.head_count_kv", V::U32s(kv));
        g = g.key("lfm2.shortconv.l_cache", V::U32(3)).f32("token_embd_norm.weight", &[32]);
    }
    if architecture == "gemma3" {
        g = g.key("gemma3.attention.sliding_window", V::U32(4));
    }
    for i in 0..layers {
        let n = |name: &str| format!("blk.{i}.{name}.weight");
        let convolution = architecture == "lfm2" && i % 3 != 2;
        g = g.f32(n("attn_norm"), &[32]);
        g = match convolution {
            true => g
                .f32(n("shortconv.in_proj"), &[32, 96])
                .f32(n("shortconv.conv"), &[3, 32])
                .f32(n("shortconv.out_proj"), &[32, 32]),
            false => g
                .f32(n("attn_q"), &[32, 32])
                .f32(n("attn_k"), &[32, 16])
                .f32(n("attn_v"), &[32, 16])
                .f32(n("attn_output"), &[32, 32]),
        };
        g = g
            .f32(n("ffn_norm"), &[32])
            .f32(n("ffn_gate"), &[32, 64])
            .f32(n("ffn_up"), &[32, 64])
            .f32(n("ffn_down"), &[64, 32]);
        if architecture == "qwen2" {
            for (name, len) in [("attn_q", 32), ("attn_k", 16), ("attn_v", 16)] {
                g = g.f32(format!("blk.{i}.{name}.bias"), &[len]);
            }
        }
        if matches!(architecture, "qwen3" | "gemma3" | "lfm2") && !convolution {
            g = g.f32(n("attn_q_norm"), &[8]).f32(n("attn_k_norm"), &[8]);
        }
        if architecture == "gemma3" {
            g = g.f32(n("post_attention_norm"), &[32]).f32(n("post_ffw_norm"), &[32]);
        }
    }
    g
}

/// A safetensors file from a JSON header and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A safetensors file of zeros: (name, outermost first shape), all of one dtype.
pub fn safetensors_zeros(dtype: &str, bytes_each: u64, tensors: &[(String, Vec<u64>)]) -> Vec<u8> {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += bytes_each * shape.iter().product::<u64>();
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    safetensors(&serde_json::Value::Object(header).to_string(), &vec![0; end as usize])
}

/// Names and shapes of a Hugging Face checkpoint with the sizes of [`tiny`].
pub fn tiny_tensors(class: &str, prefix: &str, layers: usize) -> Vec<(String, Vec<u64>)> {
    let mut all = vec![
        (format!("{prefix}embed_tokens.weight"), vec![6, 32]),
        (format!("{prefix}norm.weight"), vec![32]),
    ];
    for i in 0..layers {
        let mut add =
            |name: &str, shape: &[u64]| all.push((format!("{prefix}layers.{i}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[32]);
        add("post_attention_layernorm.weight", &[32]);
        add("self_attn.q_proj.weight", &[32, 32]);
        add("self_attn.k_proj.weight", &[16, 32]);
        add("self_attn.v_proj.weight", &[16, 32]);
        add("self_attn.o_proj.weight", &[32, 32]);
        add("mlp.gate_proj.weight", &[64, 32]);
        add("mlp.up_proj.weight", &[64, 32]);
        add("mlp.down_proj.weight", &[32, 64]);
        if class.starts_with("Qwen2") {
            add("self_attn.q_proj.bias", &[32]);
            add("self_attn.k_proj.bias", &[16]);
            add("self_attn.v_proj.bias", &[16]);
        }
        if class.starts_with("Qwen3") || class.starts_with("Gemma3") {
            add("self_attn.q_norm.weight", &[8]);
            add("self_attn.k_norm.weight", &[8]);
        }
        if class.starts_with("Gemma3") {
            add("pre_feedforward_layernorm.weight", &[32]);
            add("post_feedforward_layernorm.weight", &[32]);
        }
    }
    all
}
