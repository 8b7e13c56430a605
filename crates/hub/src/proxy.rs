//! Which proxy serves an address, and whether what was set can be one.

use std::net::IpAddr;

use ureq::Proxy;
use ureq::http::Uri;

use crate::HubConfig;
use crate::setting::{Setting, SettingError};

const SCHEMES: &[&str] = &["http", "https", "socks", "socks4", "socks4a", "socks5", "socks5h"];

/// Parses a proxy's address. The client would take a bad port for the default one, so more is checked here than it does.
pub(crate) fn parse(setting: &Setting) -> Result<Proxy, SettingError> {
    // The address may hold a password, so errors do not quote it.
    let refused = |what: &str| {
        setting.refused(format!(
            "{what}; a proxy is given as [SCHEME://][USER:PASSWORD@]HOST[:PORT] with one of the schemes {}",
            SCHEMES.join(", ")
        ))
    };
    let text = match setting.value.contains("://") {
        true => setting.value.clone(),
        false => format!("http://{}", setting.value),
    };
    let ascii = Some(&text).filter(|text| text.is_ascii());
    let uri: Uri =
        ascii.and_then(|text| text.parse().ok()).ok_or_else(|| refused("not the address of a proxy"))?;
    let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
    if !SCHEMES.contains(&scheme.as_str()) {
        return Err(refused("a scheme that no proxy has"));
    }
    check_authority(&uri).map_err(|what| refused(&what))?;
    Proxy::new(&text).map_err(|_| refused("user or password are not percent-encoded UTF-8"))
}

/// Checks that an address names a host, and that its port, if it has one, is a number.
pub(crate) fn check_authority(uri: &Uri) -> Result<(), String> {
    let authority = uri.authority().ok_or("it names no host")?;
    if authority.host().is_empty() || authority.host() == "[]" {
        return Err("it names no host".to_string());
    }
    let after_user = authority.as_str().rsplit('@').next().unwrap_or_default();
    let port = match after_user.rsplit_once(':') {
        // The colons within an IPv6 address.
        Some((_, rest)) if rest.contains(']') => None,
        Some((_, port)) => Some(port),
        None => None,
    };
    match port {
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
        Some(_) => Err("its port is no number from 1 to 65535".to_string()),
        None => Ok(()),
    }
}

/// The proxy set for the scheme of `url`, unless its host bypasses proxies.
pub(crate) fn choose<'c>(config: &'c HubConfig, url: &str) -> Option<&'c Setting> {
    let secure = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
    let setting = if secure { &config.https_proxy } else { &config.http_proxy };
    setting.as_ref().filter(|_| !bypasses(url, config.no_proxy.as_deref()))
}

/// Scheme, host and port.
pub(crate) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Host and port, without the user.
fn host_and_port(url: &str) -> (&str, Option<&str>) {
    let authority = origin(url).split("://").last().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').unwrap_or((v6, ""));
            (host, rest.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    }
}

/// True for hosts that the comma-separated `no_proxy` names: the host itself, a domain above it, a network, or `*`.
fn bypasses(url: &str, no_proxy: Option<&str>) -> bool {
    let (host, port) = host_and_port(url);
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let default_port = if url.starts_with("http:") { "80" } else { "443" };
    let entries =
        no_proxy.unwrap_or_default().split([',', ' ']).map(|entry| entry.trim().to_ascii_lowercase());
    entries.filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            let plain = entry.trim_start_matches('[').trim_end_matches(']');
            let same = plain.parse::<IpAddr>().is_ok_and(|named| named == address);
            if same || in_network(address, &entry) {
                return true;
            }
        }
        let (name, wanted_port) = match entry.split_once(':') {
            // More than one colon: an IPv6 address.
            Some((name, port)) if !port.contains(':') => (name, Some(port)),
            _ => (entry.as_str(), None),
        };
        let domain = name.trim_start_matches("*.").trim_start_matches('.').trim_end_matches('.');
        let below = host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        !domain.is_empty() && below && wanted_port.is_none_or(|wanted| wanted == port.unwrap_or(default_port))
    })
}

/// True where `address` lies in a network such as `10.0.0.0/8`.
fn in_network(address: IpAddr, network: &str) -> bool {
    let Some((base, length)) = network.split_once('/') else { return false };
    let (Ok(base), Ok(length)) = (base.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    match (address, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) if length <= 32 => {
            (a.to_bits() ^ b.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) if length <= 128 => {
            (a.to_bits() ^ b.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_addresses() {
        assert_eq!(origin("https://h.co:8/a?b"), "https://h.co:8");
        assert_eq!(origin("http://h.co"), "http://h.co");
        assert_eq!(host_and_port("https://u:p@h.co:8/a"), ("h.co", Some("8")));
        assert_eq!(host_and_port("http://[::1]:80/x"), ("::1", Some("80")));
    }

    #[test]
    fn proxies_of_every_kind_are_parsed() {
        for (text, host, port) in [
            ("http://p:3128", "p", 3128),
            ("HTTP://p:3128/", "p", 3128),
            ("p:3128", "p", 3128),
            ("https://p", "p", 443),
            ("socks4://10.0.0.1", "10.0.0.1", 1080),
            ("socks4a://p:1", "p", 1),
            ("socks5://u:p%40ss@p:1080", "p", 1080),
            ("socks5h://[::1]:1080", "[::1]", 1080),
            ("socks://p", "p", 1080),
        ] {
            let proxy = parse(&Setting::new(text, "ALL_PROXY")).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((proxy.host(), proxy.port()), (host, port), "{text}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_by_the_name_of_its_variable() {
        let long = format!("http://{}", "a".repeat(70_000));
        for text in [
            "://",
            "http://",
            "http://:3128",
            "http://p:99999",
            "http://p:0",
            "http://p:x",
            "p:",
            "ftp://p:21",
            "socks6://p",
            "http://user:secret@",
            "http://u:%ff@p",
            "a b",
            "\u{fffd}",
            "http://p\n",
            "http://p/\u{fffd}",
            "\u{7f}",
            "http://[::1",
            &long,
        ] {
            let error = parse(&Setting::new(text, "ALL_PROXY")).expect_err(text).to_string();
            assert!(error.starts_with("ALL_PROXY: "), "{text:?}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_proxy_is_bypassed_where_asked() {
        let list = Some("localhost, .corp.example,*.lab, 10.0.0.0/8,::1, one:8080");
        for url in [
            "https://localhost",
            "https://a.corp.example/x",
            "http://x.lab:8/",
            "http://10.1.2.3:80/",
            "http://[::1]:9/",
            "http://one:8080/",
        ] {
            assert!(bypasses(url, list), "{url}");
        }
        for url in ["https://notcorp.example", "https://11.0.0.1", "http://one:81/", "https://localhost.evil"]
        {
            assert!(!bypasses(url, list), "{url}");
        }
        assert!(!bypasses("https://hub", None));
        assert!(bypasses("https://hub", Some("*")));
        assert!(
            bypasses("https://1.2.3.4", Some("0.0.0.0/0"))
                && !bypasses("https://1.2.3.4", Some("0.0.0.0/99"))
        );
    }

    #[test]
    fn each_scheme_has_its_own_proxy() {
        let mut config = HubConfig::new("/c");
        config.https_proxy = Some(Setting::new("p:1", "HTTPS_PROXY"));
        assert_eq!(choose(&config, "https://h/").map(|s| s.origin.as_str()), Some("HTTPS_PROXY"));
        assert_eq!(choose(&config, "http://h/"), None);
    }
}
