//! A repository on the hub: which files it has, which of them make a model, and fetching those.

use std::io::Read;
use std::path::PathBuf;

use serde::Deserialize;

use crate::address::HubName;
use crate::cache::{self, RepoCache};
use crate::check::{Check, Preview};
use crate::download::{self, Blob, status_error};
use crate::http::{Answer, Client, Range, header};
use crate::known::PinnedFile;
use crate::progress::{Progress, say};
use crate::quant::{self, Pick};
use crate::safe_name::{check_id, check_relative};
use crate::sniff;
use crate::{HubConfig, HubError};

/// Longest file list accepted.
const LIST_BYTES_MAX: u64 = 32 << 20;

/// How much of a GGUF file is looked at before it is fetched.
const HEAD_BYTES: u64 = 1 << 20;

/// Files of a safetensors model without which it can do less; where the list has none, the cache notes it.
const COMPANIONS: &[&str] = &[
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The hub's answer about a revision, as far as it matters here.
#[derive(Deserialize)]
pub(crate) struct Revision {
    pub sha: String,
    siblings: Vec<Sibling>,
}

/// One file of a repository.
#[derive(Deserialize, Clone)]
pub(crate) struct Sibling {
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

impl Sibling {
    /// Its name in the repository.
    pub fn name(&self) -> &str {
        &self.rfilename
    }
}

/// One commit of a repository on the hub, and where its files go.
pub(crate) struct Repo<'a> {
    pub client: &'a Client<'a>,
    pub config: &'a HubConfig,
    pub cache: &'a RepoCache,
    /// `owner/repo`.
    pub name: &'a str,
    pub commit: &'a str,
}

/// Blob name, size and SHA-256 of a file.
pub(crate) struct Described {
    id: String,
    bytes: Option<u64>,
    sha256: Option<String>,
}

/// Fetches a model and returns the path to load: the (first) GGUF file, or the folder of a safetensors model.
///
/// `pinned` is the one file that will do, for models with more than one source.
pub(crate) fn pull(
    wanted: &HubName,
    pinned: Option<PinnedFile>,
    config: &HubConfig,
    check: &Check<'_>,
    progress: &mut Progress<'_>,
) -> Result<PathBuf, HubError> {
    let client = Client::new(config)?;
    let name = format!("{}/{}", wanted.owner, wanted.repo);
    let named = wanted.revision.as_deref().unwrap_or("main");
    let revision = revision(&client, config, &name, named, progress)?;
    check_id(&revision.sha)?;
    let pick = Pick { quant: wanted.quant.as_deref(), file: wanted.file.as_deref() };
    let (files, is_gguf) = select(&revision, &name, config, pick)?;
    for file in &files {
        check_relative(&file.rfilename)?;
    }
    let cache = RepoCache::new(config.cache()?, &cache::folder(&wanted.owner, &wanted.repo));
    let repo = Repo { client: &client, config, cache: &cache, name: &name, commit: &revision.sha };
    let path = match is_gguf {
        true => repo.pull_gguf(&files, pinned, check, progress)?,
        false => {
            let path = repo.pull_safetensors(&files, check, progress)?;
            let has = |name: &&&str| revision.siblings.iter().any(|s| s.rfilename == **name);
            COMPANIONS
                .iter()
                .filter(|name| !has(name))
                .for_each(|name| cache.note_absent(&revision.sha, name));
            path
        }
    };
    cache.set_ref(named, &revision.sha)?;
    Ok(path)
}

pub(crate) fn revision(
    client: &Client<'_>,
    config: &HubConfig,
    name: &str,
    named: &str,
    progress: &mut Progress<'_>,
) -> Result<Revision, HubError> {
    let url = format!("{}/api/models/{name}/revision/{}?blobs=true", config.hub(), named.replace('/', "%2F"));
    let what = if named == "main" { name.to_string() } else { format!("{name}@{named}") };
    let mut attempt = 0;
    let text = loop {
        let error = match client.get(&url, Range::From(0)) {
            Ok(answer) if answer.status == 200 => break answer.text(LIST_BYTES_MAX)?,
            Ok(answer) => status_error(config, &what, &answer),
            Err(error) => return Err(error),
        };
        attempt += 1;
        if !download::transient(&error) || attempt > config.retries.min(3) {
            return Err(error);
        }
        say(progress, &format!("{error}; trying again"));
        std::thread::sleep(config.retry_pause);
    };
    let shown = || url.split('?').next().unwrap_or_default().to_string();
    if let Some(found) = sniff::not_the_file(text.as_bytes()) {
        return Err(HubError::WrongContent { url: shown(), found });
    }
    serde_json::from_str(&text).map_err(|e| HubError::BadAnswer { url: shown(), reason: e.to_string() })
}

/// The files of the wanted model, and whether they are GGUF.
pub(crate) fn select<'r>(
    revision: &'r Revision,
    repo: &str,
    config: &HubConfig,
    pick: Pick<'_>,
) -> Result<(Vec<&'r Sibling>, bool), HubError> {
    let names = || revision.siblings.iter().map(|s| s.rfilename.as_str());
    let choices = quant::choices(names());
    if let Some(choice) = quant::choose(&choices, pick) {
        let of = |file: &String| revision.siblings.iter().find(|s| s.rfilename == *file);
        return Ok((choice.files.iter().filter_map(of).collect(), true));
    }
    if let Some(file) = pick.file.filter(|_| pick.quant.is_none())
        && !(pick.allows_safetensors() && names().any(|name| name == file))
    {
        let what = format!("{repo}: a model at {file:?}");
        return Err(HubError::NotFound { what, endpoint: config.hub().to_string() });
    }
    if let Some(quant) = pick.quant {
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
    let mut files: Vec<&Sibling> = revision.siblings.iter().filter(wanted).collect();
    if !files.iter().any(|s| is_weights(&s.rfilename)) {
        return Err(HubError::NoModel { repo: repo.to_string() });
    }
    // Weights last: what the small files say may be that they are not wanted.
    files.sort_by_key(|s| is_weights(&s.rfilename));
    Ok((files, false))
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// True for the files that a safetensors model consists of, at the top of the repository but for how an encoder's vectors are pooled.
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
        // How the texts of an encoder become vectors.
        "modules.json",
        "sentence_bert_config.json",
    ];
    let tokenizer = name.starts_with("tokenizer") && name.ends_with(".json");
    let weights = name.ends_with(".safetensors") && !name.starts_with("adapter");
    let pooling =
        name.strip_suffix("_Pooling/config.json").is_some_and(|number| number.parse::<u8>().is_ok());
    pooling
        || !name.contains('/')
            && (EXACT.contains(&name) || tokenizer || weights || name.starts_with("chat_template."))
}

