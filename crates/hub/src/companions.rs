//! The small files beside the weights that a cache filled by another tool may lack: chat template, end tokens, sampling
//! defaults. They are fetched, or named; that the hub has no such file is noted in the cache, so that it is asked once.

use std::path::Path;

use crate::address::HubName;
use crate::cache::{self, RepoCache};
use crate::http::Client;
use crate::progress::{Event, Progress};
use crate::repo::{Described, Repo};
use crate::{HubConfig, HubError, snapshot};

/// Fetches what a cached safetensors model lacks, or says what it lacks. Only being interrupted is an error: the model
/// works without.
pub(crate) fn complete(
    name: &HubName,
    snapshot: &Path,
    config: &HubConfig,
    progress: &mut Progress<'_>,
) -> Result<(), HubError> {
    let Some(commit) = snapshot.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    let cache = RepoCache::new(config.cache()?, &cache::folder(&name.owner, &name.repo));
    let mut missing = snapshot::missing_companions(snapshot);
    missing.retain(|file| !cache.is_absent(commit, file));
    if missing.is_empty() {
        return Ok(());
    }
    let why = match config.offline {
        true => "offline mode is on".to_string(),
        false => match fetch(name, commit, &missing, &cache, config, progress) {
            Ok(()) => return Ok(()),
            Err(error @ HubError::Interrupted { .. }) => return Err(error),
            Err(error) => error.to_string(),
        },
    };
    let mut missing = snapshot::missing_companions(snapshot);
    missing.retain(|file| !cache.is_absent(commit, file));
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!(
        "warning: {}/{}: the cache lacks {}, and {why}; not known without them: {}",
        name.owner,
        name.repo,
        missing.join(", "),
        lost(&missing).join(", ")
    );
    let _ = progress(Event::Lacking { files: &missing, text: &text });
    Ok(())
}

/// What these files would tell, for the user.
fn lost(missing: &[&str]) -> Vec<&'static str> {
    let mut lost = Vec::new();
    for file in missing {
        let told: &[&str] = match *file {
            "generation_config.json" => &["recommended sampling", "tokens that end an answer"],
            "tokenizer_config.json" | "special_tokens_map.json" => &["the names of special tokens"],
            _ => &["the chat template"],
        };
        lost.extend_from_slice(told);
    }
    lost.dedup();
    lost
}

fn fetch(
    name: &HubName,
    commit: &str,
    missing: &[&str],
    cache: &RepoCache,
    config: &HubConfig,
    progress: &mut Progress<'_>,
) -> Result<(), HubError> {
    // The model works without these files, so nobody waits for a hub that does not answer.
    let config = HubConfig { retries: 0, ..config.clone() };
    let client = Client::new(&config)?;
    let name = format!("{}/{}", name.owner, name.repo);
    let repo = Repo { client: &client, config: &config, cache, name: &name, commit };
    let mut known_to_exist = false;
    for file in missing {
        match repo.describe(file) {
            Ok(described) => {
                known_to_exist = true;
                repo.fetch(file, &described, progress)?;
            }
            Err(HubError::NotFound { .. }) => {
                // The same status as for a repository that is not there: a file that it must have tells.
                if !known_to_exist {
                    let _: Described = repo.describe("config.json")?;
                    known_to_exist = true;
                }
                cache.note_absent(commit, file);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
