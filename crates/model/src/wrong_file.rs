//! What a file is that is no model: downloads that went wrong and formats of other programs, told by their first bytes.

use std::path::Path;

use serde_json::Value;

use crate::read_at::ReadAt;

/// Bytes that are looked at; a tar archive is known by byte 257, a zip of PyTorch by the name of its first entry.
const HEAD_BYTES: usize = 1024;
/// Largest answer of a server that is read for its message.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Says what the file is, if it is something known that is neither GGUF nor safetensors. The answer completes "FILE: ".
pub(crate) fn describe(file: &dyn ReadAt, path: &Path) -> Option<String> {
    let len = file.len();
    if len == 0 {
        return Some("an empty file, not a model".to_owned());
    }
    let mut head = vec![0; HEAD_BYTES.min(usize::try_from(len).unwrap_or(HEAD_BYTES))];
    file.read_exact_at(&mut head, 0).ok()?;
    if head.iter().all(|b| *b == 0) {
        return Some("begins with nothing but zeros: a download that did not finish".to_owned());
    }
    text(file, &head).or_else(|| binary(&head, path))
}

/// What is text: pointers, pages and messages that were saved under a model's name.
fn text(file: &dyn ReadAt, head: &[u8]) -> Option<String> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |prefix: &str| {
        head.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    if begins("version https://git-lfs.github.com/spec/") || begins("version https://hawser.github.com/spec/")
    {
        return Some("a Git LFS pointer, not the file itself (`git lfs pull` fetches it)".to_owned());
    }
    if ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| begins(tag)) {
        return Some("an HTML page, not a model".to_owned());
    }
    if begins("<?xml") || begins("<error") {
        return Some("an XML document, not a model".to_owned());
    }
    if begins("{") || begins("[") {
        return Some(json(file));
    }
    // Whole short files of plain text, such as "Entry not found".
    let is_text = file.len() <= HEAD_BYTES as u64
        && std::str::from_utf8(head)
            .is_ok_and(|t| !t.contains(|c: char| c.is_control() && !c.is_whitespace()));
    is_text.then(|| {
        let line = String::from_utf8_lossy(head).lines().next().unwrap_or_default().to_owned();
        format!("a text that begins with {:?}, not a model", line.chars().take(80).collect::<String>())
    })
}

/// A JSON file; the message of a server's answer is quoted.
fn json(file: &dyn ReadAt) -> String {
    let answer = || {
        let len = usize::try_from(file.len()).ok().filter(|_| file.len() <= ANSWER_BYTES_MAX)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        let message = ["error", "message", "detail", "error_description"].iter().find_map(|key| {
            let said = &value[*key];
            said.as_str().or_else(|| said["message"].as_str()).map(str::to_owned)
        })?;
        Some(message.chars().take(200).collect::<String>())
    };
    match answer() {
        Some(message) => format!("a server's answer in JSON ({message:?}), not a model"),
        None => "a JSON file, not a model".to_owned(),
    }
}

const TORCH: &str = "a PyTorch checkpoint; convert it to safetensors or GGUF";

/// (first bytes, what begins so)
const MAGICS: [(&[u8], &str); 16] = [
    (b"lmgg", "a model in the ggml format of before 2023, which GGUF replaced"),
    (b"fmgg", "a model in the ggmf format of before 2023, which GGUF replaced"),
    (b"tjgg", "a model in the ggjt format of before 2023, which GGUF replaced"),
    (b"algg", "an adapter (LoRA) in the ggla format, not a model"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow), which unicorn does not read"),
    (b"\x93NUMPY", "a NumPy array, not a model"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"BZh", "a bzip2 archive; unpack it"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it"),
    (b"%PDF", "a PDF document, not a model"),
    (b"\x7fELF", "a program, not a model"),
    (b"MZ", "a Windows program, not a model"),
    (b"\x89PNG", "a picture, not a model"),
];

fn binary(head: &[u8], path: &Path) -> Option<String> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let is_torch = matches!(extension.as_str(), "bin" | "pt" | "pth" | "ckpt");
    if head.starts_with(b"PK") {
        let holds_pickle = head.windows(8).any(|w| w == b"data.pkl");
        return Some(if holds_pickle || is_torch { TORCH } else { "a zip archive; unpack it" }.to_owned());
    }
    // A pickle begins with its protocol, 2 to 5. Old checkpoints begin with one of the number 0x1950a86a20f9469cfc6c.
    if matches!(head, [0x80, 2..=5, ..]) {
        return Some(TORCH.to_owned());
    }
    if let Some((_, what)) = MAGICS.iter().find(|m| head.starts_with(m.0)) {
        return Some((*what).to_owned());
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some("a tar archive; unpack it".to_owned());
    }
    if head.get(4..8) == Some(b"TFL3") {
        return Some("a TensorFlow Lite model, which unicorn does not read".to_owned());
    }
    // ONNX is a protocol buffer: field 1 is a small version, field 2 the name of the producer.
    let is_onnx = matches!(head, [8, 1..=20, 18, len, ..] if (1..=64).contains(len));
    if extension == "onnx" || is_onnx {
        return Some("an ONNX model, which unicorn does not read".to_owned());
    }
    let looks_safe = head.len() > 9 && head[8] == b'{' && head[5..8] == [0; 3];
    if looks_safe && extension != "safetensors" {
        return Some("a safetensors file without the ending .safetensors; give the folder that holds it and its config.json".to_owned());
    }
    is_torch.then(|| TORCH.to_owned())
}

