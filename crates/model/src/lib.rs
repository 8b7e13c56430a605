//! Model files: GGUF and Hugging Face directories to specs and weights.
//!
//! [`open`] turns a path into an [`OpenModel`]: the blocks to run, and a source that their weights are read from. [`inspect`]
//! describes a file without needing to understand its architecture.
//!
//! Invariants: files are untrusted; a malformed one gives an error that names the field, never a panic, and nothing is
//! allocated that the file could not hold. Files are read by position, never memory-mapped. Weights are not read here, save
//! the few bytes of rotary frequency factors.

mod arch;
mod check;
mod error;
mod files;
mod generation;
pub mod gguf;
mod inspect;
mod locate;
pub mod safetensors;
mod tensors;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use unicorn_core::{ModelSpec, WeightError, WeightSource, WeightSpan};
use unicorn_text::Tokenizer;

pub use check::{check_config, check_gguf_header};
pub use error::ModelError;
pub use files::{ModelFiles, OpenFile, ReadAt};
pub use generation::GenerationDefaults;
pub use inspect::{Inspection, MetadataEntry, TensorEntry, TypeTotal};
pub use tensors::{StoredType, TensorInfo, TensorTable};

use locate::Located;

/// An opened model: what it computes, and where its weights are read from.
#[derive(Debug)]
pub struct OpenModel {
    /// The blocks.
    pub spec: ModelSpec,
    /// Reads the weights; shared with the devices that load them.
    pub source: Arc<Source>,
}

/// The opened files of a model with their headers; a [`WeightSource`].
#[derive(Debug)]
pub struct Source {
    located: Located,
}

impl WeightSource for Source {
    fn read(&self, span: &WeightSpan, offset: u64, buf: &mut [u8]) -> Result<(), WeightError> {
        self.located.files().read(span, offset, buf)
    }
}

/// Opens a `.gguf` file (any of its shards), a directory with `config.json` and safetensors, or a directory that holds exactly
/// one GGUF model. Reads headers only, which takes milliseconds.
pub fn open(path: &Path) -> Result<OpenModel, ModelError> {
    let located = locate::locate(path)?;
    // The name of the file without its extension, or of the directory.
    let name = path.canonicalize().ok().and_then(|p| {
        let part = if p.is_dir() { p.file_name() } else { p.file_stem() };
        part.map(|n| n.to_string_lossy().into_owned())
    });
    let name = name.unwrap_or_default();
    let spec = match &located {
        Located::Gguf(model) => arch::from_gguf(&model.head, &model.tensors, &model.files, &name)?,
        Located::HuggingFace(model) => {
            arch::from_config(&model.config, &model.weights.tensors, &model.weights.files, &name)?
        }
    };
    Ok(OpenModel { spec, source: Arc::new(Source { located }) })
}

/// Builds the tokenizer of a model of any architecture; its weights need not be there.
pub fn open_tokenizer(path: &Path) -> Result<Tokenizer, ModelError> {
    text::tokenizer(&locate::locate(path)?)
}

/// Describes the files of a model, of any architecture.
pub fn inspect(path: &Path) -> Result<Inspection, ModelError> {
    Ok(inspect::describe(&locate::locate(path)?))
}

impl OpenModel {
    /// Builds the tokenizer. Takes tens of milliseconds, so callers build it on a thread of its own while weights load.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        text::tokenizer(&self.source.located)
    }

    /// The chat template in Jinja, if the model has one.
    pub fn chat_template(&self) -> Result<Option<String>, ModelError> {
        text::chat_template(&self.source.located)
    }

    /// Sampling defaults that come with the model.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults, ModelError> {
        generation::defaults(&self.source.located)
    }

    /// The files as plain data.
    pub fn inspect(&self) -> Inspection {
        inspect::describe(&self.source.located)
    }

    /// Paths of the weight files, in shard order.
    pub fn file_paths(&self) -> Vec<PathBuf> {
        self.source.located.files().paths().map(PathBuf::from).collect()
    }

    /// Bytes of all weight files.
    pub fn file_bytes(&self) -> u64 {
        self.source.located.files().bytes()
    }
}
