//! A whole GGUF file: architecture, tokenizer, template, inspection.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let _ = unicorn_model::inspect(file.path());
    if let Ok(model) = unicorn_model::open(file.path()) {
        let _ = model.tokenizer();
        let _ = model.chat_template();
        let _ = model.generation_defaults();
    }
});
