//! A repository on the hub: which files it has, which of them make a model, and fetching those.

use std::path::PathBuf;

use serde::Deserialize;

use crate::cache::{self, RepoCache};
use crate::download::{self, Blob, status_error};
use crate::http::{Client, header};
use crate::known::PinnedFile;
use crate::names::{check_id, check_relative};
use crate::pull::{Event, Progress};
use crate::{HubConfig, HubError, quant};

/// Longest file list accepted.
const LIST_BYTES_MAX: u64 = 32 << 20;

/// The hub's answer about a revision, as far as it matters here.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Sibling>,
}

/// One file of a repository.
#[derive(Deserialize, Clone)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

/// Large files are stored apart and named by their SHA-256.
#[derive(Deserialize, Clone)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: String,
    size: u64,
}

/// What to fetch from which repository.
pub(crate) struct Wanted<'a> {
    pub owner: &'a str,
    pub repo: &'a str,
    pub quant: Option<&'a str>,
    /// The one file that will do, for models with more than one source.
    pub pinned: Option<PinnedFile>,
}

/// Fetches a model and returns the path to load: the (first) GGUF file, or the folder of a safetensors model.
pub(crate) fn pull(
    wanted: &Wanted<'_>,
    config: &HubConfig,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    let client = Client::new(config)?;
    let name = format!("{}/{}", wanted.owner, wanted.repo);
    let revision = revision(&client, config, &name, progress)?;
    check_id(&revision.sha)?;
    let (files, is_gguf) = select(&revision, &name, wanted.quant)?;
    let cache = RepoCache::new(&config.cache_dir, &cache::folder(wanted.owner, wanted.repo));
    let mut first = None;
    for file in files {
        check_relative(&file.rfilename)?;
        let link = pull_file(&client, config, &cache, &name, &revision.sha, file, wanted.pinned, progress)?;
        first.get_or_insert(link);
    }
    cache.set_main(&revision.sha)?;
    let first = first.ok_or(HubError::NoModel { repo: name })?;
    // The files of a safetensors model lie at the top of the snapshot.
    Ok(if is_gguf { first } else { first.parent().map_or(first.clone(), PathBuf::from) })
}

fn revision(
    client: &Client<'_>,
    config: &HubConfig,
    name: &str,
    progress: &mut Progress<'_>,
) -> Result<Revision, HubError> {
    let url = format!("{}/api/models/{name}/revision/main?blobs=true", config.endpoint);
    let mut attempt = 0;
    let text = loop {
        let answer = client.get(&url, 0)?;
        let error = match answer.status {
            200 => break answer.text(LIST_BYTES_MAX)?,
            status => status_error(config, name, &answer.url, status),
        };
        attempt += 1;
        if !download::transient(&error) || attempt > config.retries.min(3) {
            return Err(error);
        }
        let _ = progress(Event::Message(&format!("{error}; trying again")));
        std::thread::sleep(config.retry_pause);
    };
    serde_json::from_str(&text).map_err(|e| HubError::BadAnswer { url, reason: e.to_string() })
}

/// The files of the wanted model, and whether they are GGUF.
fn select<'r>(
    revision: &'r Revision,
    repo: &str,
    quant: Option<&str>,
) -> Result<(Vec<&'r Sibling>, bool), HubError> {
    let names = || revision.siblings.iter().map(|s| s.rfilename.as_str());
    let choices = quant::choices(names());
    if let Some(choice) = quant::choose(&choices, quant) {
        let of = |file: &String| revision.siblings.iter().find(|s| s.rfilename == *file);
        return Ok((choice.files.iter().filter_map(of).collect(), true));
    }
    if let Some(quant) = quant {
        let mut available: Vec<String> = choices.into_iter().map(|c| c.quant).collect();
        if available.is_empty() {
            available.push("no GGUF files (leave the quantization out for safetensors)".to_string());
        }
        return Err(HubError::NoSuchQuant { repo: repo.to_string(), quant: quant.to_string(), available });
    }
    // Some repositories carry the same weights a second time in their maker's own layout.
    let standard = names().any(|n| n.starts_with("model") && n.ends_with(".safetensors"));
    let wanted = |s: &&Sibling| {
        belongs_to_safetensors(&s.rfilename) && !(standard && s.rfilename.starts_with("consolidated"))
    };
    let files: Vec<&Sibling> = revision.siblings.iter().filter(wanted).collect();
    match files.iter().any(|s| s.rfilename.ends_with(".safetensors")) {
        true => Ok((files, false)),
        false => Err(HubError::NoModel { repo: repo.to_string() }),
    }
}

