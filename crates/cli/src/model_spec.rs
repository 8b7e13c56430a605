//! What a model computes, told without its weights: from files that are here, or from the beginnings of those on a hub.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context;
use unicorn_core::ModelSpec;
use unicorn_hub::{HubError, Reference, RemoteFile};
use unicorn_model::{FileHead, Heads, Inspection, ModelError};

use crate::config::Config;
use crate::progress;

/// Where a model was looked at.
pub enum Looked {
    /// At files that are here.
    Here(PathBuf),
    /// At the beginnings of files on a hub; nothing of it was kept.
    AtHub(Box<Heads>),
}

/// Finds a model: a path, one in the cache, or else on its hub, where only the beginnings of its files are fetched.
pub fn look(name: &str, config: &Config) -> anyhow::Result<Looked> {
    if Path::new(name).exists() {
        return Ok(Looked::Here(PathBuf::from(name)));
    }
    let reference = match unicorn_hub::resolve(name) {
        // For a name that is no model's, what matters here is that there is no such file.
        Err(HubError::UnknownModel { .. }) => {
            anyhow::bail!(
                "{name}: no such file, folder or known model; `unicorn models` lists the known ones"
            );
        }
        other => other?,
    };
    if let Reference::File(path) | Reference::Directory(path) = &reference {
        anyhow::bail!("{}: not found", path.display());
    }
    if let Some(path) = unicorn_hub::cached(&reference, &config.hub) {
        return Ok(Looked::Here(path));
    }
    let heads = fetch(&reference, config).map_err(|error| match error {
        HubError::Offline { .. } => {
            anyhow::Error::new(error).context(format!("{name} is not on this machine"))
        }
        other => other.into(),
    })?;
    Ok(Looked::AtHub(Box::new(Heads::new(heads, name).with_context(|| name.to_owned())?)))
}

impl Looked {
    /// Describes the files.
    pub fn inspect(&self) -> anyhow::Result<Inspection> {
        match self {
            Looked::Here(path) => Ok(unicorn_model::inspect(path)?),
            Looked::AtHub(heads) => Ok(heads.inspect()),
        }
    }

    /// What the model computes; its weights cannot be read from here.
    ///
    /// Errors as opening the whole model does.
    pub fn spec(&self) -> Result<ModelSpec, ModelError> {
        match self {
            Looked::Here(path) => unicorn_model::open(path).map(|model| model.spec),
            Looked::AtHub(heads) => heads.spec(),
        }
    }

    /// Where it was looked at, where that is not the whole model.
    pub fn origin(&self, config: &Config) -> Option<String> {
        match self {
            Looked::Here(_) => None,
            Looked::AtHub(_) => Some(format!(
                "only the beginnings of its files were fetched, from {}",
                config.hub.endpoint.value
            )),
        }
    }
}

fn fetch(reference: &Reference, config: &Config) -> Result<Vec<FileHead>, HubError> {
    let wants = |file: &RemoteFile| -> Result<Option<Range<u64>>, String> {
        head_of(file.clone()).wants().map_err(|error| error.to_string())
    };
    let files =
        progress::watch(config, |each| unicorn_hub::fetch_heads(reference, &config.hub, &wants, each))?;
    Ok(files.into_iter().map(head_of).collect())
}

fn head_of(file: RemoteFile) -> FileHead {
    let RemoteFile { name, bytes, parts } = file;
    // Shards of one model lie in one folder.
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    FileHead { name, bytes, parts }
}