impl Repo<'_> {
    /// Address of a file, by the commit and not by the branch: what is resumed tomorrow is the same file.
    pub fn url(&self, file: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.config.hub(), self.name, self.commit, escape(file))
    }

    fn pull_gguf(
        &self,
        files: &[&Sibling],
        pinned: Option<PinnedFile>,
        check: &Check<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf, HubError> {
        let mut first = None;
        for file in files {
            let described = self.described(file, pinned)?;
            if first.is_none() && !self.cache.blob(&described.id)?.exists() {
                self.check_head(file, &described, check)?;
            }
            let link = self.fetch(&file.rfilename, &described, progress)?;
            first.get_or_insert(link);
        }
        first.ok_or_else(|| HubError::NoModel { repo: self.name.to_string() })
    }

    /// Lets the caller look at the beginning of a GGUF file. A hub that does not give it is no reason to stop: the
    /// download itself meets the same fault and names it.
    fn check_head(&self, file: &Sibling, described: &Described, check: &Check<'_>) -> Result<(), HubError> {
        let url = self.url(&file.rfilename);
        let Ok(answer) = self.client.get(&url, Range::First(HEAD_BYTES)) else { return Ok(()) };
        if !matches!(answer.status, 200 | 206) {
            return Ok(());
        }
        let mut head = Vec::new();
        if answer.reader().take(HEAD_BYTES).read_to_end(&mut head).is_err() {
            return Ok(());
        }
        if let Some(found) = sniff::not_the_file(&head) {
            return Err(HubError::WrongContent { url, found });
        }
        self.ask(check, Preview::Gguf { head: &head, bytes: described.bytes })
    }

    fn pull_safetensors(
        &self,
        files: &[&Sibling],
        check: &Check<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf, HubError> {
        let names: Vec<&str> = files.iter().map(|file| file.rfilename.as_str()).collect();
        let config = files.iter().find(|file| file.rfilename == "config.json");
        let config = config.ok_or_else(|| HubError::NotFound {
            what: format!("{}: config.json beside its safetensors", self.name),
            endpoint: self.config.hub().to_string(),
        })?;
        let link = self.fetch(&config.rfilename, &self.described(config, None)?, progress)?;
        let content = std::fs::read(&link).map_err(HubError::io(&link))?;
        self.ask(check, Preview::Safetensors { config: &content, files: &names })?;
        for file in files {
            self.fetch(&file.rfilename, &self.described(file, None)?, progress)?;
        }
        // The files of a safetensors model lie at the top of the snapshot.
        Ok(link.parent().map(PathBuf::from).unwrap_or(link))
    }

    fn ask(&self, check: &Check<'_>, preview: Preview<'_>) -> Result<(), HubError> {
        check(preview).map_err(|reason| HubError::Refused { name: self.name.to_string(), reason })
    }

    /// Bytes of a file, where the list or its own headers tell.
    pub fn size(&self, file: &Sibling) -> Result<Option<u64>, HubError> {
        match (&file.lfs, file.size) {
            (Some(lfs), _) => Ok(Some(lfs.size)),
            (None, Some(bytes)) => Ok(Some(bytes)),
            (None, None) => Ok(self.describe(&file.rfilename)?.bytes),
        }
    }

    /// What the list says of a file, or its own headers where the list says nothing.
    fn described(&self, file: &Sibling, pinned: Option<PinnedFile>) -> Result<Described, HubError> {
        let described = match (&file.lfs, &file.blob_id) {
            (Some(lfs), _) => {
                Described { id: lfs.sha256.clone(), bytes: Some(lfs.size), sha256: Some(lfs.sha256.clone()) }
            }
            (None, Some(id)) => Described { id: id.clone(), bytes: file.size, sha256: None },
            (None, None) => self.describe(&file.rfilename)?,
        };
        match pinned {
            Some(pinned) if described.sha256.as_deref() != Some(pinned.sha256) => {
                let reason =
                    format!("{} is not the file that this program knows by its hash", file.rfilename);
                Err(HubError::BadAnswer { url: self.url(&file.rfilename), reason })
            }
            _ => Ok(described),
        }
    }

    /// Asks for a file's headers.
    pub fn describe(&self, file: &str) -> Result<Described, HubError> {
        let answer = self.client.head(&self.url(file))?;
        if answer.status != 200 {
            return Err(status_error(self.config, file, &answer));
        }
        let Answer { first, last, .. } = &answer;
        let either = |linked: &str, plain: &str| header(first, linked).or(header(last, plain));
        let tag = either("x-linked-etag", "etag").unwrap_or_default();
        let id = tag.trim_start_matches("W/").trim_matches('"').to_string();
        if id.is_empty() {
            let reason = "it tells no etag, as a hub does".to_string();
            return Err(HubError::BadAnswer { url: answer.url, reason });
        }
        check_id(&id)?;
        let bytes = either("x-linked-size", "content-length").and_then(|v| v.parse().ok());
        let is_sha256 = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(Described { sha256: is_sha256.then(|| id.clone()), id, bytes })
    }

    /// Fetches a file and gives it its name in the snapshot.
    pub fn fetch(
        &self,
        file: &str,
        described: &Described,
        progress: &mut Progress<'_>,
    ) -> Result<PathBuf, HubError> {
        let Described { id, bytes, sha256 } = described;
        let blob = Blob { name: file, id, bytes: *bytes, sha256: sha256.as_deref() };
        download::fetch(self.client, self.config, self.cache, &self.url(file), &blob, progress)?;
        self.cache.link(self.commit, file, id)
    }
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
        let config = HubConfig::new("/c");
        let pick = Pick { quant, file: None };
        select(&revision, "o/r", &config, pick)
            .map(|(files, _)| files.iter().map(|s| s.rfilename.clone()).collect())
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
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
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