/// True for the files that a safetensors model consists of, at the top of the repository.
fn belongs_to_safetensors(name: &str) -> bool {
    const EXACT: &[&str] = &[
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
    ];
    let tokenizer = name.starts_with("tokenizer") && name.ends_with(".json");
    let weights = name.ends_with(".safetensors") && !name.starts_with("adapter");
    !name.contains('/')
        && (EXACT.contains(&name) || tokenizer || weights || name.starts_with("chat_template."))
}

fn pull_file(
    client: &Client<'_>,
    config: &HubConfig,
    cache: &RepoCache,
    repo: &str,
    commit: &str,
    file: &Sibling,
    pinned: Option<PinnedFile>,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    // The commit, not the branch: what is resumed tomorrow is the same file.
    let url = format!("{}/{repo}/resolve/{commit}/{}", config.endpoint, escape(&file.rfilename));
    let (id, bytes, sha256) = match (&file.lfs, &file.blob_id) {
        (Some(lfs), _) => (lfs.sha256.clone(), Some(lfs.size), Some(lfs.sha256.clone())),
        (None, Some(id)) => (id.clone(), file.size, None),
        (None, None) => describe(client, config, &file.rfilename, &url)?,
    };
    let sha256 = match pinned {
        Some(pinned) if sha256.as_deref() != Some(pinned.sha256) => {
            let reason = format!("{} is not the file that this program knows by its hash", file.rfilename);
            return Err(HubError::BadAnswer { url, reason });
        }
        _ => sha256,
    };
    let blob = Blob { name: &file.rfilename, id: &id, bytes, sha256: sha256.as_deref() };
    download::fetch(client, config, cache, &url, &blob, progress)?;
    cache.link(commit, &file.rfilename, &id)
}

/// Blob name, size and SHA-256 of a file whose list entry does not tell them.
type Description = (String, Option<u64>, Option<String>);

fn describe(client: &Client<'_>, config: &HubConfig, name: &str, url: &str) -> Result<Description, HubError> {
    let answer = client.head(url)?;
    if answer.status != 200 {
        return Err(status_error(config, name, &answer.url, answer.status));
    }
    let either = |linked: &str, plain: &str| header(&answer.first, linked).or(header(&answer.last, plain));
    let tag = either("x-linked-etag", "etag").unwrap_or_default();
    let id = tag.trim_start_matches("W/").trim_matches('"').to_string();
    check_id(&id)?;
    let bytes = either("x-linked-size", "content-length").and_then(|v| v.parse().ok());
    let is_sha256 = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    Ok((id.clone(), bytes, is_sha256.then_some(id)))
}

/// Percent-encodes what may not stand in the path of an address.
fn escape(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    path.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision_of(files: &[&str]) -> Revision {
        let file = |f: &&str| Sibling { rfilename: f.to_string(), size: None, blob_id: None, lfs: None };
        Revision { sha: "c0ffee".into(), siblings: files.iter().map(file).collect() }
    }

    fn selected(files: &[&str], quant: Option<&str>) -> Result<Vec<String>, HubError> {
        let revision = revision_of(files);
        select(&revision, "o/r", quant).map(|(files, _)| files.iter().map(|s| s.rfilename.clone()).collect())
    }

    #[test]
    fn gguf_wins_over_safetensors() {
        let files = ["config.json", "model.safetensors", "m-Q8_0.gguf", "m-Q4_0.gguf"];
        assert_eq!(selected(&files, None).unwrap(), ["m-Q4_0.gguf"]);
        assert_eq!(selected(&files, Some("Q8_0")).unwrap(), ["m-Q8_0.gguf"]);
        let message = selected(&files, Some("Q6_K")).unwrap_err().to_string();
        assert_eq!(message, "o/r has no Q6_K; it has: Q4_0, Q8_0");
    }

    #[test]
    fn safetensors_come_with_what_loading_needs() {
        let files = [
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "original/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "adapter_model.safetensors",
        ];
        let expected = [
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ];
        assert_eq!(selected(&files, None).unwrap(), expected);
        assert!(matches!(selected(&files, Some("Q4_0")), Err(HubError::NoSuchQuant { .. })));
        assert!(matches!(selected(&["README.md"], None), Err(HubError::NoModel { .. })));
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escape("a b/c+d#e.gguf"), "a%20b/c%2Bd%23e.gguf");
    }
}
