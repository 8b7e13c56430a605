//! Names of models on the hub: `owner/repo[@revision][:quant]`, the same behind `hf.co/` or `hf://`, and the addresses that a
//! browser shows.

use crate::HubError;
use crate::safe_name::check_relative;

/// Hosts that are the public hub.
const HUB_HOSTS: &[&str] = &["huggingface.co", "www.huggingface.co", "hf.co"];

/// A repository on the hub, or the part of it that is meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HubName {
    /// User or organization.
    pub owner: String,
    /// Repository.
    pub repo: String,
    /// Branch, tag or commit; without it `main`.
    pub revision: Option<String>,
    /// Quantization such as `Q4_K_M`; without it the preferred one that the repository has.
    pub quant: Option<String>,
    /// File that belongs to the model, or folder that holds it.
    pub file: Option<String>,
    /// Host of an address that is not the public hub's: a mirror, which the configuration must name, too.
    pub(crate) host: Option<String>,
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.owner, self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(quant) = &self.quant {
            write!(f, ":{quant}")?;
        }
        match &self.file {
            Some(file) => write!(f, " ({file})"),
            None => Ok(()),
        }
    }
}

/// What follows the hub's name, where `name` begins with it or is an address at all.
pub(crate) fn rest(name: &str) -> Option<Rest<'_>> {
    let after = |prefix: &str| {
        let head = name.get(..prefix.len())?;
        head.eq_ignore_ascii_case(prefix).then(|| &name[prefix.len()..])
    };
    if let Some(path) = after("hf://") {
        return Some(Rest { path, host: None, is_url: false });
    }
    if let Some(rest) = after("https://").or_else(|| after("http://")) {
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.split(['?', '#']).next().unwrap_or_default();
        // A user and a password, which no message repeats.
        let host = host.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
        let foreign = !HUB_HOSTS.contains(&host.as_str());
        return Some(Rest { path, host: foreign.then_some(host), is_url: true });
    }
    let (host, path) = name.split_once('/')?;
    let is_hub = HUB_HOSTS.contains(&host.to_ascii_lowercase().as_str());
    is_hub.then_some(Rest {
        path: path.split(['?', '#']).next().unwrap_or_default(),
        host: None,
        is_url: true,
    })
}

/// The part of a name behind the hub's own.
pub(crate) struct Rest<'a> {
    path: &'a str,
    host: Option<String>,
    /// Laid out as in a browser: percent-encoded.
    is_url: bool,
}

/// Parses a name on the hub. `None` for a name without any slash, which is no such name.
pub(crate) fn parse(name: &str) -> Result<Option<HubName>, HubError> {
    let refused = |reason: &str| HubError::bad_name(name, reason);
    if let Some(rest) = rest(name) {
        return parse_address(&rest, &refused).map(Some);
    }
    if let Some((scheme, _)) = name.split_once("://") {
        let reason = format!(
            "models are not fetched by {scheme:?}: give owner/repo, an address on the hub, or a path"
        );
        return Err(refused(&reason));
    }
    if !name.contains('/') {
        return Ok(None);
    }
    let (repository, revision, quant) = split_suffixes(name);
    let Some((owner, repo)) = repository.split_once('/') else {
        return Err(refused("a name on the hub is owner/repo[@revision][:quant]"));
    };
    if repo.contains('/') {
        return Err(refused(
            "owner/repo[@revision][:quant] has one slash; a file of a repository is hf.co/owner/repo/blob/main/FILE, \
             and there is no such path on this machine",
        ));
    }
    build(owner, repo, revision, quant, None, None, &refused).map(Some)
}

/// Takes `@revision` and `:quant` off the end of a name, in either order.
fn split_suffixes(name: &str) -> (&str, Option<&str>, Option<&str>) {
    let cut = name.find(['@', ':']).unwrap_or(name.len());
    let (repository, mut suffixes) = name.split_at(cut);
    let (mut revision, mut quant) = (None, None);
    while let Some(mark) = suffixes.chars().next() {
        let text = &suffixes[1..];
        // The next mark of the other kind ends this one.
        let other = if mark == '@' { ':' } else { '@' };
        let end = text.find(other).unwrap_or(text.len());
        let slot = if mark == '@' { &mut revision } else { &mut quant };
        *slot = Some(&text[..end]);
        suffixes = &text[end..];
    }
    (repository, revision, quant)
}

