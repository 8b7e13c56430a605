//! A Hugging Face directory: `config.json`, then safetensors, separated by the first zero byte.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), &bytes[..at]).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), &bytes[(at + 1).min(bytes.len())..]).unwrap();
    let _ = unicorn_model::inspect(dir.path());
    let _ = unicorn_model::open(dir.path());
});
