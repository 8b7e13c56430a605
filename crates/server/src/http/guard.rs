//! Who may ask: `Host`, `Origin` and API keys, before anything else of a request is looked at.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;

use crate::app::App;
use crate::error::{ApiError, Dialect};
use crate::http::body::drain;
use crate::http::client::Client;
use crate::job::fresh_id;
use crate::options::ServerOptions;
use crate::record::Record;

/// The key of a request: `Authorization: Bearer KEY`, the password of `Authorization: Basic` (which browsers can ask for), or Anthropic's
/// `x-api-key`.
fn key(headers: &HeaderMap) -> Option<Vec<u8>> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return headers.get("x-api-key").map(|value| value.as_bytes().to_vec());
    };
    let value = value.as_bytes();
    let (scheme, rest) = value.split_at(value.iter().position(|b| *b == b' ')?);
    let rest = rest.trim_ascii();
    match scheme.to_ascii_lowercase().as_slice() {
        b"bearer" => Some(rest.to_vec()),
        b"basic" => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(rest).ok()?;
            let colon = decoded.iter().position(|b| *b == b':')?;
            Some(decoded[colon + 1..].to_vec())
        }
        _ => None,
    }
}

/// The name in a `Host` header or an authority, without its port.
fn host_name(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(name, _)| name),
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    }
}

/// A page can make a browser send a foreign name to this address (DNS rebinding), but no number.
fn host_is_known(headers: &HeaderMap, options: &ServerOptions) -> bool {
    // A request has one name, or is not to be trusted with any of them.
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return true };
    match host.to_str() {
        Ok(host) => hosts.next().is_none() && name_is_known(host, options),
        Err(_) => false,
    }
}

