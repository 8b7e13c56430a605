//! A small HTTP client over `ureq`: timeouts, redirects that keep the token at home, errors that name the address.

use std::io::Read;
use std::sync::Arc;

use ureq::http::{HeaderMap, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, Proxy};

use crate::{HubConfig, HubError};

const REDIRECTS_MAX: usize = 8;

/// Sends requests as one configuration says.
pub(crate) struct Client<'a> {
    config: &'a HubConfig,
    direct: Agent,
    proxied: Option<Agent>,
}

/// A server's final answer with what the hub told on the way to it.
pub(crate) struct Answer {
    pub status: u16,
    /// Address asked first, without its query: redirects may carry signatures that belong in no message.
    pub url: String,
    /// Headers of the first answer: the hub describes a file there before it redirects to a content network.
    pub first: HeaderMap,
    /// Headers of the final answer.
    pub last: HeaderMap,
    body: Body,
}

impl Answer {
    /// The body as a reader.
    pub fn reader(self) -> impl Read {
        self.body.into_reader()
    }

    /// The whole body as text of at most `bytes_max`.
    pub fn text(mut self, bytes_max: u64) -> Result<String, HubError> {
        let url = self.url;
        self.body.with_config().limit(bytes_max).read_to_string().map_err(|e| unreachable_at(&url, &e))
    }
}

/// A header's value as text.
pub(crate) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

impl<'a> Client<'a> {
    /// Prepares the agents; opens no connection.
    pub fn new(config: &'a HubConfig) -> Result<Client<'a>, HubError> {
        let proxied = match &config.proxy {
            Some(address) => {
                let proxy = Proxy::new(address).map_err(|e| HubError::Unreachable {
                    url: config.endpoint.clone(),
                    reason: format!("the proxy address cannot be used: {e}"),
                })?;
                Some(agent(config, Some(proxy)))
            }
            None => None,
        };
        Ok(Client { config, direct: agent(config, None), proxied })
    }

    /// GET, from byte `from` on where that is not 0.
    pub fn get(&self, url: &str, from: u64) -> Result<Answer, HubError> {
        self.send("GET", url, from)
    }

    /// HEAD.
    pub fn head(&self, url: &str) -> Result<Answer, HubError> {
        self.send("HEAD", url, 0)
    }

    fn send(&self, method: &str, url: &str, from: u64) -> Result<Answer, HubError> {
        let named = without_query(url).to_string();
        let mut first = None;
        let mut at = url.to_string();
        for _ in 0..REDIRECTS_MAX {
            let response = self.send_once(method, &at, from)?;
            let status = response.status().as_u16();
            let (parts, body) = response.into_parts();
            let location = header(&parts.headers, "location").map(str::to_string);
            let first_headers = first.get_or_insert_with(|| parts.headers.clone());
            match location {
                Some(location) if matches!(status, 301 | 302 | 303 | 307 | 308) => {
                    at = redirect(&at, &location)
                        .map_err(|reason| HubError::BadAnswer { url: named.clone(), reason })?;
                }
                _ => {
                    let first = std::mem::take(first_headers);
                    return Ok(Answer { status, url: named, first, last: parts.headers, body });
                }
            }
        }
        Err(HubError::BadAnswer { url: named, reason: format!("more than {REDIRECTS_MAX} redirects") })
    }

    fn send_once(&self, method: &str, url: &str, from: u64) -> Result<Response<Body>, HubError> {
        let agent = match &self.proxied {
            Some(proxied) if !bypasses_proxy(host(url), self.config.no_proxy.as_deref()) => proxied,
            _ => &self.direct,
        };
        let mut request = match method {
            "HEAD" => agent.head(url),
            _ => agent.get(url),
        };
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(token) = &self.config.token
            && origin(url) == origin(&self.config.endpoint)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|e| unreachable_at(url, &e))
    }
}

fn agent(config: &HubConfig, proxy: Option<Proxy>) -> Agent {
    // The system's roots, not a bundled list: a company's own authority works, and a revoked one does not.
    let roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|der| Certificate::from_der(der.as_ref()).to_owned())
        .collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::from(roots))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .proxy(proxy)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("unicorn/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(config.connect_timeout))
        .timeout_connect(Some(config.connect_timeout))
        .timeout_recv_response(Some(config.read_timeout))
        .timeout_per_read(Some(config.read_timeout))
        .build()
        .new_agent()
}

fn unreachable_at(url: &str, error: &ureq::Error) -> HubError {
    HubError::Unreachable { url: without_query(url).to_string(), reason: error.to_string() }
}

fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Host without user and port.
fn host(url: &str) -> &str {
    let authority = origin(url).split("://").last().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// Where a redirect leads. Encryption is never given up on the way.
fn redirect(from: &str, location: &str) -> Result<String, String> {
    let scheme = from.split("://").next().unwrap_or("https");
    let to = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(from))
    } else {
        location.to_string()
    };
    if to.starts_with("https://") || (to.starts_with("http://") && scheme == "http") {
        return Ok(to);
    }
    Err(format!("redirect to {} refused", without_query(&to)))
}

/// True for hosts that the comma-separated `no_proxy` names: the host itself, a domain above it, or `*`.
fn bypasses_proxy(host: &str, no_proxy: Option<&str>) -> bool {
    let host = host.to_ascii_lowercase();
    no_proxy.unwrap_or_default().split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
        let domain = entry.trim_start_matches("*.").trim_start_matches('.');
        entry == "*" || (!domain.is_empty() && (host == domain || host.ends_with(&format!(".{domain}"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_addresses() {
        assert_eq!(origin("https://h.co:8/a?b"), "https://h.co:8");
        assert_eq!(origin("http://h.co"), "http://h.co");
        assert_eq!(host("https://u:p@h.co:8/a"), "h.co");
        assert_eq!(host("http://[::1]:80/x"), "::1");
    }

    #[test]
    fn redirects_stay_encrypted() {
        assert_eq!(redirect("https://a/b", "/c").unwrap(), "https://a/c");
        assert_eq!(redirect("https://a/b", "//d/c").unwrap(), "https://d/c");
        assert_eq!(redirect("http://a/b", "https://d/c").unwrap(), "https://d/c");
        assert!(redirect("https://a/b", "http://a/b").is_err());
        assert!(redirect("https://a/b", "file:///etc/passwd").is_err());
    }

    #[test]
    fn the_proxy_is_bypassed_where_asked() {
        let list = Some("localhost, .corp.example,*.lab");
        assert!(bypasses_proxy("localhost", list));
        assert!(bypasses_proxy("a.corp.example", list));
        assert!(bypasses_proxy("x.lab", list));
        assert!(!bypasses_proxy("notcorp.example", list));
        assert!(!bypasses_proxy("hub", None));
        assert!(bypasses_proxy("hub", Some("*")));
    }
}
