//! Models of which only the beginnings of the files are here.

use std::path::Path;

use unicorn_model::{FileHead, Heads, inspect, open};

use crate::writer::tiny;

/// Fetches what is wanted of a file, which is said to be `bytes` long and is all zeros behind its content.
fn fetch(path: &Path, bytes: Option<u64>) -> (FileHead, u64) {
    let content = std::fs::read(path).unwrap();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let mut head = FileHead { name, bytes: bytes.unwrap_or(content.len() as u64), parts: Vec::new() };
    let mut fetched = 0;
    while let Some(range) = head.wants().unwrap() {
        let part = content.get(range.start as usize..(range.end as usize).min(content.len()));
        let mut part = part.unwrap_or_default().to_vec();
        part.resize((range.end - range.start) as usize, 0);
        fetched += part.len() as u64;
        assert!(fetched < 64 << 20, "{range:?} and no end");
        head.parts.retain(|(at, _)| *at != range.start);
        head.parts.push((range.start, part));
    }
    (head, fetched)
}

#[test]
fn beginnings_tell_what_whole_models_tell() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny");
    let mut seen = [0, 0];
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        let path = entry.path();
        let files: Vec<_> = match path.is_dir() {
            true if path.join("config.json").exists() => std::fs::read_dir(&path)
                .unwrap()
                .flatten()
                .map(|f| f.path())
                .filter(|f| f.ends_with("config.json") || f.extension().is_some_and(|e| e == "safetensors"))
                .collect(),
            false if path.extension().is_some_and(|e| e == "gguf") => vec![path.clone()],
            _ => continue,
        };
        seen[usize::from(path.is_dir())] += 1;
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let heads = Heads::new(files.iter().map(|f| fetch(f, None).0).collect(), &name).unwrap();
        assert_eq!(heads.spec().unwrap(), open(&path).unwrap().spec, "{}", path.display());
        let (found, whole) = (heads.inspect(), inspect(&path).unwrap());
        assert_eq!(
            (found.tensors, found.totals, found.file_bytes),
            (whole.tensors, whole.totals, whole.file_bytes)
        );
    }
    assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
}

#[test]
fn divisors_of_rotary_frequencies_are_fetched_and_no_other_tensor() {
    let dir = tempfile::tempdir().unwrap();
    // Behind a tensor that is longer than what is fetched first.
    let mut file = tiny("llama", 1).f32("padding.weight", &[1 << 20, 2]).f32("rope_freqs.weight", &[4]);
    file.tensor("rope_freqs.weight").data = [2.0f32; 4].iter().flat_map(|f| f.to_le_bytes()).collect();
    let plain = file.save(dir.path(), "plain.gguf");
    let (head, fetched) = fetch(&plain, None);
    assert_eq!(fetched, (4 << 20) + 16);
    let error = Heads::new(vec![FileHead { bytes: 100, ..head.clone() }], "cut").unwrap_err();
    assert!(error.to_string().contains("plain.gguf"), "{error}");
    let spec = Heads::new(vec![head], "plain").unwrap().spec();
    assert_eq!(spec.unwrap(), open(&plain).unwrap().spec);
}

#[test]
fn what_is_no_model_is_told_from_its_beginning() {
    let head = |name: &str, bytes: &[u8]| FileHead {
        name: name.into(),
        bytes: 1 << 30,
        parts: vec![(0, bytes.to_vec())],
    };
    for (name, bytes, told) in [
        ("m.gguf", &b"<!DOCTYPE html><html></html>"[..], "an HTML page"),
        ("m.gguf", b"GGUF\x09\0\0\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "version"),
        ("m.gguf", b"nothing at all", "not a model"),
    ] {
        let error = head(name, bytes).wants().unwrap_err().to_string();
        assert!(error.contains(told) && error.contains(name), "{error}");
    }
    let large = FileHead { name: "config.json".into(), bytes: 1 << 40, parts: Vec::new() };
    assert!(large.wants().unwrap_err().to_string().contains("config.json"));
    assert!(Heads::new(Vec::new(), "nothing").unwrap_err().to_string().contains("nothing"));
}
