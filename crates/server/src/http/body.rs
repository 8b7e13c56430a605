//! Bodies: JSON within bounds of size and time.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt;

use crate::app::App;
use crate::error::ApiError;
use crate::job;
use crate::weight::{MARKS_MAX, bytes_of, marks};

/// Bodies up to this length are parsed at once.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// The JSON of a request's body.
pub(crate) struct JsonBody(pub Held);

/// JSON with its part of what all bodies may take, which is free again when it is dropped: so it is dropped as soon as it is read.
pub(crate) struct Held {
    value: Value,
    _room: Option<OwnedSemaphorePermit>,
}

impl Deref for Held {
    type Target = Value;
    fn deref(&self) -> &Value {
        &self.value
    }
}

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<JsonBody, ApiError> {
        let (parts, body) = request.into_parts();
        if let Err(refused) = check_type(&parts.headers) {
            drain(body).await;
            return Err(refused);
        }
        let bytes = read(&parts.headers, body, app).await?;
        // What takes long is not done where connections are served.
        let held = match bytes.bytes.len() > INLINE_BYTES_MAX {
            true => {
                let bodies = app.bodies.clone();
                job::blocking(move || parse(bytes, &bodies)).await?
            }
            false => parse(bytes, &app.bodies)?,
        };
        Ok(JsonBody(held))
    }
}

/// Parses a body; what its values take is added to what it holds before they are made.
fn parse(Bytes { bytes, held: mut room }: Bytes, bodies: &Arc<Semaphore>) -> Result<Held, ApiError> {
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not UTF-8: {error}")))?;
    let marks = marks(&bytes);
    if marks > MARKS_MAX {
        let message = format!("the body has more than {MARKS_MAX} values");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    take(&mut room, bodies, bytes_of(marks))?;
    // serde_json goes 128 levels deep and no deeper.
    let value = serde_json::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    Ok(Held { value, _room: room })
}

/// Takes more room for a body.
fn take(
    room: &mut Option<OwnedSemaphorePermit>,
    bodies: &Arc<Semaphore>,
    bytes: usize,
) -> Result<(), ApiError> {
    let more = u32::try_from(bytes).ok().and_then(|n| bodies.clone().try_acquire_many_owned(n).ok());
    let more = more.ok_or_else(|| ApiError::unavailable("too many large requests at once", 1))?;
    match room {
        Some(room) => room.merge(more),
        room => *room = Some(more),
    }
    Ok(())
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
        take(&mut gathered.held, &app.bodies, chunk.len())?;
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
    fn values_are_bounded_and_texts_are_not() {
        let bodies = Arc::new(Semaphore::new(1 << 30));
        let read = |text: String| parse(Bytes { bytes: text.into_bytes(), held: None }, &bodies);
        let many = format!("[{}0]", "0,".repeat(MARKS_MAX));
        assert_eq!(read(many).err().unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(read(format!("\"{}\"", ",".repeat(2 * MARKS_MAX))).is_ok());
    }

    #[test]
    fn what_values_take_is_held_until_they_are_dropped() {
        let bodies = Arc::new(Semaphore::new(1 << 20));
        let read = || {
            let bytes = format!("[{}0]", "0,".repeat(3000)).into_bytes();
            parse(Bytes { bytes, held: None }, &bodies)
        };
        let first = read().ok().unwrap();
        assert!(bodies.available_permits() < (1 << 20) - 3000 * size_of::<Value>());
        let second = read().ok().unwrap();
        assert_eq!(read().err().unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
        drop((first, second));
        assert_eq!(bodies.available_permits(), 1 << 20);
    }
}