fn name_is_known(authority: &str, options: &ServerOptions) -> bool {
    let name = host_name(authority).trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name == "host.docker.internal"
        || name.parse::<IpAddr>().is_ok()
        || options.hosts.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

/// What an `Origin` header says about a request.
enum Origin {
    /// There is none, or it is the server's own.
    Own,
    /// Another one that may call.
    Allowed(HeaderValue),
    Foreign,
}

fn origin(headers: &HeaderMap, options: &ServerOptions) -> Origin {
    let Some(origin) = headers.get(header::ORIGIN) else { return Origin::Own };
    let Ok(text) = origin.to_str() else { return Origin::Foreign };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = text.split_once("://").map(|(_, authority)| authority);
    if authority.is_some() && authority == host {
        return Origin::Own;
    }
    match options.origins.iter().any(|known| known == "*" || known == text) {
        true => Origin::Allowed(origin.clone()),
        false => Origin::Foreign,
    }
}

fn allow(response: &mut Response, origin: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
}

/// The answer to a browser that asks whether a page of an allowed origin may call.
fn preflight(headers: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let out = response.headers_mut();
    out.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let asked = asked.unwrap_or(HeaderValue::from_static("authorization, content-type"));
    out.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
    out.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

fn refusal(request: &Request, app: &App) -> Option<ApiError> {
    // The first line of a request may name a host too, as it does for proxies.
    let named = request.uri().authority().is_none_or(|named| name_is_known(named.as_str(), &app.options));
    if !named || !host_is_known(request.headers(), &app.options) {
        let message = "this Host is not known here; --allow-host NAME makes it so";
        return Some(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    if matches!(origin(request.headers(), &app.options), Origin::Foreign) {
        let message = "pages of this Origin may not call; --cors-origin ORIGIN lets them";
        return Some(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    if request.uri().path() != "/health" && !app.keys.admit(key(request.headers()).as_deref()) {
        let error =
            ApiError::new(StatusCode::UNAUTHORIZED, "an API key is needed, and this one is not right");
        return Some(ApiError { code: Some("invalid_api_key"), ..error });
    }
    None
}

/// A refusal that another library made, in words of its own.
fn untold(response: &Response) -> Option<ApiError> {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let refused = (status.is_client_error() || status.is_server_error()) && !is_json;
    refused.then(|| ApiError::new(status, status.canonical_reason().unwrap_or("the request is refused")))
}

/// Lets a request through or refuses it, and puts errors into the form that its route speaks.
pub(crate) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("none", |path| path.as_str()).to_owned();
    let allowed = match origin(request.headers(), &app.options) {
        Origin::Allowed(origin) => Some(origin),
        _ => None,
    };
    let address = request.extensions().get::<SocketAddr>().copied();
    let request_id = fresh_id("req_");
    let log = app.options.log_requests.then(|| app.registry.logger());
    let record = Arc::new(Record::new(&request_id, request.method().as_str(), &route, log));
    let client = app.keys.client(key(request.headers()).as_deref(), address);
    request.extensions_mut().insert(Client { record: Some(record.clone()), ..client });
    app.registry.refresh().await;
    let asks = request.method() == Method::OPTIONS && allowed.is_some();
    let mut response = match refusal(&request, &app) {
        Some(refused) if !asks || refused.status == StatusCode::FORBIDDEN => {
            drain(request.into_body()).await;
            refused.into_response()
        }
        _ if asks => preflight(request.headers()),
        _ => next.run(request).await,
    };
    let dialect = Dialect::of_path(&path);
    let told = response.extensions_mut().remove::<ApiError>();
    if let Some(error) = told.or_else(|| untold(&response)) {
        response = error.response(dialect, &request_id);
        if error.status == StatusCode::UNAUTHORIZED && !path.starts_with("/v1/") && !path.starts_with("/api/")
        {
            // A browser asks the person for the key then.
            let basic = HeaderValue::from_static("Basic realm=\"unicorn\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
        }
    }
    // Clients show it, or write it down.
    let header = if dialect == Dialect::Anthropic { "request-id" } else { "x-request-id" };
    if let Ok(id) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(header, id);
    }
    // What of the schemas of tools was left aside.
    if let Some(notice) = record.notice().and_then(|notice| HeaderValue::try_from(notice).ok()) {
        response.headers_mut().insert("x-unicorn-notice", notice);
    }
    if let Some(origin) = allowed {
        allow(&mut response, origin);
    }
    record.answered(response.status().as_u16());
    app.metrics.answered(&route, response.status().as_u16());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::keys::Keys;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_whole_keys_are_keys() {
        let keys = Keys::new(&["secret".into(), "other".into()]);
        let admits = |list: &[(&'static str, &str)]| keys.admit(key(&headers(list)).as_deref());
        for right in [
            &[("authorization", "Bearer secret")][..],
            &[("authorization", "bearer  other")],
            &[("x-api-key", "secret")],
            // user:secret
            &[("authorization", "Basic dXNlcjpzZWNyZXQ=")],
        ] {
            assert!(admits(right), "{right:?}");
        }
        for wrong in [
            &[][..],
            &[("authorization", "Bearer secre")],
            &[("authorization", "Bearer secrets")],
            &[("authorization", "Bearer ")],
            &[("authorization", "secret")],
            &[("authorization", "Basic !")],
            &[("x-api-key", "")],
        ] {
            assert!(!admits(wrong), "{wrong:?}");
        }
        assert!(Keys::new(&[]).admit(None));
    }

    #[test]
    fn names_that_others_could_bind_are_foreign() {
        let options = ServerOptions { hosts: vec!["box.lan".into()], ..ServerOptions::default() };
        let known = |host: &str| host_is_known(&headers(&[("host", host)]), &options);
        for host in ["localhost:8080", "LOCALHOST", "127.0.0.1:1", "[::1]:8080", "192.168.0.7", "box.lan:80"]
        {
            assert!(known(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", ""] {
            assert!(!known(host), "{host}");
        }
        assert!(host_is_known(&HeaderMap::new(), &options));
    }

    #[test]
    fn pages_of_other_origins_are_foreign() {
        let options = ServerOptions { origins: vec!["https://a.example".into()], ..ServerOptions::default() };
        let of = |origin_: &str| {
            let headers = headers(&[("host", "localhost:8080"), ("origin", origin_)]);
            match origin(&headers, &options) {
                Origin::Own => "own",
                Origin::Allowed(_) => "allowed",
                Origin::Foreign => "foreign",
            }
        };
        assert_eq!(of("http://localhost:8080"), "own");
        assert_eq!(of("https://a.example"), "allowed");
        for foreign in ["http://localhost:3000", "null", "https://a.example.evil", "localhost:8080"] {
            assert_eq!(of(foreign), "foreign", "{foreign}");
        }
    }
}
