//! Whether a model can run, told from the few kilobytes that can be looked at before gigabytes are fetched.

use std::path::{Path, PathBuf};

use unicorn_core::WeightSpan;

use crate::arch;
use crate::error::ModelError;
use crate::gguf::{self, Gguf, GgufError};
use crate::json::parse_json;
use crate::notice::Notices;
use crate::tensors::{TensorInfo, TensorTable};
use crate::wrong_file;

/// What the beginning of a GGUF file tells. That a model cannot run is an error, not a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderVerdict {
    /// The whole head was there, and everything that it describes can run.
    Runs,
    /// Nothing so far stands against it, but the head goes on after these bytes. That of a model with a large vocabulary has
    /// some ten megabytes; its architecture stands in the first kilobyte.
    Incomplete,
}

/// Whether a model with this `config.json` can run.
///
/// # Errors
/// The reason why not: an architecture that is not known, quantized weights, or a key whose value asks for something that is
/// not implemented.
pub fn check_config(config: &str) -> Result<(), ModelError> {
    let path = Path::new("config.json");
    let config = parse_json(path, config.as_bytes())?;
    arch::check_config(&config, &Notices::new(path))
}

/// Whether a GGUF file that begins with these bytes can run; any number of them will do.
///
/// # Errors
/// The reason why not, as far as the bytes tell it.
pub fn check_gguf_header(bytes: &[u8]) -> Result<HeaderVerdict, ModelError> {
    if bytes.is_empty() {
        return Ok(HeaderVerdict::Incomplete);
    }
    if !bytes.starts_with(b"GGUF") && bytes.len() >= 4 {
        let path = PathBuf::from("the file");
        return Err(match wrong_file::describe(&bytes, &path) {
            Some(what) => ModelError::WrongFile { path, what },
            None => ModelError::NotAModel { path, reason: "it does not begin with \"GGUF\"".to_owned() },
        });
    }
    let notices = Notices::new(Path::new(""));
    // The length of the whole file is not known here.
    let gguf::Head { mut gguf, error } = gguf::parse_up_to_end(&bytes, u64::MAX);
    match error {
        None => {
            let is_shard = gguf.int("split.count")?.is_some_and(|count| count > 1);
            let tensors = if is_shard { None } else { Some(table(&mut gguf)?) };
            arch::check_gguf(&gguf, tensors.as_ref(), &notices)?;
            Ok(HeaderVerdict::Runs)
        }
        Some(GgufError::Truncated { .. }) => {
            if gguf.string("general.architecture")?.is_some() {
                arch::check_architecture(&gguf, &notices)?;
            }
            Ok(HeaderVerdict::Incomplete)
        }
        Some(error) => Err(error.into()),
    }
}

fn table(gguf: &mut Gguf) -> Result<TensorTable, ModelError> {
    let info = |t: gguf::GgufTensor| TensorInfo {
        name: t.name,
        ty: t.ty,
        shape: t.shape,
        span: WeightSpan { file: 0, offset: t.offset, bytes: t.bytes },
    };
    let tensors = gguf.tensors.drain(..).map(info).collect();
    TensorTable::new(tensors).map_err(|tensor| GgufError::DuplicateTensor { tensor }.into())
}
