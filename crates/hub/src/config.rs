//! Configuration: one plain struct, filled in by the binary. This crate reads no environment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::HubError;
use crate::setting::{Certificates, Setting, SettingError};

/// Where models come from and where they are kept.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Cache folder in the Hugging Face layout, which holds `models--owner--repo` folders; or why there is none.
    pub cache_dir: Result<PathBuf, SettingError>,
    /// Base address of the hub, such as `https://huggingface.co`.
    pub endpoint: Setting,
    /// Access token, sent to the endpoint's host alone.
    pub token: Option<Setting>,
    /// Proxy for `https` addresses: `http://`, `https://`, `socks4://`, `socks4a://`, `socks5://`, `socks5h://`; `http://`
    /// where no scheme is given.
    pub https_proxy: Option<Setting>,
    /// Proxy for `http` addresses.
    pub http_proxy: Option<Setting>,
    /// Hosts that bypass the proxy, comma separated: names with all below them, addresses, networks (`10.0.0.0/8`), `*`.
    pub no_proxy: Option<String>,
    /// Trusted certificates; without them those of the system.
    pub certificates: Option<Certificates>,
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
            cache_dir: Ok(cache_dir.into()),
            endpoint: Setting::new("https://huggingface.co", "the public hub"),
            token: None,
            https_proxy: None,
            http_proxy: None,
            no_proxy: None,
            certificates: None,
            offline: false,
            refresh: false,
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(30),
            retries: 5,
            retry_pause: Duration::from_secs(1),
            python: PathBuf::from("python3"),
        }
    }

    /// The cache folder, or the error that there is none.
    pub(crate) fn cache(&self) -> Result<&Path, HubError> {
        self.cache_dir.as_deref().map_err(|error| HubError::Setting(error.clone()))
    }

    /// The hub's address without a slash at its end.
    pub(crate) fn hub(&self) -> &str {
        self.endpoint.value.trim_end_matches('/')
    }
}
