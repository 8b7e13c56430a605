//! Bodies: JSON within bounds of size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::StreamExt;

use crate::app::App;
use crate::error::ApiError;

/// Bodies up to this length are parsed at once.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// Marks of JSON in a body: each may take some hundred bytes of memory where it took one of the body.
const MARKS_MAX: usize = 1 << 19;

/// The JSON of a request's body.
pub(crate) struct JsonBody(pub Value);

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<JsonBody, ApiError> {
        let (parts, body) = request.into_parts();
        if let Err(refused) = check_type(&parts.headers) {
            drain(body).await;
            return Err(refused);
        }
        let Bytes { bytes, held } = read(&parts.headers, body, app).await?;
        // What takes long is not done where connections are served.
        let value = match bytes.len() > INLINE_BYTES_MAX {
            true => tokio::task::spawn_blocking(move || parse(&bytes)).await.unwrap_or_else(|_| {
                Err(ApiError::internal("the body could not be read: a fault of the server"))
            })?,
            false => parse(&bytes)?,
        };
        drop(held);
        Ok(JsonBody(value))
    }
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not UTF-8: {error}")))?;
    if marks(bytes) > MARKS_MAX {
        let message = format!("the body has more than {MARKS_MAX} values");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    // serde_json goes 128 levels deep and no deeper.
    serde_json::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))
}

/// Brackets, commas and colons outside of strings.
fn marks(bytes: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (0, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'[' | b'{' | b',' | b':' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

/// A page of another site can make a browser send forms, but no JSON. Programs, which send no `Origin`, may call JSON what they like.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(header::ORIGIN).is_none() {
        return Ok(());
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind == "application/json" || kind.ends_with("+json") {
        true => Ok(()),
        false => {
            let message = "the Content-Type must be application/json";
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
        }
    }
}

/// Bytes of a refused request that are read all the same.
const DRAIN_BYTES_MAX: usize = 1 << 20;
/// Time that may take.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Reads the body of a request that is refused, as far as it is short and comes soon: else the connection would have to be closed, and a
/// client that goes on using it fails with its next request.
pub(crate) async fn drain(body: Body) {
    let read = async {
        let (mut chunks, mut left) = (body.into_data_stream(), DRAIN_BYTES_MAX);
        while let Some(Ok(chunk)) = chunks.next().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // One that takes longer is closed.
    let _ = tokio::time::timeout(DRAIN_TIME, read).await;
}

/// A body, and its part of what all bodies may take.
struct Bytes {
    bytes: Vec<u8>,
    held: Option<OwnedSemaphorePermit>,
}

async fn read(headers: &HeaderMap, body: Body, app: &App) -> Result<Bytes, ApiError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > app.options.body_bytes_max) {
        return Err(too_large(app));
    }
    let gathered = tokio::time::timeout(app.options.body_time, gather(body, app)).await;
    gathered
        .unwrap_or_else(|_| Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")))
}

/// Room is taken as bytes come, so that a client that promises many takes none from others.
async fn gather(body: Body, app: &App) -> Result<Bytes, ApiError> {
    let mut gathered = Bytes { bytes: Vec::new(), held: None };
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::bad_request(format!("the body ended early: {error}")))?;
        if gathered.bytes.len() + chunk.len() > app.options.body_bytes_max {
            return Err(too_large(app));
        }
        let room =
            u32::try_from(chunk.len()).ok().and_then(|n| app.bodies.clone().try_acquire_many_owned(n).ok());
        let room = room.ok_or_else(|| ApiError::unavailable("too many large requests at once", 1))?;
        match &mut gathered.held {
            Some(held) => held.merge(room),
            held => *held = Some(room),
        }
        gathered.bytes.extend_from_slice(&chunk);
    }
    Ok(gathered)
}

fn too_large(app: &App) -> ApiError {
    let message = format!("the body has more than {} bytes", app.options.body_bytes_max);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_in_texts_do_not_count() {
        for (text, count) in
            [("{}", 1), ("{\"a\":[1,2]}", 4), ("{\"a,b:[\":\"x\\\",,{\"}", 2), ("\"\\\\\",", 1), ("", 0)]
        {
            assert_eq!(marks(text.as_bytes()), count, "{text}");
        }
    }

    #[test]
    fn values_are_bounded_and_texts_are_not() {
        let many = format!("[{}0]", "0,".repeat(MARKS_MAX));
        assert_eq!(parse(many.as_bytes()).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        let text = format!("\"{}\"", ",".repeat(2 * MARKS_MAX));
        assert!(parse(text.as_bytes()).is_ok());
    }
}
