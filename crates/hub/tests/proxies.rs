//! Pulls through proxies, and through what is set as one and is none.

mod fake_hub;
mod fake_proxy;

use std::fs;
use std::ops::ControlFlow;
use std::time::Duration;

use fake_hub::{FakeHub, content, lfs};
use fake_proxy::FakeProxy;
use unicorn_hub::{HubConfig, HubError, Setting, pull, resolve};

const GGUF: &str = "m-Q4_0.gguf";

fn hub() -> FakeHub {
    FakeHub::start(&[(GGUF, lfs(content(300_000, 1)))])
}

/// Pulls from the hub under a name that nobody but the proxy can look up, or under its address.
fn pulled(hub: &FakeHub, named: bool, proxy: &str, change: impl Fn(&mut HubConfig)) -> Result<(), HubError> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = HubConfig::new(dir.path());
    let endpoint = match named {
        true => hub.endpoint.replace("127.0.0.1", "hub.invalid"),
        false => hub.endpoint.clone(),
    };
    config.endpoint = Setting::new(endpoint, "HF_ENDPOINT");
    config.http_proxy = Some(Setting::new(proxy, "ALL_PROXY"));
    config.retries = 0;
    config.retry_pause = Duration::from_millis(1);
    change(&mut config);
    let go_on = &mut |_: unicorn_hub::Event<'_>| ControlFlow::Continue(());
    let path = pull(&resolve("owner/repo").unwrap(), &config, &|_| Ok(()), go_on)?;
    assert_eq!(fs::read(path).unwrap(), content(300_000, 1));
    Ok(())
}

#[test]
fn proxies_of_every_kind_serve() {
    let hub = hub();
    for (scheme, user, named, seen) in [
        ("socks4://", "", false, "socks4 127.0.0.1"),
        ("socks4a://", "", true, "socks4 hub.invalid"),
        ("socks5://", "", false, "socks5 127.0.0.1"),
        ("socks://", "", false, "socks5 127.0.0.1"),
        ("socks5h://", "", true, "socks5 hub.invalid"),
        ("socks5h://", "u%20s:p%40ss@", true, "socks5 u s:p@ss hub.invalid"),
        ("http://", "", true, "connect hub.invalid"),
        ("", "", true, "connect hub.invalid"),
        ("http://", "user:pass@", true, "connect Basic dXNlcjpwYXNz hub.invalid"),
    ] {
        let proxy = FakeProxy::start();
        let address = format!("{scheme}{user}{}", proxy.address);
        pulled(&hub, named, &address, |_| {}).unwrap_or_else(|e| panic!("{address}: {e}"));
        let asked = proxy.asked();
        assert!(!asked.is_empty() && asked.iter().all(|what| what == seen), "{address}: {asked:?}");
    }
}

#[test]
fn hosts_that_bypass_the_proxy_are_asked_directly() {
    let (hub, proxy) = (hub(), FakeProxy::start());
    for no_proxy in ["127.0.0.1", "127.0.0.0/8", "*", "localhost, 127.0.0.1"] {
        let bypass = |config: &mut HubConfig| config.no_proxy = Some(no_proxy.to_string());
        pulled(&hub, false, &format!("socks5://{}", proxy.address), bypass).unwrap();
    }
    // The proxy for other addresses is not that for these.
    let elsewhere = |config: &mut HubConfig| config.https_proxy = config.http_proxy.take();
    pulled(&hub, false, &format!("socks5://{}", proxy.address), elsewhere).unwrap();
    assert_eq!(proxy.asked(), Vec::<String>::new());
}

#[test]
fn a_proxy_that_is_none_is_named_by_its_variable() {
    let hub = hub();
    let soon = |config: &mut HubConfig| config.connect_timeout = Duration::from_millis(300);
    let refused = |proxy: &str| pulled(&hub, false, proxy, soon).expect_err(proxy);
    for scheme in ["socks4", "socks4a", "socks5", "socks5h", "http"] {
        // The hub itself is no proxy of any kind, and nobody listens at port 1.
        for address in [hub.endpoint.trim_start_matches("http://"), "127.0.0.1:1"] {
            let error = refused(&format!("{scheme}://u:secret@{address}"));
            assert!(matches!(&error, HubError::Unreachable { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("ALL_PROXY") && !text.contains("secret"), "{text}");
        }
    }
    for proxy in ["127.0.0.1:99999", "http://", "nonsense://x", "socks5h://", "\u{fffd}", "h p"] {
        let error = refused(proxy);
        assert!(matches!(&error, HubError::Setting(_)), "{error}");
        assert!(error.to_string().starts_with("ALL_PROXY: "), "{error}");
    }
}
