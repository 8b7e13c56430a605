//! Opening a malformed file allocates no more than a file of its size can hold.

#[path = "files/writer.rs"]
#[allow(dead_code)]
mod writer;

use peak_alloc::PeakAlloc;
use unicorn_model::{gguf, safetensors};
use writer::{Gguf, V, safetensors as write_safetensors, tiny};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that `f` holds at most beyond what was held before.
fn peak(f: impl FnOnce()) -> usize {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    f();
    MEMORY.peak_usage().saturating_sub(before)
}

/// One test: the count is of the whole process.
#[test]
fn allocations_are_bounded_by_the_file() {
    // Read buffer and parsed form of a byte of the file, at most; a short key is held as a string with its place.
    let bound = |bytes: &[u8]| 16 * bytes.len() + 4096;
    let check = |what: &str, bytes: &[u8]| {
        let used = peak(|| drop(gguf::parse(bytes)));
        assert!(used <= bound(bytes), "{what}: {used} bytes for a file of {}", bytes.len());
        let used = peak(|| drop(safetensors::parse(bytes)));
        assert!(used <= bound(bytes), "{what}: {used} bytes for a file of {}", bytes.len());
    };
    let g = tiny("gemma3", 1);
    let bytes = g.bytes();
    check("valid", &bytes);
    for huge in [1u64 << 20, 1 << 32, 1 << 60, u64::MAX] {
        let mut bad = g.clone();
        bad.tensor_count = Some(huge);
        check("tensor_count", &bad.bytes());
        let mut bad = g.clone();
        bad.key_count = Some(huge);
        check("metadata_kv_count", &bad.bytes());
        check("string", &g.clone().key("k", V::Raw(8, huge.to_le_bytes().to_vec())).bytes());
        for element in [0u32, 6, 7, 8, 12] {
            let raw = [&element.to_le_bytes()[..], &huge.to_le_bytes()].concat();
            check("array", &g.clone().key("k", V::Raw(9, raw)).bytes());
        }
        let mut bad = g.clone();
        bad.tensor("token_embd.weight").dims = vec![huge];
        check("dimension", &bad.bytes());
        let mut bytes = write_safetensors("{}", &[0; 64]);
        bytes[..8].copy_from_slice(&huge.to_le_bytes());
        check("header length", &bytes);
    }
    for i in 0..g.head().len() {
        let mut bad = bytes.clone();
        bad[i] ^= 0xff;
        check(&format!("byte {i}"), &bad);
    }
    let many = (0..500).fold(Gguf::default(), |g, i| g.key(&format!("{i}"), V::U8(0)));
    check("keys", &many.bytes());
    let shape =
        format!(r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(20_000));
    check("shape", &write_safetensors(&shape, &[0; 4]));
}
