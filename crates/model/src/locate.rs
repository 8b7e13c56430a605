//! From a path to opened files: which format it is, and what belongs together.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::files::{ModelFiles, OpenFile};
use crate::folder;
use crate::json::read_json;
use crate::notice::Notice;
use crate::read_at::ReadAt;
use crate::shards::gguf::{self, GgufModel};
use crate::shards::safetensors::{self, SafetensorsModel};
use crate::tensors::TensorTable;
use crate::wrong_file;

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

/// A model's files, and the files beside them that were passed over.
#[derive(Debug)]
pub(crate) struct Found {
    pub located: Located,
    pub set_aside: Vec<Notice>,
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
pub(crate) fn locate(path: &Path) -> Result<Found, ModelError> {
    let metadata =
        std::fs::metadata(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    if metadata.is_dir() {
        return locate_directory(path);
    }
    Ok(Found { located: locate_file(path)?, set_aside: Vec::new() })
}

fn locate_file(path: &Path) -> Result<Located, ModelError> {
    let has_extension = |e: &str| path.extension().is_some_and(|x| x.eq_ignore_ascii_case(e));
    // Files in content-addressed caches have no extension: the magic decides.
    let file = OpenFile::open(path)?;
    let wrong = |what| ModelError::WrongFile { path: path.to_owned(), what };
    if is_gguf(&file) {
        return open_gguf(path);
    }
    if has_extension("safetensors") {
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let config = read_config(&directory)?.unwrap_or_default();
        let weights = safetensors::open_file(path)?;
        return Ok(Located::HuggingFace(Box::new(HuggingFaceModel { directory, config, weights })));
    }
    match wrong_file::describe(&file, path) {
        Some(what) => Err(wrong(what)),
        // Says what is there in the place of the magic.
        None if has_extension("gguf") => open_gguf(path),
        None => {
            let reason = "neither a GGUF file nor *.safetensors".to_owned();
            Err(ModelError::NotAModel { path: path.to_owned(), reason })
        }
    }
}

fn is_gguf(file: &OpenFile) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && &magic == b"GGUF"
}

fn open_gguf(path: &Path) -> Result<Located, ModelError> {
    gguf::open(path).map(|model| Located::Gguf(Box::new(model)))
}

fn locate_directory(directory: &Path) -> Result<Found, ModelError> {
    if let Some(config) = read_config(directory)?
        && let Some(weights) = safetensors::open_directory(directory)?
    {
        let directory = directory.to_owned();
        let model = HuggingFaceModel { directory, config, weights };
        return Ok(Found { located: Located::HuggingFace(Box::new(model)), set_aside: Vec::new() });
    }
    let names = list(directory)?;
    let mut models = Vec::new();
    let mut wrong = Vec::new();
    for name in names.iter().filter(|name| is_gguf_model(name)) {
        let path = directory.join(name);
        let file = OpenFile::open(&path)?;
        match wrong_file::describe(&file, &path).filter(|_| !is_gguf(&file)) {
            Some(what) => wrong.push((path, what)),
            None => models.push(path),
        }
    }
    // Projectors go by many names; what they are is said inside. Only where there is a choice is it worth the reading.
    if models.len() > 1 {
        models.retain(|path| !gguf::is_projector(path));
    }
    match (&models[..], wrong.first()) {
        ([path], _) => {
            let aside = wrong.into_iter().map(|(file, reason)| Notice::SetAside { file, reason });
            Ok(Found { located: open_gguf(path)?, set_aside: aside.collect() })
        }
        ([], Some((path, what))) => Err(ModelError::WrongFile { path: path.clone(), what: what.clone() }),
        ([], None) => {
            let reason = folder::why_no_model(&names);
            Err(ModelError::NotAModel { path: directory.to_owned(), reason })
        }
        (several, _) => {
            let names = several.iter().filter_map(|p| p.file_name()).map(|n| n.to_string_lossy());
            let found = names.collect::<Vec<_>>().join(", ");
            Err(ModelError::SeveralModels { path: directory.to_owned(), found })
        }
    }
}

/// Names of the files of a directory, sorted.
fn list(directory: &Path) -> Result<Vec<String>, ModelError> {
    let io = |source| ModelError::Io { path: directory.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_file() {
            // A name that is not UTF-8 can still be given by its path.
            names.extend(path.file_name().and_then(|n| n.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// Single files and first shards, without vision projectors.
fn is_gguf_model(name: &str) -> bool {
    let lower = name.to_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !gguf::is_later_shard(Path::new(name))
}

fn read_config(directory: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    read_json(&directory.join("config.json"))
}
