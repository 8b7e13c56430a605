//! What one snapshot folder holds: which models, and what they lack.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::quant::{self, GgufChoice, split_shard};
use crate::safe_name::check_relative;

/// Folders below a snapshot that are searched, and files looked at: a foreign cache may hold anything.
const DEPTH_MAX: usize = 4;
const FILES_MAX: usize = 10_000;

/// Largest small file that is read.
const JSON_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn gguf_choices(snapshot: &Path) -> Vec<GgufChoice> {
    let files = files_below(snapshot);
    quant::choices(files.iter().map(String::as_str))
}

/// Names of the readable files below a folder, relative to it, with `/` between folders.
pub(crate) fn files_below(root: &Path) -> Vec<String> {
    entries_below(root).into_iter().filter(|entry| entry.is_file).map(|entry| entry.name).collect()
}

/// A file, or a link that leads nowhere.
pub(crate) struct Entry {
    /// Path relative to the folder searched, with `/` between folders.
    pub name: String,
    /// False for a link that leads nowhere.
    pub is_file: bool,
}

/// Files and links below a folder, by name. Folders behind links are not searched.
pub(crate) fn entries_below(root: &Path) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut pending = vec![(root.to_path_buf(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = pending.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let (path, name) = (entry.path(), format!("{prefix}{name}"));
            // Follows links: a link to a blob that is gone is no file.
            let metadata = fs::metadata(&path).ok();
            let is_dir = metadata.as_ref().is_some_and(|m| m.is_dir());
            if is_dir && depth < DEPTH_MAX && !path.is_symlink() {
                pending.push((path, format!("{name}/"), depth + 1));
            } else if !is_dir
                && !entry.file_name().as_encoded_bytes().starts_with(b".")
                && found.len() < FILES_MAX
            {
                found.push(Entry { name, is_file: metadata.is_some_and(|m| m.is_file()) });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Reads a JSON file of a snapshot; `None` where there is none or it is no JSON.
fn read_json(path: &Path) -> Option<Value> {
    let size = fs::metadata(path).ok().filter(|m| m.is_file())?.len();
    if size > JSON_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The files without which a snapshot is no safetensors model: configuration, tokenizer, index, every shard.
pub(crate) fn lacks(snapshot: &Path) -> Vec<String> {
    let has = |name: &str| snapshot.join(name).is_file();
    let mut lacks = Vec::new();
    if !has("config.json") {
        lacks.push("config.json".to_string());
    }
    if !["tokenizer.json", "tokenizer.model", "vocab.json"].into_iter().any(has) {
        lacks.push("tokenizer.json".to_string());
    }
    const INDEX: &str = "model.safetensors.index.json";
    if has(INDEX) {
        let index = read_json(&snapshot.join(INDEX));
        let map = index.as_ref().and_then(|index| index.get("weight_map")).and_then(Value::as_object);
        let shards: BTreeSet<&str> =
            map.into_iter().flat_map(|map| map.values()).filter_map(Value::as_str).collect();
        if shards.is_empty() || shards.iter().any(|shard| check_relative(shard).is_err()) {
            lacks.push(format!("a usable {INDEX}"));
        } else {
            lacks.extend(shards.into_iter().filter(|shard| !has(shard)).map(str::to_string));
        }
        return lacks;
    }
    let files = files_below(snapshot);
    let weights: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|f| f.ends_with(".safetensors") && !f.contains('/'))
        .collect();
    if weights.is_empty() {
        lacks.push("model.safetensors".to_string());
    } else if weights.iter().all(|name| is_shard(name)) {
        lacks.push(INDEX.to_string());
    }
    lacks
}

/// True for one of several files of weights.
pub(crate) fn is_shard(name: &str) -> bool {
    split_shard(name, ".safetensors").is_some_and(|split| split.shard.is_some())
}

/// The files that a safetensors model works without, but not as its makers meant: chat template, end tokens, sampling
/// defaults. Only those are named that the snapshot lacks and whose content is in none of its other files.
pub(crate) fn missing_companions(snapshot: &Path) -> Vec<&'static str> {
    let has = |name: &str| snapshot.join(name).is_file();
    let mut missing = Vec::new();
    if !has("generation_config.json") {
        missing.push("generation_config.json");
    }
    let config = read_json(&snapshot.join("tokenizer_config.json"));
    if !has("tokenizer_config.json") {
        missing.push("tokenizer_config.json");
        // Says what tokenizer_config.json says, too.
        if !has("special_tokens_map.json") {
            missing.push("special_tokens_map.json");
        }
    }
    let templated = config.is_some_and(|config| config.get("chat_template").is_some_and(|t| !t.is_null()));
    if !templated && !has("chat_template.jinja") && !has("chat_template.json") {
        missing.push("chat_template.jinja");
        missing.push("chat_template.json");
    }
    missing
}
