//! From a path to opened files: which format it is, and what belongs together.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;
use crate::files::{ModelFiles, OpenFile, ReadAt, read_small};
use crate::gguf::{self, GgufModel};
use crate::safetensors::{self, SafetensorsModel};
use crate::tensors::TensorTable;

/// `config.json` and other small JSON files; real ones have some kilobytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Opened files with their parsed headers.
#[derive(Debug)]
pub(crate) enum Located {
    Gguf(Box<GgufModel>),
    HuggingFace(Box<HuggingFaceModel>),
}

/// A directory with safetensors. `config` is empty for a lone file.
#[derive(Debug)]
pub(crate) struct HuggingFaceModel {
    pub directory: PathBuf,
    pub config: Map<String, Value>,
    pub weights: SafetensorsModel,
}

impl Located {
    pub fn files(&self) -> &ModelFiles {
        match self {
            Located::Gguf(model) => &model.files,
            Located::HuggingFace(model) => &model.weights.files,
        }
    }

    pub fn tensors(&self) -> &TensorTable {
        match self {
            Located::Gguf(model) => &model.tensors,
            Located::HuggingFace(model) => &model.weights.tensors,
        }
    }

    pub fn architecture(&self) -> Option<String> {
        match self {
            Located::Gguf(model) => {
                model.head.string("general.architecture").ok().flatten().map(|name| name.into_owned())
            }
            Located::HuggingFace(model) => {
                crate::arch::config_architecture(&model.config).ok().map(str::to_owned)
            }
        }
    }
}

/// Opens a GGUF file, a safetensors file, or a directory that holds one model.
pub(crate) fn locate(path: &Path) -> Result<Located, ModelError> {
    let metadata =
        std::fs::metadata(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    if metadata.is_dir() { locate_directory(path) } else { locate_file(path) }
}

fn locate_file(path: &Path) -> Result<Located, ModelError> {
    let has_extension = |e: &str| path.extension().is_some_and(|x| x.eq_ignore_ascii_case(e));
    if has_extension("safetensors") {
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let config = read_config(&directory)?.unwrap_or_default();
        let weights = safetensors::open_file(path)?;
        return Ok(Located::HuggingFace(Box::new(HuggingFaceModel { directory, config, weights })));
    }
    // Files in content-addressed caches have no extension: the magic decides.
    let file = OpenFile::open(path)?;
    let mut magic = [0; 4];
    let is_gguf = file.read_exact_at(&mut magic, 0).is_ok() && &magic == b"GGUF";
    if is_gguf || has_extension("gguf") {
        return gguf::open(path).map(|model| Located::Gguf(Box::new(model)));
    }
    let reason = "neither a GGUF file nor *.safetensors".to_owned();
    Err(ModelError::NotAModel { path: path.to_owned(), reason })
}

fn locate_directory(directory: &Path) -> Result<Located, ModelError> {
    if let Some(config) = read_config(directory)?
        && let Some(weights) = safetensors::open_directory(directory)?
    {
        let directory = directory.to_owned();
        return Ok(Located::HuggingFace(Box::new(HuggingFaceModel { directory, config, weights })));
    }
    match &gguf_models(directory)?[..] {
        [path] => gguf::open(path).map(|model| Located::Gguf(Box::new(model))),
        [] => {
            let reason =
                "the directory holds neither config.json with safetensors nor a .gguf file".to_owned();
            Err(ModelError::NotAModel { path: directory.to_owned(), reason })
        }
        several => {
            let names = several.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy());
            let found = names.collect::<Vec<_>>().join(", ");
            Err(ModelError::SeveralModels { path: directory.to_owned(), found })
        }
    }
}

/// The GGUF models of a directory, sorted: single files and first shards, without vision projectors.
fn gguf_models(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let io = |source| ModelError::Io { path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        let is_model = name.ends_with(".gguf") && !name.starts_with("mmproj") && !gguf::is_later_shard(&path);
        if is_model && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_config(directory: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    read_json(&directory.join("config.json"))
}

/// Reads a small JSON object; `None` when the file is not there.
pub(crate) fn read_json(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = read_small(path, CONFIG_BYTES_MAX)?;
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|source| ModelError::Json { path: path.to_owned(), source })
}
