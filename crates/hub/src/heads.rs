//! The beginnings of a model's files, so that it can be told what they are before they are fetched. Nothing of it is kept.

use std::io::{ErrorKind, Read};
use std::ops::Range as Bytes;

use crate::address::HubName;
use crate::cache::{self, RepoCache};
use crate::download::{self, status_error};
use crate::http::{Client, Range};
use crate::progress::{Event, Progress, say};
use crate::pull::check_host;
use crate::quant::Pick;
use crate::repo::{self, Repo, Sibling};
use crate::safe_name::{check_id, check_relative};
use crate::{HubConfig, HubError, Reference, known, sniff};

/// Most bytes of one file: no head is longer.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Parts of a file, at most: each makes it known what the next has to be.
const PARTS_MAX: usize = 32;
/// From a server that gives no parts, everything before one is read; but not more than this.
const SKIPPED_BYTES_MAX: u64 = 64 << 20;

/// Parts of a file on the hub.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RemoteFile {
    /// Its name in the repository.
    pub name: String,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// What was fetched, with its position.
    pub parts: Vec<(u64, Vec<u8>)>,
}

/// Tells which bytes of a file are needed next; `None` where those that are there do. What is asked for from the beginning takes the
/// place of what is there of it. The text of an error says why the model will not do.
pub(crate) type Wants<'a> = dyn Fn(&RemoteFile) -> Result<Option<Bytes<u64>>, String> + 'a;

/// Fetches as much as `wants` asks for of the files that make up a model on the hub: a GGUF file or all its shards, or `config.json` and
/// safetensors. Follows the same settings as [`crate::pull`].
///
/// Errors as a pull does, with [`HubError::Refused`] where `wants` refuses; and for names that are no models of a hub.
pub fn fetch_heads(
    reference: &Reference,
    config: &HubConfig,
    wants: &Wants<'_>,
    progress: &mut Progress<'_>,
) -> Result<Vec<RemoteFile>, HubError> {
    let wanted = match reference {
        Reference::Hub(name) => name.clone(),
        Reference::Known(name) => {
            let model = known::find(name)
                .ok_or_else(|| HubError::bad_name(name, "it is not in the table of known models"))?;
            HubName {
                owner: model.hub.owner.to_string(),
                repo: model.hub.repo.to_string(),
                quant: model.hub.quant.map(str::to_string),
                ..HubName::default()
            }
        }
        Reference::File(path) | Reference::Directory(path) => {
            return Err(HubError::bad_name(
                &path.display().to_string(),
                "it is a path, not a model of a hub",
            ));
        }
    };
    check_host(&wanted, config)?;
    if config.offline {
        let cache_dir = config.cache()?.to_path_buf();
        return Err(HubError::Offline { name: reference.to_string(), cache_dir, lacks: Vec::new() });
    }
    let client = Client::new(config)?;
    let name = format!("{}/{}", wanted.owner, wanted.repo);
    let named = wanted.revision.as_deref().unwrap_or("main");
    let revision = repo::revision(&client, config, &name, named, progress)?;
    check_id(&revision.sha)?;
    let pick = Pick { quant: wanted.quant.as_deref(), file: wanted.file.as_deref() };
    let (files, is_gguf) = repo::select(&revision, &name, config, pick)?;
    let cache = RepoCache::new(config.cache()?, &cache::folder(&wanted.owner, &wanted.repo));
    let repo = Repo { client: &client, config, cache: &cache, name: &name, commit: &revision.sha };
    let tells = |file: &&&Sibling| is_gguf || tells_of_weights(file.name());
    files.iter().filter(tells).map(|file| repo.head(file, wants, progress)).collect()
}

/// The files of a safetensors model that say what it computes.
fn tells_of_weights(name: &str) -> bool {
    name == "config.json" || name.ends_with(".safetensors")
}

impl Repo<'_> {
    fn head(
        &self,
        file: &Sibling,
        wants: &Wants<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<RemoteFile, HubError> {
        check_relative(file.name())?;
        let url = self.url(file.name());
        let bad = |reason: &str| HubError::BadAnswer { url: url.clone(), reason: reason.to_string() };
        let bytes = self.size(file)?.ok_or_else(|| bad("it tells no size, as a hub does"))?;
        let mut head = RemoteFile { name: file.name().to_string(), bytes, parts: Vec::new() };
        for _ in 0..PARTS_MAX {
            let refused = |reason| HubError::Refused { name: self.name.to_string(), reason };
            let Some(part) = wants(&head).map_err(refused)? else { return Ok(head) };
            let part = part.start..part.end.min(bytes);
            if part.is_empty() || part.end - part.start > FILE_BYTES_MAX {
                break;
            }
            let total = Some(part.end);
            let have = part.start;
            let _ = progress(Event::Begin { file: file.name(), have, total });
            let content = self.part(&url, file.name(), part.clone(), progress)?;
            let _ = progress(Event::End { file: file.name(), bytes: content.len() as u64, verified: false });
            if part.start == 0
                && let Some(found) = sniff::not_the_file(&content)
            {
                return Err(HubError::WrongContent { url, found });
            }
            head.parts.retain(|(at, _)| *at != part.start);
            head.parts.push((part.start, content));
        }
        Err(bad("its head has no end"))
    }

    /// Some bytes of a file, all of them.
    fn part(
        &self,
        url: &str,
        name: &str,
        part: Bytes<u64>,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<u8>, HubError> {
        let mut attempt = 0;
        loop {
            let error = match self.part_once(url, name, part.clone()) {
                Err(error) if download::transient(&error) => error,
                done => return done,
            };
            attempt += 1;
            if attempt > self.config.retries.min(3) {
                return Err(error);
            }
            say(progress, &format!("{error}; trying again"));
            std::thread::sleep(self.config.retry_pause);
        }
    }

    fn part_once(&self, url: &str, name: &str, part: Bytes<u64>) -> Result<Vec<u8>, HubError> {
        let answer = self.client.get(url, Range::Part(part.start, part.end))?;
        let skipped = match answer.status {
            206 => download::check_range(&answer, part.start).map(|_| 0)?,
            // The server gives no parts: what is asked for comes after what is not.
            200 if part.start <= SKIPPED_BYTES_MAX => part.start,
            200 => {
                let reason = "it gives no parts of files, which are needed to look at one".to_string();
                return Err(HubError::BadAnswer { url: url.to_string(), reason });
            }
            _ => return Err(status_error(self.config, name, &answer)),
        };
        let unreachable =
            |e: std::io::Error| HubError::Unreachable { url: url.to_string(), reason: e.to_string() };
        let length = part.end - part.start;
        let mut reader = answer.reader();
        std::io::copy(&mut (&mut reader).take(skipped), &mut std::io::sink()).map_err(unreachable)?;
        let mut content = Vec::new();
        reader.take(length).read_to_end(&mut content).map_err(unreachable)?;
        match content.len() as u64 == length {
            true => Ok(content),
            false => Err(unreachable(ErrorKind::UnexpectedEof.into())),
        }
    }
}
