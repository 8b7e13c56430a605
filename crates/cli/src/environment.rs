//! What the environment says about folders and the network, as typed configuration. Nothing in it can end the program
//! here: a value that cannot be used is an error where it would be used, by the name of its variable.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use unicorn_hub::{Certificates, HubConfig, Setting, SettingError};

/// Longest access token that is read from a file.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Variables by name. An empty one counts as unset.
pub struct Environment<F>(F);

impl Environment<fn(&str) -> Option<OsString>> {
    /// That of this process.
    pub fn of_process() -> Self {
        // Without HOME, the home folder is that of the user's entry in the system's database.
        Environment(|name| {
            std::env::var_os(name).or_else(|| {
                if name == "HOME" { std::env::home_dir().map(PathBuf::into_os_string) } else { None }
            })
        })
    }
}

impl<F: Fn(&str) -> Option<OsString>> Environment<F> {
    /// One that a function tells.
    #[cfg(test)]
    pub fn new(variable: F) -> Environment<F> {
        Environment(variable)
    }

    fn raw(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// A variable's text without space around it. Bytes that are not UTF-8 become U+FFFD, which nothing accepts that must
    /// be correct.
    pub fn text(&self, name: &str) -> Option<String> {
        let value = self.raw(name)?.to_string_lossy().trim().to_owned();
        Some(value).filter(|value| !value.is_empty())
    }

    /// A variable's text where it is set, even to nothing: for what must not count as unset by mistake.
    pub fn set(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.to_string_lossy().into_owned())
    }

    /// The first of some variables that is set, in capitals or in small letters.
    fn first(&self, names: &[&str]) -> Option<Setting> {
        let spellings = names.iter().flat_map(|name| [name.to_string(), name.to_ascii_lowercase()]);
        spellings.into_iter().find_map(|name| Some(Setting::new(self.text(&name)?, name)))
    }

    /// The user's own folder. One that is relative would be another in each working directory.
    fn home(&self) -> Option<PathBuf> {
        let names = ["HOME", "USERPROFILE"];
        names.iter().filter_map(|name| self.raw(name)).map(PathBuf::from).find(|path| path.is_absolute())
    }

