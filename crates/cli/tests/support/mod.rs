//! A tiny model file made from nothing, and the binary to try it on.
#![allow(dead_code)] // Not every test file uses all of it.

#[cfg(target_os = "linux")]
pub mod terminal;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The binary, with an environment of its own: nothing is fetched, no user configuration counts.
pub fn unicorn(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unicorn"));
    for name in [
        "UNICORN_MODEL",
        "UNICORN_KV_DIR",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "XDG_STATE_HOME",
        "XDG_CACHE_HOME",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
    command
}

/// A process that is ended with its test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A body that came in chunks.
pub fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            break;
        }
        body += &after[..size];
        rest = &after[size + 2..];
    }
    body
}

/// Runs to the end.
pub fn output(command: &mut Command) -> Output {
    command.output().expect("the binary starts")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const WIDTH: usize = 32;
const HIDDEN: usize = 64;
/// Longer than any test waits for.
const CONTEXT: u32 = 1 << 20;

/// Writes a llama of one layer with random weights and one token per byte. The token that ends an
/// answer has the logit 0, which the default `--top-k` never lets through: answers go on to their limit.
pub fn tiny_model(folder: &Path, template: Option<&str>) -> PathBuf {
    named_tiny_model(folder, "Tiny", template)
}

/// As [`tiny_model`], with a name of its own.
pub fn named_tiny_model(folder: &Path, name: &str, template: Option<&str>) -> PathBuf {
    write_model(folder, name, template, HIDDEN, 0.0)
}

/// As [`tiny_model`], but the logit of the token that ends a text is no number, or not a finite one.
pub fn broken_model(folder: &Path, weight: f32) -> PathBuf {
    write_model(folder, "Broken", None, HIDDEN, weight)
}

/// A feed-forward block of another size has weights of zero. `end_weight` are the output's weights of the token that ends a text.
fn write_model(folder: &Path, name: &str, template: Option<&str>, hidden: usize, end_weight: f32) -> PathBuf {
    let (tokens, types) = vocabulary();
    let end = tokens.len() - 1;
    let vocab = tokens.len();
    let mut file = Gguf::default();
    file.string("general.architecture", "llama");
    file.string("general.name", name);
    file.u32("llama.context_length", CONTEXT);
    file.u32("llama.embedding_length", WIDTH as u32);
    file.u32("llama.block_count", 1);
    file.u32("llama.feed_forward_length", hidden as u32);
    file.u32("llama.attention.head_count", 2);
    file.u32("llama.attention.head_count_kv", 1);
    file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.u32("llama.rope.dimension_count", 16);
    file.f32("llama.rope.freq_base", 10000.0);
    file.string("tokenizer.ggml.model", "gpt2");
    file.string("tokenizer.ggml.pre", "default");
    file.strings("tokenizer.ggml.tokens", &tokens);
    file.i32s("tokenizer.ggml.token_type", &types);
    file.strings("tokenizer.ggml.merges", &["h e".to_owned()]);
    file.u32("tokenizer.ggml.eos_token_id", end as u32);
    if let Some(template) = template {
        file.string("tokenizer.chat_template", template);
    }
    file.tensor("token_embd.weight", vocab, WIDTH);
    file.tensor("output.weight", vocab, WIDTH);
    file.fill_last_row(WIDTH, end_weight);
    file.tensor("output_norm.weight", 1, WIDTH);
    file.tensor("blk.0.attn_norm.weight", 1, WIDTH);
    file.tensor("blk.0.attn_q.weight", WIDTH, WIDTH);
    file.tensor("blk.0.attn_k.weight", WIDTH / 2, WIDTH);
    file.tensor("blk.0.attn_v.weight", WIDTH / 2, WIDTH);
    file.tensor("blk.0.attn_output.weight", WIDTH, WIDTH);
    file.tensor("blk.0.ffn_norm.weight", 1, WIDTH);
    for (name, rows, cols) in [
        ("blk.0.ffn_gate.weight", hidden, WIDTH),
        ("blk.0.ffn_up.weight", hidden, WIDTH),
        ("blk.0.ffn_down.weight", WIDTH, hidden),
    ] {
        if hidden == HIDDEN { file.tensor(name, rows, cols) } else { file.zeros(name, rows, cols) }
    }
    let path = folder.join("tiny.gguf");
    std::fs::write(&path, file.bytes()).expect("the model can be written");
    // Zeros at the end of a file are not written, only counted.
    let whole = std::fs::File::options().write(true).open(&path).expect("the model");
    let written = whole.metadata().expect("the model").len();
    whole.set_len(written + file.zeros).expect("the model can be that long");
    path
}

/// As [`tiny_model`], but 300 MB of it are zeros, which take no room on disk and some time to load.
pub fn heavy_model(folder: &Path, template: &str) -> PathBuf {
    write_model(folder, "Heavy", Some(template), 800_000, 0.0)
}

/// The 256 characters of GPT-2's byte alphabet, one merge, two control tokens: one that templates write, and the end.
fn vocabulary() -> (Vec<String>, Vec<i32>) {
    let plain = |b: u8| (b'!'..=b'~').contains(&b) || (0xa1..=0xac).contains(&b) || b >= 0xae;
    let mut next = 256;
    let mut tokens: Vec<String> = Vec::new();
    for byte in 0..=255u8 {
        let code = if plain(byte) { u32::from(byte) } else { next };
        next += u32::from(!plain(byte));
        tokens.push(char::from_u32(code).expect("a character").to_string());
    }
    tokens.push("he".to_owned());
    let mut types = vec![1; tokens.len()];
    tokens.extend(["<|turn|>".to_owned(), "<|end|>".to_owned()]);
    types.resize(tokens.len(), 3);
    (tokens, types)
}

/// Writes the GGUF format, version 3, F32 tensors only.
#[derive(Default)]
struct Gguf {
    metadata: Vec<u8>,
    keys: u64,
    tensors: Vec<u8>,
    count: u64,
    data: Vec<u8>,
    /// Bytes of zeros behind the data.
    zeros: u64,
}

impl Gguf {
    fn key(&mut self, key: &str, ty: u32) {
        push_string(&mut self.metadata, key);
        self.metadata.extend(ty.to_le_bytes());
        self.keys += 1;
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        push_string(&mut self.metadata, value);
    }

    fn array(&mut self, key: &str, ty: u32, len: usize) {
        self.key(key, 9);
        self.metadata.extend(ty.to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        self.array(key, 8, values.len());
        values.iter().for_each(|v| push_string(&mut self.metadata, v));
    }

    fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        values.iter().for_each(|v| self.metadata.extend(v.to_le_bytes()));
    }

    fn describe(&mut self, name: &str, rows: usize, cols: usize) {
        push_string(&mut self.tensors, name);
        let dimensions: &[usize] = if rows == 1 { &[cols] } else { &[cols, rows] };
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|d| self.tensors.extend((*d as u64).to_le_bytes()));
        self.tensors.extend(0u32.to_le_bytes());
        self.tensors.extend((self.data.len() as u64 + self.zeros).to_le_bytes());
        self.count += 1;
    }

    /// A tensor of zeros, after which only such may come.
    fn zeros(&mut self, name: &str, rows: usize, cols: usize) {
        self.describe(name, rows, cols);
        self.zeros += (4 * rows * cols) as u64;
    }

    fn tensor(&mut self, name: &str, rows: usize, cols: usize) {
        self.describe(name, rows, cols);
        let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(self.count);
        for _ in 0..rows * cols {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1u64 << 24) as f32;
            let value = if rows == 1 { 1.0 } else { unit - 0.5 };
            self.data.extend(value.to_le_bytes());
        }
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    /// Puts a value everywhere in the last row of the last tensor, whose rows are multiples of the padding.
    fn fill_last_row(&mut self, cols: usize, value: f32) {
        let row = self.data.len() - 4 * cols;
        self.data[row..].chunks_exact_mut(4).for_each(|v| v.copy_from_slice(&value.to_le_bytes()));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(self.keys.to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.tensors);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

fn push_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
