//! Configuration: one plain struct, filled in by the binary.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where models come from and where they are kept.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Cache folder in the Hugging Face layout: holds `models--owner--repo` folders.
    pub cache_dir: PathBuf,
    /// Base address of the hub, without a trailing slash.
    pub endpoint: String,
    /// Access token, sent to the endpoint's host alone.
    pub token: Option<String>,
    /// HTTP proxy, for example `http://proxy:3128`.
    pub proxy: Option<String>,
    /// Hosts that bypass the proxy, comma separated.
    pub no_proxy: Option<String>,
    /// Never use the network: what is not cached is an error.
    pub offline: bool,
    /// Ask the source again even where a cached copy exists.
    pub refresh: bool,
    /// Limit for name lookup and for connecting, each.
    pub connect_timeout: Duration,
    /// Longest silence of a server before the connection counts as dead.
    pub read_timeout: Duration,
    /// Attempts after the first that make no progress before giving up.
    pub retries: u32,
    /// Pause before the first retry; doubles each time, to at most 30 s.
    pub retry_pause: Duration,
    /// Python interpreter whose pip fetches packages.
    pub python: PathBuf,
}

impl HubConfig {
    /// The public hub, no token, no proxy.
    pub fn new(cache_dir: impl Into<PathBuf>) -> HubConfig {
        HubConfig {
            cache_dir: cache_dir.into(),
            endpoint: "https://huggingface.co".to_string(),
            token: None,
            proxy: None,
            no_proxy: None,
            offline: false,
            refresh: false,
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(30),
            retries: 5,
            retry_pause: Duration::from_secs(1),
            python: PathBuf::from("python3"),
        }
    }

    /// Reads the ecosystem's variables through `variable`, which the binary connects to the environment:
    /// `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HOME` or `USERPROFILE` for the cache,
    /// `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> HubConfig {
        let get = |name: &str| variable(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let either = |upper: &str| get(upper).or_else(|| get(&upper.to_ascii_lowercase()));
        let cache_root = get("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let home = get("HOME").or_else(|| get("USERPROFILE")).unwrap_or_else(|| ".".to_string());
            Path::new(&home).join(".cache")
        });
        let hf_home = get("HF_HOME").map(PathBuf::from).unwrap_or_else(|| cache_root.join("huggingface"));
        let cache_dir = get("HF_HUB_CACHE")
            .or_else(|| get("HUGGINGFACE_HUB_CACHE"))
            .map(PathBuf::from)
            .unwrap_or_else(|| hf_home.join("hub"));
        let mut config = HubConfig::new(cache_dir);
        if let Some(endpoint) = get("HF_ENDPOINT") {
            config.endpoint = endpoint.trim_end_matches('/').to_string();
        }
        let token_path = get("HF_TOKEN_PATH").map(PathBuf::from).unwrap_or_else(|| hf_home.join("token"));
        config.token = get("HF_TOKEN").or_else(|| {
            let stored = std::fs::read_to_string(token_path).ok()?;
            Some(stored.trim().to_string()).filter(|token| !token.is_empty())
        });
        config.proxy = either("HTTPS_PROXY").or_else(|| either("ALL_PROXY"));
        config.no_proxy = either("NO_PROXY");
        let truthy = |v: String| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        config.offline = get("HF_HUB_OFFLINE").is_some_and(truthy);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> HubConfig {
        let pairs: Vec<(String, String)> =
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        HubConfig::from_variables(move |name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn cache_folder_follows_the_ecosystem() {
        assert_eq!(with(&[("HOME", "/u")]).cache_dir, Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(
            with(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]).cache_dir,
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(with(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache_dir, Path::new("/h/hub"));
        assert_eq!(with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]).cache_dir, Path::new("/c"));
    }

    #[test]
    fn token_comes_from_variable_or_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from-file\n").unwrap();
        let hf_home = home.path().to_str().unwrap();
        assert_eq!(with(&[("HF_HOME", hf_home)]).token.as_deref(), Some("from-file"));
        assert_eq!(with(&[("HF_HOME", hf_home), ("HF_TOKEN", "direct")]).token.as_deref(), Some("direct"));
        assert_eq!(with(&[("HF_HOME", "/nowhere")]).token, None);
    }

    #[test]
    fn endpoint_proxy_and_offline() {
        let config = with(&[
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("https_proxy", "http://p:1"),
            ("NO_PROXY", "localhost"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        assert_eq!(config.endpoint, "http://127.0.0.1:9");
        assert_eq!(config.proxy.as_deref(), Some("http://p:1"));
        assert_eq!(config.no_proxy.as_deref(), Some("localhost"));
        assert!(config.offline);
        assert!(!with(&[("HF_HUB_OFFLINE", "0")]).offline);
    }
}