    /// A variable that names a file or folder: `~` is the home folder and `$NAME` another variable, as in a shell, and what
    /// is relative begins in the working directory.
    pub fn path(&self, name: &str) -> Result<Option<PathBuf>, SettingError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let refused = |reason: &str| SettingError { origin: name.to_owned(), reason: reason.to_owned() };
        let path = match raw.to_str() {
            // What is not UTF-8 is taken as it is.
            None => PathBuf::from(raw),
            Some(text) if text.trim().is_empty() => return Ok(None),
            Some(text) => self.expand(text).map_err(|reason| refused(&reason))?,
        };
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(refused("it contains a NUL character"));
        }
        std::path::absolute(&path).map(Some).map_err(|e| refused(&e.to_string()))
    }

    /// Expands `~` and `$NAME` at the beginning of a path, and `$NAME` further on where there is such a variable.
    fn expand(&self, text: &str) -> Result<PathBuf, String> {
        let mut out = OsString::new();
        let mut rest = text;
        if let Some(after) = text.strip_prefix('~') {
            if !(after.is_empty() || after.starts_with(std::path::is_separator)) {
                return Err(format!(
                    "{text:?}: the home folder of another user is not looked up; write the folder out"
                ));
            }
            out.push(self.home().ok_or("~ stands for the home folder, and HOME is not set to one")?);
            rest = after;
        }
        while let Some(at) = rest.find('$') {
            out.push(&rest[..at]);
            let after = &rest[at + 1..];
            let (name, end) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                Some((name, _)) => (name, name.len() + 2),
                None => {
                    let end =
                        after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                    (&after[..end], end)
                }
            };
            match self.raw(name).filter(|_| !name.is_empty()) {
                Some(value) => out.push(value),
                None if out.is_empty() => return Err(format!("{text:?}: there is no variable {name:?}")),
                None => out.push(&rest[at..at + 1 + end]),
            }
            rest = &after[end..];
        }
        out.push(rest);
        Ok(PathBuf::from(out))
    }

    /// A base folder of the XDG specification, which says that relative ones are to be ignored; else one below the home.
    pub fn base(&self, name: &str, below_home: &str) -> Result<Option<PathBuf>, SettingError> {
        let relative = self.raw(name).is_some_and(|raw| {
            let expands = raw.to_str().is_some_and(|text| text.starts_with(['~', '$']));
            !expands && !Path::new(&raw).is_absolute()
        });
        match if relative { None } else { self.path(name)? } {
            Some(path) => Ok(Some(path)),
            None => Ok(self.home().map(|home| home.join(below_home))),
        }
    }

    /// Folder of everything of Hugging Face's tools.
    fn hugging_face_home(&self) -> Result<PathBuf, SettingError> {
        if let Some(path) = self.path("HF_HOME")? {
            return Ok(path);
        }
        let base = self.base("XDG_CACHE_HOME", ".cache")?;
        base.map(|base| base.join("huggingface")).ok_or_else(|| SettingError {
            origin: "HOME".to_owned(),
            reason: "no folder to keep models in: HOME is not set to an absolute path; set it, or set HF_HOME to a folder"
                .to_owned(),
        })
    }

    fn models(&self) -> Result<PathBuf, SettingError> {
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
            if let Some(path) = self.path(name)? {
                return Ok(path);
            }
        }
        Ok(self.hugging_face_home()?.join("hub"))
    }

    /// The access token: `HF_TOKEN`, else what Hugging Face's tools stored.
    fn token(&self) -> Option<Setting> {
        if let Some(token) = self.first(&["HF_TOKEN"]).or_else(|| self.first(&["HUGGING_FACE_HUB_TOKEN"])) {
            return Some(token);
        }
        let path = match self.path("HF_TOKEN_PATH") {
            Ok(Some(path)) => path,
            Ok(None) => self.hugging_face_home().ok()?.join("token"),
            Err(_) => return None,
        };
        // A pipe would wait for a writer, and a device has no end.
        let size = std::fs::metadata(&path).ok().filter(|m| m.is_file())?.len();
        let stored = if size <= TOKEN_BYTES_MAX { std::fs::read(&path).ok()? } else { return None };
        let token = String::from_utf8_lossy(&stored).trim().to_owned();
        Some(Setting::new(token, path.display().to_string())).filter(|token| !token.value.is_empty())
    }

    fn certificates(&self) -> Option<Certificates> {
        // What cannot be expanded stays as it is: loading it names the variable.
        let file =
            self.path("SSL_CERT_FILE").unwrap_or_else(|_| self.raw("SSL_CERT_FILE").map(PathBuf::from));
        let folders: Vec<PathBuf> = self
            .raw("SSL_CERT_DIR")
            .map(|list| std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect())
            .unwrap_or_default();
        let origin = match (&file, folders.is_empty()) {
            (None, true) => return None,
            (Some(_), true) => "SSL_CERT_FILE",
            (None, false) => "SSL_CERT_DIR",
            (Some(_), false) => "SSL_CERT_FILE, SSL_CERT_DIR",
        };
        Some(Certificates { file, folders, origin: origin.to_owned() })
    }

    /// Where models are kept and fetched from. Follows the variables that Hugging Face's tools and HTTP clients follow.
    pub fn hub(&self) -> HubConfig {
        let mut config = HubConfig { cache_dir: self.models(), ..HubConfig::new("") };
        if let Some(endpoint) = self.text("HF_ENDPOINT") {
            config.endpoint = Setting::new(endpoint, "HF_ENDPOINT");
        }
        config.token = self.token();
        config.https_proxy = self.first(&["HTTPS_PROXY", "ALL_PROXY"]);
        config.http_proxy = self.first(&["HTTP_PROXY", "ALL_PROXY"]);
        config.no_proxy = self.first(&["NO_PROXY"]).map(|setting| setting.value);
        config.certificates = self.certificates();
        let truthy = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        config.offline = self.text("HF_HUB_OFFLINE").is_some_and(truthy);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Environment<impl Fn(&str) -> Option<OsString>> {
        let pairs: Vec<(String, OsString)> = pairs.iter().map(|(k, v)| (k.to_string(), v.into())).collect();
        Environment::new(move |name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    fn models(pairs: &[(&str, &str)]) -> Result<PathBuf, String> {
        with(pairs).hub().cache_dir.map_err(|e| e.to_string())
    }

    fn path(text: &str) -> Result<PathBuf, String> {
        Ok(PathBuf::from(text))
    }

    #[test]
    fn the_cache_folder_follows_the_ecosystem() {
        let home = ("HOME", "/u");
        assert_eq!(models(&[home]), path("/u/.cache/huggingface/hub"));
        assert_eq!(models(&[home, ("XDG_CACHE_HOME", "/x")]), path("/x/huggingface/hub"));
        assert_eq!(models(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), path("/h/hub"));
        assert_eq!(models(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]), path("/c"));
        assert_eq!(models(&[("HUGGINGFACE_HUB_CACHE", "/c")]), path("/c"));
        assert_eq!(models(&[("HOME", ""), ("USERPROFILE", "/w")]), path("/w/.cache/huggingface/hub"));
    }

    #[test]
    fn tildes_and_variables_expand_in_every_path() {
        let home = ("HOME", "/u");
        for (text, expected) in [
            ("~", "/u"),
            ("~/x", "/u/x"),
            ("$HOME/x", "/u/x"),
            ("${HOME}/x", "/u/x"),
            ("/a/$HOME", "/a//u"),
            ("/a/~", "/a/~"),
            ("/a/$NONE", "/a/$NONE"),
            ("/a/$", "/a/$"),
        ] {
            for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
                assert_eq!(models(&[home, (name, text)]), path(expected), "{name}={text}");
            }
            let below = PathBuf::from(expected);
            assert_eq!(models(&[home, ("HF_HOME", text)]), Ok(below.join("hub")), "HF_HOME={text}");
            assert_eq!(
                models(&[home, ("XDG_CACHE_HOME", text)]),
                Ok(below.join("huggingface/hub")),
                "{text}"
            );
            assert_eq!(with(&[home, ("XDG_STATE_HOME", text)]).base("XDG_STATE_HOME", "s"), Ok(Some(below)));
        }
        let relative = models(&[home, ("HF_HOME", "models")]).unwrap();
        assert_eq!(relative, std::env::current_dir().unwrap().join("models/hub"));
        assert_eq!(models(&[home, ("XDG_CACHE_HOME", "relative")]), path("/u/.cache/huggingface/hub"));
        assert_eq!(models(&[home, ("HF_HOME", "  ")]), path("/u/.cache/huggingface/hub"));
    }

    #[test]
    fn a_folder_that_cannot_be_told_is_an_error_and_never_the_working_directory() {
        for (pairs, named) in [
            (&[][..], "HOME: "),
            (&[("HOME", "")], "HOME: "),
            (&[("HOME", "relative")], "HOME: "),
            (&[("XDG_CACHE_HOME", "relative")], "HOME: "),
            (&[("HF_HOME", "~/x")], "HF_HOME: "),
            (&[("HOME", "/u"), ("HF_HOME", "~other/x")], "HF_HOME: "),
            (&[("HOME", "/u"), ("HF_HUB_CACHE", "$NONE/x")], "HF_HUB_CACHE: "),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "~x")], "XDG_CACHE_HOME: "),
        ] {
            let error = models(pairs).expect_err("no folder");
            assert!(error.starts_with(named), "{pairs:?}: {error}");
        }
    }

    #[test]
    fn tokens_come_from_a_variable_or_a_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        let hf_home = home.path().to_str().unwrap();
        let token = |pairs: &[(&str, &str)]| with(pairs).hub().token.map(|token| (token.value, token.origin));
        let file = home.path().join("token").display().to_string();
        assert_eq!(token(&[("HF_HOME", hf_home)]), Some(("from-file".to_owned(), file.clone())));
        assert_eq!(
            token(&[("HOME", hf_home), ("HF_TOKEN_PATH", "~/token")]),
            Some(("from-file".to_owned(), file))
        );
        let direct = Some(("direct".to_owned(), "HF_TOKEN".to_owned()));
        assert_eq!(token(&[("HF_HOME", hf_home), ("HF_TOKEN", " direct\n")]), direct);
        assert_eq!(token(&[("HF_HOME", "/nowhere")]), None);
        assert_eq!(token(&[("HF_TOKEN_PATH", "/dev/zero")]), None);
    }

    #[test]
    fn proxies_endpoint_certificates_and_offline() {
        let config = with(&[
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("https_proxy", "http://p:1"),
            ("ALL_PROXY", "socks5h://q:2"),
            ("no_proxy", "localhost"),
            ("HF_HUB_OFFLINE", "1"),
            ("SSL_CERT_FILE", "/certs.pem"),
            ("SSL_CERT_DIR", "/a:/b"),
        ])
        .hub();
        assert_eq!(config.endpoint, Setting::new("http://127.0.0.1:9/", "HF_ENDPOINT"));
        assert_eq!(config.https_proxy, Some(Setting::new("http://p:1", "https_proxy")));
        assert_eq!(config.http_proxy, Some(Setting::new("socks5h://q:2", "ALL_PROXY")));
        assert_eq!(config.no_proxy.as_deref(), Some("localhost"));
        assert!(config.offline);
        let certificates = config.certificates.unwrap();
        assert_eq!((certificates.file, certificates.folders.len()), (Some("/certs.pem".into()), 2));
        assert!(!with(&[("HF_HUB_OFFLINE", "0")]).hub().offline);
        assert_eq!(with(&[("SSL_CERT_FILE", ""), ("HTTPS_PROXY", " ")]).hub().certificates, None);
    }

    #[cfg(unix)]
    #[test]
    fn variables_that_are_not_utf8_do_no_harm() {
        use std::os::unix::ffi::OsStringExt;
        let raw = || OsString::from_vec(b"/x\xff".to_vec());
        let config = Environment::new(|_| Some(raw())).hub();
        assert_eq!(config.cache_dir, Ok(PathBuf::from(raw())));
        assert_eq!(config.endpoint.value, "/x\u{fffd}");
    }
}
