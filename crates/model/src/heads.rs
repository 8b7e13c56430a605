//! Models of which only the beginnings of the files are here: what they are, told before gigabytes are fetched.

use std::ops::Range;
use std::path::{Path, PathBuf};

use unicorn_core::ModelSpec;

use crate::error::ModelError;
use crate::files::OpenFile;
use crate::gguf::{self, GgufError};
use crate::inspect::{self, Inspection};
use crate::json::parse_json;
use crate::locate::{HuggingFaceModel, Located};
use crate::open;
use crate::safetensors::HEADER_BYTES_MAX;
use crate::shards;
use crate::wrong_file;

/// How much of a GGUF file is asked for first: all of its head where the vocabulary is small.
const GGUF_BYTES_FIRST: u64 = 4 << 20;
/// Longest head of a GGUF file that is fetched.
const GGUF_BYTES_MAX: u64 = 512 << 20;
/// Longest small file, such as `config.json`.
const SMALL_BYTES_MAX: u64 = 64 << 20;
/// Divisors of rotary frequencies: the one tensor whose values decide what a model computes before its weights are loaded.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Parts of a file that is somewhere else.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileHead {
    /// Its name, without a folder.
    pub name: String,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// What is here, with its position.
    pub parts: Vec<(u64, Vec<u8>)>,
}

impl FileHead {
    /// What is here of its beginning.
    fn beginning(&self) -> &[u8] {
        self.parts.iter().find(|(at, _)| *at == 0).map_or(&[], |(_, bytes)| bytes)
    }

    fn holds(&self, range: &Range<u64>) -> bool {
        self.parts.iter().any(|(at, bytes)| *at <= range.start && at + bytes.len() as u64 >= range.end)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(&self.name)
    }

    /// The bytes that are needed next to tell what the file holds; `None` when it is told. What is needed of its beginning takes the
    /// place of what is there of it.
    ///
    /// Errors where it cannot be what its name says.
    pub fn wants(&self) -> Result<Option<Range<u64>>, ModelError> {
        if self.name.ends_with(".gguf") {
            self.gguf_wants()
        } else if self.name.ends_with(".safetensors") {
            self.safetensors_wants()
        } else {
            let too_large = || ModelError::FileTooLarge {
                path: self.path(),
                bytes: self.bytes,
                bytes_max: SMALL_BYTES_MAX,
            };
            if self.bytes > SMALL_BYTES_MAX { Err(too_large()) } else { Ok(self.beginning_to(self.bytes)) }
        }
    }

    /// The beginning up to `end`, unless it is here.
    fn beginning_to(&self, end: u64) -> Option<Range<u64>> {
        let range = 0..end.min(self.bytes);
        (!range.is_empty() && !self.holds(&range)).then_some(range)
    }

    fn gguf_wants(&self) -> Result<Option<Range<u64>>, ModelError> {
        let here = self.beginning();
        if here.is_empty() {
            return Ok(self.beginning_to(GGUF_BYTES_FIRST));
        }
        self.check_magic(here, b"GGUF")?;
        let failed = |source| ModelError::Gguf { path: self.path(), source: Box::new(source) };
        let gguf::Head { gguf, error } = gguf::parse_up_to_end(&here, self.bytes);
        match error {
            None => {}
            Some(GgufError::Truncated { .. }) if (here.len() as u64) < self.bytes.min(GGUF_BYTES_MAX) => {
                return Ok(self.beginning_to(2 * here.len() as u64));
            }
            Some(error) => return Err(failed(error)),
        }
        let factors = gguf.tensors().iter().find(|t| t.name == ROPE_FACTORS);
        let range = factors.map(|t| t.offset..t.offset.saturating_add(t.bytes));
        Ok(range.filter(|range| {
            range.end <= self.bytes && range.end - range.start <= SMALL_BYTES_MAX && !self.holds(range)
        }))
    }

    fn safetensors_wants(&self) -> Result<Option<Range<u64>>, ModelError> {
        let here = self.beginning();
        let Some(length) = here.first_chunk::<8>() else { return Ok(self.beginning_to(1 << 16)) };
        let length = u64::from_le_bytes(*length);
        if length > HEADER_BYTES_MAX {
            self.check_magic(here, b"")?;
            // Opening it names what is wrong.
            return Ok(None);
        }
        Ok(self.beginning_to(8 + length))
    }

    /// Errors where something else is there that is known.
    fn check_magic(&self, here: &[u8], magic: &[u8]) -> Result<(), ModelError> {
        let path = self.path();
        if here.starts_with(magic) && !magic.is_empty() {
            return Ok(());
        }
        match wrong_file::describe(&here, &path) {
            Some(what) => Err(ModelError::WrongFile { path, what }),
            None if magic.is_empty() => Ok(()),
            None => {
                let reason = format!("it does not begin with {:?}", String::from_utf8_lossy(magic));
                Err(ModelError::NotAModel { path, reason })
            }
        }
    }
}

/// A model of whose files only the beginnings are here.
#[derive(Debug)]
pub struct Heads {
    located: Located,
    name: String,
}

impl Heads {
    /// Takes the heads of all files of a model: a GGUF file, or its shards; or `config.json` and safetensors, with their index where there
    /// are several. Each must be told, see [`FileHead::wants`]. `name` is the model's where its files have none.
    pub fn new(mut files: Vec<FileHead>, name: &str) -> Result<Heads, ModelError> {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let named = |file: &FileHead, end: &str| file.name.ends_with(end);
        let located = if files.iter().any(|f| named(f, ".gguf")) {
            files.retain(|f| named(f, ".gguf"));
            Located::Gguf(Box::new(shards::gguf::of_files(opened(files))?))
        } else {
            let config = files.iter().find(|f| f.name == "config.json");
            let config = config.map(|f| parse_json(Path::new("config.json"), f.beginning())).transpose()?;
            let missing = || ModelError::NotAModel {
                path: PathBuf::from(name),
                reason: "neither a GGUF file nor config.json beside safetensors".into(),
            };
            let config = config.ok_or_else(missing)?;
            files.retain(|f| named(f, ".safetensors"));
            let weights = shards::safetensors::of_files(opened(files))?;
            let directory = PathBuf::new();
            Located::HuggingFace(Box::new(HuggingFaceModel { directory, config, weights }))
        };
        Ok(Heads { located, name: name.to_owned() })
    }

    /// What the model computes. Its weights cannot be read.
    ///
    /// Errors as opening the whole model would.
    pub fn spec(&self) -> Result<ModelSpec, ModelError> {
        open::spec_of(&self.located, Path::new(&self.name), &self.name).map(|(spec, _)| spec)
    }

    /// Describes the files, of any architecture.
    pub fn inspect(&self) -> Inspection {
        inspect::describe(&self.located)
    }
}

fn opened(files: Vec<FileHead>) -> Vec<OpenFile> {
    let open = |file: FileHead| OpenFile::of_parts(file.path(), file.bytes, file.parts);
    files.into_iter().map(open).collect()
}