fn parse_address(rest: &Rest<'_>, refused: &dyn Fn(&str) -> HubError) -> Result<HubName, HubError> {
    let decoded = if rest.is_url { decode(rest.path) } else { Some(rest.path.to_string()) };
    let path = decoded.ok_or_else(|| refused("its percent-encoding is broken"))?;
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if parts.first() == Some(&"models") && parts.len() > 2 {
        parts.remove(0);
    }
    match parts.first().copied().unwrap_or_default() {
        "datasets" => return Err(refused("a data set, not a model")),
        "spaces" => return Err(refused("a space, not a model")),
        "collections" | "papers" | "docs" | "api" | "models" | "settings" => {
            return Err(refused("a page of the hub, not a repository"));
        }
        _ => {}
    }
    let [owner, repository, more @ ..] = &parts[..] else {
        return Err(refused("it names no repository: that takes owner/repo"));
    };
    let (repo, mut revision, quant) = split_suffixes(repository);
    let mut more = more;
    if let [kind @ ("blob" | "resolve" | "raw" | "tree" | "commit"), rest @ ..] = more {
        let parts = match rest {
            ["refs", ..] => 3,
            [] => return Err(refused(&format!("no revision follows {kind:?}"))),
            _ => 1,
        };
        let (named, file) = rest.split_at(parts.min(rest.len()));
        let named = path_of(&path, named);
        if revision.is_some_and(|revision| revision != named) {
            return Err(refused("it names two revisions"));
        }
        revision = Some(named);
        more = file;
    } else if let [page @ ("discussions" | "commits" | "settings" | "edit" | "upload" | "community"), ..] =
        more
    {
        return Err(refused(&format!("{page:?} is a page about a repository, not a file or folder of it")));
    }
    let file = (!more.is_empty()).then(|| path_of(&path, more));
    build(owner, repo, revision, quant, file, rest.host.clone(), refused)
}

/// The text that neighbouring parts of `path` cover.
fn path_of<'p>(path: &'p str, parts: &[&'p str]) -> &'p str {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return "" };
    let start = first.as_ptr() as usize - path.as_ptr() as usize;
    let end = last.as_ptr() as usize - path.as_ptr() as usize + last.len();
    &path[start..end]
}

fn build(
    owner: &str,
    repo: &str,
    revision: Option<&str>,
    quant: Option<&str>,
    file: Option<&str>,
    host: Option<String>,
    refused: &dyn Fn(&str) -> HubError,
) -> Result<HubName, HubError> {
    for part in [owner, repo].into_iter().chain(quant) {
        check_segment(part).map_err(refused)?;
    }
    if let Some(revision) = revision {
        check_revision(revision).map_err(refused)?;
    }
    if let Some(file) = file {
        check_relative(file)?;
        let extension = file.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        match extension.as_deref() {
            Some("gguf") if crate::quant::is_no_model(file) => {
                return Err(refused("a multimodal projector or an importance matrix, not a language model"));
            }
            Some("bin" | "pt" | "pth" | "onnx" | "h5" | "msgpack" | "ckpt") => {
                return Err(refused("weights of a kind that is not read: models are GGUF or safetensors"));
            }
            _ => {}
        }
    }
    Ok(HubName {
        owner: owner.to_string(),
        repo: repo.to_string(),
        // `main` is what no revision means, and `latest` what no quantization means elsewhere.
        revision: revision.filter(|revision| *revision != "main").map(str::to_string),
        quant: quant.filter(|quant| !quant.eq_ignore_ascii_case("latest")).map(str::to_string),
        file: file.map(str::to_string),
        host,
    })
}

/// One part of a repository name: letters, digits, `-`, `_` and `.`, and never a relative folder.
fn check_segment(part: &str) -> Result<(), &'static str> {
    if part.is_empty() {
        return Err("a part of owner/repo[@revision][:quant] is empty");
    }
    if part.len() > 96 {
        return Err("a part of owner/repo[@revision][:quant] is longer than 96 characters");
    }
    if part.contains("..") || part == "." {
        return Err("it contains a relative folder");
    }
    // `--` separates owner and repository in the cache's folder names.
    if part.contains("--") {
        return Err("it contains `--`");
    }
    if !part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return Err(
            "owner, repo and quant of owner/repo[@revision][:quant] take letters, digits, `-`, `_` and `.` only",
        );
    }
    Ok(())
}