/// What a file is by its name, where the name of a folder's file is all that is needed.
pub(crate) fn by_name(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|e| name.ends_with(e));
    if ends(&[".incomplete", ".part", ".crdownload", ".aria2", ".download"]) {
        return Some("a download that did not finish");
    }
    if ends(&[".pt", ".pth", ".ckpt", ".bin", ".bin.index.json"]) && !name.ends_with("_args.bin") {
        return Some(TORCH);
    }
    if ends(&[".onnx"]) {
        return Some("an ONNX model, which unicorn does not read");
    }
    if ends(&[".h5", ".msgpack", ".ot", ".tflite", ".keras", ".mlmodel"]) {
        return Some("a model in a format that unicorn does not read");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(bytes: &[u8], name: &str) -> String {
        describe(&bytes, Path::new(name)).unwrap_or_else(|| panic!("{name} is not known"))
    }

    #[test]
    fn downloads_that_went_wrong() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
        assert!(what(pointer, "m.gguf").contains("a Git LFS pointer, not the file"));
        for page in ["<!DOCTYPE html><html>", "\u{feff}\n <HTML>", "<!doctype HTML PUBLIC>"] {
            assert_eq!(what(page.as_bytes(), "m.gguf"), "an HTML page, not a model");
        }
        let answer = what(br#"{"error":"Repository\u001b[2J not found"}"#, "m.gguf");
        assert_eq!(answer, r#"a server's answer in JSON ("Repository\u{1b}[2J not found"), not a model"#);
        assert!(what(br#"{"error":{"message":"no"}}"#, "m.gguf").contains("\"no\""));
        assert_eq!(what(b"[1]", "m.gguf"), "a JSON file, not a model");
        assert!(what(b"<?xml version=\"1.0\"?><Error/>", "m.gguf").contains("XML"));
        assert!(what(b"Entry not found\n", "m.gguf").contains("a text that begins with \"Entry not found\""));
        assert!(what(b"", "m.gguf").contains("empty"));
        assert!(what(&[0; 4096], "m.gguf").contains("zeros"));
    }

    #[test]
    fn formats_of_others() {
        for magic in [b"lmgg", b"fmgg", b"tjgg"] {
            assert!(what(&[&magic[..], &[1; 64]].concat(), "old.bin").contains("GGUF replaced"));
        }
        assert!(what(b"PK\x03\x04..........archive/data.pkl", "x").contains("PyTorch"));
        assert!(
            what(b"PK\x03\x04\x00\x00\x00\x00", "pytorch_model.bin").contains("convert it to safetensors")
        );
        assert!(what(b"PK\x03\x04\x00\x00\x00\x00", "m.zip").contains("a zip archive"));
        assert!(what(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "m.pt").contains("PyTorch"));
        assert!(what(b"\x08\x07\x12\x07pytorch\x1a\x051.0.0", "m").contains("ONNX"));
        assert!(what(b"\x89HDF\r\n\x1a\n\x00\x00", "tf_model.h5").contains("HDF5"));
        assert!(what(b"\x1f\x8b\x08\x00\x00", "m.gguf.gz").contains("gzip"));
        let mut tar = vec![b'a'; 512];
        tar[100] = 0;
        tar[257..262].copy_from_slice(b"ustar");
        assert!(what(&tar, "m.tar").contains("tar"));
        assert!(what(b"\x10\x00\x00\x00\x00\x00\x00\x00{\"a\":1}", "blob").contains("safetensors"));
        assert_eq!(describe(&&b"\xde\xad\xbe\xef\x01"[..], Path::new("noise")), None);
    }
}
