//! A model of one safetensors file, or of shards that `model.safetensors.index.json` lists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use unicorn_core::WeightSpan;

use crate::error::ModelError;
use crate::files::{ModelFiles, OpenFile, read_small};
use crate::json::not_json;
use crate::safetensors::{HEADER_BYTES_MAX, SafetensorsError, parse};
use crate::tensors::{TensorInfo, TensorTable};
use crate::wrong_file;

/// All shards of a model.
#[derive(Debug)]
pub(crate) struct SafetensorsModel {
    pub metadata: Vec<(String, String)>,
    pub files: ModelFiles,
    pub tensors: TensorTable,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`, in a directory. `None` when neither is there.
pub(crate) fn open_directory(dir: &Path) -> Result<Option<SafetensorsModel>, ModelError> {
    let single = dir.join("model.safetensors");
    let index_path = dir.join("model.safetensors.index.json");
    if single.is_file() {
        return open_file(&single).map(Some);
    }
    if !index_path.is_file() {
        return Ok(None);
    }
    let bytes = read_small(&index_path, HEADER_BYTES_MAX)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|source| not_json(&index_path, &bytes, source))?;
    let mut names: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let count = names.len() as u64;
    let mut paths = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        // A name with a folder in it would leave the model's directory.
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(ModelError::ShardName { path: index_path, name: (*name).to_owned() });
        }
        let path = dir.join(name);
        if !path.exists() {
            return Err(ModelError::MissingShard { path, number: i as u64 + 1, count });
        }
        paths.push(path);
    }
    let model = open_files(&paths)?;
    for (tensor, shard) in &index.weight_map {
        let found = model.tensors.get(tensor).map(|t| names[t.span.file as usize]);
        if found != Some(shard.as_str()) {
            let (tensor, shard) = (tensor.clone(), shard.clone());
            return Err(ModelError::IndexMismatch { path: index_path, tensor, shard });
        }
    }
    Ok(Some(model))
}

/// Opens one file.
pub(crate) fn open_file(path: &Path) -> Result<SafetensorsModel, ModelError> {
    open_files(&[path.to_owned()])
}

fn open_files(paths: &[PathBuf]) -> Result<SafetensorsModel, ModelError> {
    of_files(paths.iter().map(|path| OpenFile::open(path)).collect::<Result<_, ModelError>>()?)
}

/// A model of these files.
pub(crate) fn of_files(opened: Vec<OpenFile>) -> Result<SafetensorsModel, ModelError> {
    let (mut files, mut tensors, mut metadata) = (Vec::new(), Vec::new(), Vec::new());
    let first = opened.first().map_or(PathBuf::new(), |file| file.path().to_owned());
    for (i, file) in opened.into_iter().enumerate() {
        let header = parse(&file).map_err(|source| {
            let path = file.path().to_owned();
            match wrong_file::describe(&file, &path) {
                Some(what) => ModelError::WrongFile { path, what },
                None => ModelError::Safetensors { path, source: Box::new(source) },
            }
        })?;
        files.push(file);
        tensors.extend(header.tensors.into_iter().map(|t| TensorInfo {
            name: t.name,
            ty: t.ty,
            shape: t.shape,
            span: WeightSpan { file: i as u32, offset: t.offset, bytes: t.bytes },
        }));
        metadata.extend(header.metadata);
    }
    let tensors = TensorTable::new(tensors).map_err(|tensor| ModelError::Safetensors {
        path: first,
        source: Box::new(SafetensorsError::Duplicate { tensor }),
    })?;
    Ok(SafetensorsModel { metadata, files: ModelFiles::new(files), tensors })
}
