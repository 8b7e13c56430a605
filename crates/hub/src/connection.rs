//! What a connection needs beside an address: name lookup, and trusted certificates.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::Builder;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error, Proxy};

use crate::HubConfig;
use crate::setting::{Certificates, SettingError};

/// Looks names up on a thread, to give up in time. The client's own lookup panics where no thread can be made; this one
/// then waits for as long as the system does.
#[derive(Debug)]
struct Lookup;

impl Resolver for Lookup {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let address = uri
            .scheme()
            .zip(uri.authority())
            .and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority))
            .ok_or_else(|| Error::BadUri(uri.to_string()))?;
        let found = match address.parse::<SocketAddr>() {
            Ok(address) => vec![address],
            Err(_) => look_up(Builder::new(), address, timeout)?,
        };
        let mut result = self.empty();
        // As many as the client keeps.
        for address in config.ip_family().keep_wanted(found.into_iter()).take(16) {
            result.push(address);
        }
        if result.is_empty() { Err(Error::HostNotFound) } else { Ok(result) }
    }
}

fn look_up(thread: Builder, address: String, timeout: NextTimeout) -> Result<Vec<SocketAddr>, Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let name = address.clone();
    let spawned = thread
        .name("name lookup".to_string())
        .spawn(move || sender.send(name.to_socket_addrs().map(Vec::from_iter)));
    if spawned.is_err() {
        return Ok(address.to_socket_addrs()?.collect());
    }
    match receiver.recv_timeout(*timeout.after) {
        Ok(found) => Ok(found?),
        Err(RecvTimeoutError::Timeout) => Err(Error::Timeout(timeout.reason)),
        Err(RecvTimeoutError::Disconnected) => Err(Error::HostNotFound),
    }
}

/// Trusted certificates: those that the configuration names, else the system's, not a bundled list: a company's own
/// authority works, and a revoked one does not.
pub(crate) fn trusted(config: &HubConfig) -> Result<Vec<Certificate<'static>>, SettingError> {
    let (loaded, origin) = match &config.certificates {
        Some(named) => (load(named)?, named.origin.as_str()),
        None => (rustls_native_certs::load_native_certs(), "the system's certificates"),
    };
    let certificates: Vec<_> =
        loaded.certs.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect();
    match (certificates.is_empty(), loaded.errors.first()) {
        (false, _) => Ok(certificates),
        (true, why) => {
            let why = why.map(|error| format!(" ({error})")).unwrap_or_default();
            let reason = format!(
                "no trusted certificate was found there{why}, so no https address can be reached; install ca-certificates, \
                 or let SSL_CERT_FILE name a file of certificates in PEM format"
            );
            Err(SettingError { origin: origin.to_string(), reason })
        }
    }
}

fn load(named: &Certificates) -> Result<rustls_native_certs::CertificateResult, SettingError> {
    let refused = |path: &Path, what: &str| SettingError {
        origin: named.origin.clone(),
        reason: format!("{} {what}", path.display()),
    };
    // Opening a pipe would wait for a writer.
    if let Some(file) = named.file.as_deref().filter(|file| !file.is_file()) {
        return Err(refused(file, "is no file of certificates"));
    }
    if let Some(folder) = named.folders.iter().find(|folder| !folder.is_dir()) {
        return Err(refused(folder, "is no folder of certificates"));
    }
    let mut all = rustls_native_certs::load_certs_from_paths(named.file.as_deref(), None);
    for folder in &named.folders {
        let more = rustls_native_certs::load_certs_from_paths(None, Some(folder));
        all.certs.extend(more.certs);
        all.errors.extend(more.errors);
    }
    Ok(all)
}

/// A client for one route: directly, or through a proxy.
pub(crate) fn agent(config: &HubConfig, roots: &[Certificate<'static>], proxy: Option<Proxy>) -> Agent {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::from(roots.to_vec()))
        .build();
    let config = Agent::config_builder()
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
        .build();
    Agent::with_parts(config, DefaultConnector::default(), Lookup)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted_from(file: Option<&Path>, folders: &[&Path]) -> Result<usize, String> {
        let mut config = HubConfig::new("/c");
        config.certificates = Some(Certificates {
            file: file.map(Path::to_path_buf),
            folders: folders.iter().map(|f| f.to_path_buf()).collect(),
            origin: "SSL_CERT_FILE".to_string(),
        });
        trusted(&config).map(|all| all.len()).map_err(|e| e.to_string())
    }

    #[test]
    fn names_are_looked_up_where_no_thread_can_be_made() {
        let impossible = || Builder::new().stack_size(1 << 60);
        assert!(impossible().spawn(|| ()).is_err(), "the test asks for more than a machine has");
        for builder in [impossible(), Builder::new()] {
            let timeout =
                NextTimeout { after: std::time::Duration::from_secs(60).into(), ..NextTimeout::default() };
            let found = look_up(builder, "localhost:80".to_string(), timeout).unwrap();
            assert!(found.iter().all(|address| address.ip().is_loopback()) && !found.is_empty(), "{found:?}");
        }
    }

    #[test]
    fn files_without_certificates_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("garbage.pem");
        std::fs::write(&garbage, b"\x00\xff-----BEGIN CERTIFICATE-----\nnot base64 at all\n-----END")
            .unwrap();
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let gone = dir.path().join("gone");
        for result in [
            trusted_from(Some(&garbage), &[]),
            trusted_from(Some(&gone), &[]),
            trusted_from(Some(dir.path()), &[]),
            trusted_from(None, &[&empty]),
            trusted_from(None, &[&gone]),
            trusted_from(Some(Path::new("/dev/zero")), &[]),
        ] {
            let error = result.unwrap_err();
            assert!(error.starts_with("SSL_CERT_FILE: "), "{error}");
        }
    }
}
