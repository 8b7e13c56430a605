//! A small HTTP client over `ureq`: timeouts, redirects that keep the token at home, errors that name the address.

use std::io::Read;

use ureq::http::{HeaderMap, HeaderValue, Response, Uri};
use ureq::{Agent, Body};

use crate::proxy::{self, origin};
use crate::setting::{Setting, SettingError};
use crate::{HubConfig, HubError, connection};

const REDIRECTS_MAX: usize = 8;

/// Sends requests as one configuration says.
pub(crate) struct Client<'a> {
    config: &'a HubConfig,
    direct: Agent,
    /// For the proxies of `https` and of `http` addresses, where there are any.
    https_proxied: Option<Agent>,
    http_proxied: Option<Agent>,
    /// Why no encrypted connection can be made, where that is so.
    untrusting: Option<SettingError>,
    authorization: Option<HeaderValue>,
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
        let read = self.body.with_config().limit(bytes_max).read_to_string();
        read.map_err(|e| HubError::Unreachable { url: self.url, reason: e.to_string() })
    }
}

/// A header's value as text.
pub(crate) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Which bytes of a file are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Range {
    /// From here to the end.
    From(u64),
    /// So many at its beginning.
    First(u64),
    /// From the first to before the second.
    Part(u64, u64),
}

impl<'a> Client<'a> {
    /// Checks the settings and prepares the agents; opens no connection.
    pub fn new(config: &'a HubConfig) -> Result<Client<'a>, HubError> {
        check_endpoint(&config.endpoint)?;
        let authorization = config.token.as_ref().map(authorization).transpose()?;
        let (roots, untrusting) = match connection::trusted(config) {
            Ok(roots) => (roots, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let through = |setting: &Option<Setting>| -> Result<Option<Agent>, SettingError> {
            let proxy = setting.as_ref().map(proxy::parse).transpose()?;
            Ok(proxy.map(|proxy| connection::agent(config, &roots, Some(proxy))))
        };
        Ok(Client {
            https_proxied: through(&config.https_proxy)?,
            http_proxied: through(&config.http_proxy)?,
            direct: connection::agent(config, &roots, None),
            config,
            untrusting,
            authorization,
        })
    }

    /// GET of the whole, or of a range where the server can.
    pub fn get(&self, url: &str, range: Range) -> Result<Answer, HubError> {
        self.send("GET", url, range)
    }

    /// HEAD.
    pub fn head(&self, url: &str) -> Result<Answer, HubError> {
        self.send("HEAD", url, Range::From(0))
    }

    fn send(&self, method: &str, url: &str, range: Range) -> Result<Answer, HubError> {
        let named = without_query(url).to_string();
        let mut first = None;
        let mut at = url.to_string();
        for _ in 0..REDIRECTS_MAX {
            let response = self.send_once(method, &at, range)?;
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

    fn send_once(&self, method: &str, url: &str, range: Range) -> Result<Response<Body>, HubError> {
        let secure = url.starts_with("https://");
        let proxy = proxy::choose(self.config, url);
        let proxied = if secure { &self.https_proxied } else { &self.http_proxied };
        let agent = match (proxy, proxied) {
            (Some(_), Some(proxied)) => proxied,
            _ => &self.direct,
        };
        let secure_proxy = proxy.is_some_and(|proxy| proxy.value.to_ascii_lowercase().starts_with("https:"));
        if let Some(error) = self.untrusting.as_ref().filter(|_| secure || secure_proxy) {
            return Err(HubError::Setting(error.clone()));
        }
        let mut request = match method {
            "HEAD" => agent.head(url),
            _ => agent.get(url),
        };
        match range {
            Range::From(0) => {}
            Range::From(from) => request = request.header("range", format!("bytes={from}-")),
            Range::First(count) => {
                request = request.header("range", format!("bytes=0-{}", count.saturating_sub(1)));
            }
            Range::Part(from, end) => {
                request = request.header("range", format!("bytes={from}-{}", end.saturating_sub(1)));
            }
        }
        if let Some(authorization) = &self.authorization
            && origin(url) == origin(self.config.hub())
        {
            request = request.header("authorization", authorization.clone());
        }
        request.call().map_err(|error| {
            let through = proxy.map(|p| format!(", through the proxy of {}", p.origin)).unwrap_or_default();
            HubError::Unreachable { url: without_query(url).to_string(), reason: format!("{error}{through}") }
        })
    }
}

/// The header that carries the token.
fn authorization(token: &Setting) -> Result<HeaderValue, SettingError> {
    let plain = token.value.bytes().all(|b| b.is_ascii_graphic());
    let value = HeaderValue::from_str(&format!("Bearer {}", token.value)).ok().filter(|_| plain);
    let mut value = value.ok_or_else(|| {
        token.refused("it holds characters that no access token has: spaces, line ends or others than ASCII")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn check_endpoint(endpoint: &Setting) -> Result<(), SettingError> {
    let shown: String = endpoint.value.chars().take(100).collect();
    let refused = |what: &str| {
        endpoint
            .refused(format!("{shown:?} is not the address of a hub such as https://huggingface.co: {what}"))
    };
    let ascii = Some(&endpoint.value).filter(|value| value.is_ascii());
    let uri: Uri = ascii.and_then(|value| value.parse().ok()).ok_or_else(|| refused("it cannot be read"))?;
    if !["https://", "http://"].iter().any(|scheme| endpoint.value.starts_with(scheme)) {
        return Err(refused("it does not begin with https:// or http://"));
    }
    if uri.query().is_some() || endpoint.value.contains('#') {
        return Err(refused("it has a query or a fragment"));
    }
    proxy::check_authority(&uri).map_err(|what| refused(&what))
}

fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_encrypted() {
        assert_eq!(redirect("https://a/b", "/c").unwrap(), "https://a/c");
        assert_eq!(redirect("https://a/b", "//d/c").unwrap(), "https://d/c");
        assert_eq!(redirect("http://a/b", "https://d/c").unwrap(), "https://d/c");
        assert!(redirect("https://a/b", "http://a/b").is_err());
        assert!(redirect("https://a/b", "file:///etc/passwd").is_err());
    }

    #[test]
    fn absurd_hubs_and_tokens_are_refused_by_name() {
        let long = format!("https://{}", "h".repeat(100_000));
        for endpoint in [
            "hf-mirror.com",
            "",
            "/",
            "https://",
            "ftp://h",
            "file:///etc",
            "https://h:99999",
            "https://h:x",
            "http://h?q",
            "x y",
            "https://h/\u{fffd}",
            "https://h\r\nx: y",
            "https://h#f",
            &long,
        ] {
            let mut config = HubConfig::new("/c");
            config.endpoint = Setting::new(endpoint, "HF_ENDPOINT");
            let error =
                Client::new(&config).err().unwrap_or_else(|| panic!("{endpoint:?} passed")).to_string();
            assert!(error.starts_with("HF_ENDPOINT: ") && error.len() < 300, "{error}");
        }
        for token in ["a\nb", "a b", "t\u{f6}ken", "\u{7f}", "\u{fffd}"] {
            let mut config = HubConfig::new("/c");
            config.token = Some(Setting::new(token, "HF_TOKEN"));
            let error = Client::new(&config).err().unwrap_or_else(|| panic!("{token:?} passed")).to_string();
            assert!(error.starts_with("HF_TOKEN: ") && !error.contains(token), "{error}");
        }
    }
}
