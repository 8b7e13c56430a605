//! Opening a model: from a path to what it computes, where its weights lie, and what had to be guessed.

use std::path::Path;
use std::sync::Arc;

use unicorn_core::{ModelSpec, WeightError, WeightSource, WeightSpan};

use crate::arch::{self, Weights};
use crate::embedding::{self, EmbeddingDefaults};
use crate::error::ModelError;
use crate::fingerprint;
use crate::folder;
use crate::generation::{self, GenerationDefaults};
use crate::inspect::{self, Inspection};
use crate::locate::{self, Found, Located};
use crate::notice::{Notice, Notices};
use crate::text::{self, OpenTokenizer};

/// An opened model: what it computes, and where its weights are read from.
#[derive(Debug)]
pub struct OpenModel {
    /// The blocks.
    pub spec: ModelSpec,
    /// Reads the weights; shared with the devices that load them.
    pub source: Arc<Source>,
    /// What was guessed, dropped or found missing, for a person to read.
    pub notices: Vec<Notice>,
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
    let Found { located, set_aside } = locate::locate(path)?;
    if let Located::HuggingFace(_) = &located {
        check_lone_shard(path)?;
    }
    let (spec, notices) = spec_of(&located, path, &name_of(path))?;
    let mut all = set_aside;
    all.extend(notices);
    // An encoder writes no answers.
    if !spec.is_encoder() {
        all.extend(generation::defaults(&located, spec.vocab).1);
        all.extend(text::notices(&located, Some(spec.vocab), &spec.name));
    }
    Ok(OpenModel { spec, source: Arc::new(Source { located }), notices: all })
}

/// What a model computes, and what had to be guessed; of its weights only divisors of rotary frequencies are read.
pub(crate) fn spec_of(
    located: &Located,
    path: &Path,
    name: &str,
) -> Result<(ModelSpec, Vec<Notice>), ModelError> {
    let (spec, notices) = match located {
        Located::Gguf(model) => {
            let notices = Notices::new(model.files.paths().next().unwrap_or(path));
            let weights = Weights { tensors: &model.tensors, source: &model.files };
            (arch::from_gguf(&model.head, weights, name, &notices)?, notices)
        }
        Located::HuggingFace(model) => {
            let notices = Notices::new(&model.directory.join("config.json"));
            let weights = Weights { tensors: &model.weights.tensors, source: &model.weights.files };
            (arch::from_config(&model.config, weights, name, &notices)?, notices)
        }
    };
    Ok((spec, notices.into_list()))
}

/// The name of the file without its extension, or of the directory.
fn name_of(path: &Path) -> String {
    let name = path.canonicalize().ok().and_then(|p| {
        let part = if p.is_dir() { p.file_name() } else { p.file_stem() };
        part.map(|n| n.to_string_lossy().into_owned())
    });
    name.unwrap_or_default()
}

/// One shard of several can be inspected, but is no model.
fn check_lone_shard(path: &Path) -> Result<(), ModelError> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match folder::shard_count(&name).filter(|count| *count > 1) {
        Some(count) if path.is_file() => {
            let reason = format!("one of {count} shards; give the folder that holds them all");
            Err(ModelError::NotAModel { path: path.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

/// Builds the tokenizer of a model of any architecture; its weights need not be there.
pub fn open_tokenizer(path: &Path) -> Result<OpenTokenizer, ModelError> {
    let located = locate::locate(path)?.located;
    let mut open = text::tokenizer(&located, None)?;
    let told = text::tokens_notices(&located, None);
    open.notices.splice(0..0, told);
    Ok(open)
}

/// Describes the files of a model, of any architecture.
pub fn inspect(path: &Path) -> Result<Inspection, ModelError> {
    Ok(inspect::describe(&locate::locate(path)?.located))
}

impl OpenModel {
    /// Builds the tokenizer. Takes tens of milliseconds, so callers build it on a thread of its own while weights load.
    pub fn tokenizer(&self) -> Result<OpenTokenizer, ModelError> {
        let mut open = text::tokenizer(&self.source.located, Some(self.spec.vocab))?;
        if self.spec.is_encoder() {
            // What ends an answer does not matter.
            open.notices.retain(|notice| !matches!(notice, Notice::Assumed { .. }));
        }
        Ok(open)
    }

    /// The chat template in Jinja, if the model has one.
    pub fn chat_template(&self) -> Result<Option<String>, ModelError> {
        text::chat_template(&self.source.located)
    }

    /// A hash that tells this model from others wherever its files lie and whatever they are called: over everything before the tensors
    /// (with `config.json` where there is one), and over name, size, the first and the last 4 KiB of every tensor. Takes a few
    /// milliseconds and two small reads a tensor.
    ///
    /// It does not see a change in the middle of a tensor of more than 8 KiB, nor the tokenizer and the chat template of a Hugging Face
    /// directory. The same weights in other files (one file or shards, GGUF or safetensors) are another model to it.
    ///
    /// # Errors
    /// Where the files cannot be read any more.
    pub fn fingerprint(&self) -> Result<[u8; 32], ModelError> {
        fingerprint::of(&self.source.located)
    }

    /// How the model's files say that texts become vectors.
    ///
    /// Errors where they ask for something that is not done here, since vectors would be others.
    pub fn embedding_defaults(&self) -> Result<EmbeddingDefaults, ModelError> {
        embedding::defaults(&self.source.located)
    }

    /// Sampling defaults that come with the model. What cannot be used is left out, and among the notices.
    pub fn generation_defaults(&self) -> GenerationDefaults {
        generation::defaults(&self.source.located, self.spec.vocab).0
    }
}
