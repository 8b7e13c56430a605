//! Any bytes through the GGUF parser; what it accepts must lie inside the file and be readable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unicorn_model::gguf::{Value, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = parse(bytes) else { return };
    for (key, value) in file.metadata() {
        assert_eq!(file.get(key).map(|v| v.type_name()), Some(value.type_name()));
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
        }
    }
    for tensor in file.tensors() {
        assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
    }
});
