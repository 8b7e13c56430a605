//! Any bytes through the safetensors header parser; accepted tensors fill the file's data exactly.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unicorn_model::safetensors::parse;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = parse(bytes) else { return };
    let total: u64 = header.tensors.iter().map(|t| t.bytes).sum();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(8 + length + total, bytes.len() as u64);
});