/// A branch, tag, commit, or `refs/pr/1`: it becomes a file name in the cache.
fn check_revision(revision: &str) -> Result<(), &'static str> {
    let plain = |part: &str| {
        let safe = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c));
        safe && !part.is_empty() && !part.starts_with('.') && !part.contains("..")
    };
    match revision.len() <= 200 && revision.split('/').all(plain) {
        true => Ok(()),
        false => Err("the revision is no name of a branch, tag or commit"),
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits =
            std::str::from_utf8(tail.get(..2)?).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(revision: Option<&str>, quant: Option<&str>, file: Option<&str>) -> HubName {
        HubName {
            owner: "Qwen".into(),
            repo: "Qwen3-0.6B-GGUF".into(),
            revision: revision.map(str::to_string),
            quant: quant.map(str::to_string),
            file: file.map(str::to_string),
            host: None,
        }
    }

    #[test]
    fn every_way_to_name_a_repository() {
        let base = "Qwen/Qwen3-0.6B-GGUF";
        for prefix in
            ["", "hf.co/", "HF.co/", "huggingface.co/", "https://huggingface.co/", "https://hf.co/", "hf://"]
        {
            for (suffix, revision, quant) in [
                ("", None, None),
                (":Q8_0", None, Some("Q8_0")),
                ("@v1.0", Some("v1.0"), None),
                ("@main", None, None),
                (":latest", None, None),
                ("@refs/pr/1:Q8_0", Some("refs/pr/1"), Some("Q8_0")),
                (":Q8_0@v1", Some("v1"), Some("Q8_0")),
            ] {
                // A slash in a revision belongs to the path of an address.
                if suffix.contains('/') && !prefix.is_empty() {
                    continue;
                }
                let text = format!("{prefix}{base}{suffix}");
                let parsed = parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
                assert_eq!(parsed, Some(name(revision, quant, None)), "{text}");
            }
        }
        assert_eq!(name(Some("v1"), Some("Q8_0"), None).to_string(), format!("{base}@v1:Q8_0"));
    }

    #[test]
    fn addresses_of_files_and_folders() {
        let base = "https://huggingface.co/Qwen/Qwen3-0.6B-GGUF";
        for (rest, revision, file) in [
            ("/", None, None),
            ("?library=transformers#x", None, None),
            ("/tree/main", None, None),
            ("/tree/v2/Q8_0", Some("v2"), Some("Q8_0")),
            ("/blob/main/x.gguf", None, Some("x.gguf")),
            ("/resolve/0123abcd/a%20b/x.gguf?download=true", Some("0123abcd"), Some("a b/x.gguf")),
            ("/blob/refs%2Fpr%2F1/x.gguf", Some("refs/pr/1"), Some("x.gguf")),
            ("/tree/refs/pr/1", Some("refs/pr/1"), None),
            ("/commit/0123abcd", Some("0123abcd"), None),
        ] {
            let text = format!("{base}{rest}");
            let parsed = parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed, Some(name(revision, None, file)), "{text}");
        }
        let file = parse("hf://Qwen/Qwen3-0.6B-GGUF@v1/x.gguf").unwrap();
        assert_eq!(file, Some(name(Some("v1"), None, Some("x.gguf"))));
        let mirror = parse("https://hf-mirror.com/a/b").unwrap().unwrap();
        assert_eq!(mirror.host.as_deref(), Some("hf-mirror.com"));
        let user = parse("https://user:secret@huggingface.co/a/b").unwrap().unwrap();
        assert_eq!((user.host, user.owner.as_str()), (None, "a"));
    }

    #[test]
    fn wrong_names_are_explained() {
        for (text, reason) in [
            ("https://huggingface.co/datasets/a/b", "a data set"),
            ("https://huggingface.co/spaces/a/b", "a space"),
            ("https://huggingface.co/Qwen", "names no repository"),
            ("https://huggingface.co/", "names no repository"),
            ("hf.co/a/b/tree", "no revision follows"),
            ("hf.co/a/b/discussions/1", "a page about a repository"),
            ("hf.co/a/b/blob/main/mmproj-x.gguf", "projector"),
            ("hf.co/a/b/blob/main/pytorch_model.bin", "not read"),
            ("hf.co/a/b/blob/main/../../x.gguf", "relative folder"),
            ("hf.co/a/b/blob/main/%zz.gguf", "percent-encoding"),
            ("ftp://a/b", "not fetched by"),
            ("ollama://a/b", "not fetched by"),
            ("a/b@", "no name of a branch"),
            ("a/b@../c", "no name of a branch"),
            ("a/b@.hidden", "no name of a branch"),
            ("a/b:", "is empty"),
            ("a/b/c", "one slash"),
            ("/b", "is empty"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!(parse("smollm2").unwrap(), None);
    }
}
