//! What the cache folder holds.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::cache::{RepoCache, folder};
use crate::snapshot::{files_below, gguf_choices, lacks};
use crate::{HubConfig, HubError, known};

/// A model in the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CachedModel {
    /// What `--model` takes to use it: a known name, `owner/repo:quant` or `owner/repo`.
    pub name: String,
    /// Quantization, or `safetensors`.
    pub quant: String,
    /// File to open within the snapshot; empty for a directory of safetensors.
    pub file: String,
    /// Bytes on disk, all shards.
    pub bytes: u64,
    /// Path to load.
    pub path: PathBuf,
}

/// What the cache holds: every complete GGUF or safetensors model, by name. Each model appears once, in its current
/// snapshot. What is no model, is incomplete, or cannot be read is left out; a missing cache folder holds nothing.
pub fn list(config: &HubConfig) -> Result<Vec<CachedModel>, HubError> {
    let cache_dir = config.cache()?;
    let entries = match fs::read_dir(cache_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(HubError::Io { path: cache_dir.to_path_buf(), source: e }),
    };
    let mut models = Vec::new();
    for entry in entries.flatten() {
        let Ok(folder) = entry.file_name().into_string() else { continue };
        let Some(name) = folder.strip_prefix("models--") else { continue };
        let name = name.replacen("--", "/", 1);
        models.extend(models_of(&RepoCache::new(cache_dir, &folder), &folder, &name));
    }
    models.sort_by(|a, b| (&a.name, &a.file).cmp(&(&b.name, &b.file)));
    Ok(models)
}

/// The models of one repository: those that its plain name finds, then those of other revisions, which are named with it.
fn models_of(cache: &RepoCache, folder: &str, name: &str) -> Vec<CachedModel> {
    let mut models = Vec::new();
    let mut seen = HashSet::new();
    for snapshot in cache.snapshots(None) {
        for model in models_in(&snapshot, folder, name) {
            if seen.insert(model.file.clone()) {
                models.push(model);
            }
        }
    }
    let refs = cache.refs();
    let main = refs.iter().find(|(revision, _)| revision == "main").map(|(_, commit)| commit.clone());
    for (revision, commit) in refs.iter().filter(|(_, commit)| main.as_ref() != Some(commit)) {
        for snapshot in cache.snapshots(Some(commit)) {
            models.extend(models_in(&snapshot, "", &format!("{name}@{revision}")));
        }
    }
    models
}

fn models_in(snapshot: &Path, folder: &str, name: &str) -> Vec<CachedModel> {
    let size = |file: &String| fs::metadata(snapshot.join(file)).map_or(0, |m| m.len());
    let mut models: Vec<CachedModel> = gguf_choices(snapshot)
        .into_iter()
        .map(|choice| CachedModel {
            name: known_name(folder, Some(&choice.quant))
                .map_or_else(|| format!("{name}:{}", choice.quant), str::to_string),
            bytes: choice.files.iter().map(size).sum(),
            path: snapshot.join(&choice.files[0]),
            file: choice.files[0].clone(),
            quant: choice.quant,
        })
        .collect();
    if lacks(snapshot).is_empty() {
        models.push(CachedModel {
            name: known_name(folder, None).unwrap_or(name).to_string(),
            quant: "safetensors".to_string(),
            file: String::new(),
            bytes: files_below(snapshot).iter().filter(|f| f.ends_with(".safetensors")).map(size).sum(),
            path: snapshot.to_path_buf(),
        });
    }
    models
}

/// The known model that a folder's file is, or its safetensors where there is no quantization.
fn known_name(folder_name: &str, quant: Option<&str>) -> Option<&'static str> {
    let matches = |model: &&known::KnownModel| {
        let on_hub = folder(model.hub.owner, model.hub.repo) == folder_name;
        (on_hub && model.hub.quant == quant) || model.package_folder() == Some(folder_name)
    };
    known::KNOWN.iter().find(matches).map(|model| model.name)
}
