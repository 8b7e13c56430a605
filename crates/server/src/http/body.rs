//! Bodies: JSON within bounds of size and time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use crate::app::App;
use crate::error::ApiError;

/// The JSON of a request's body.
pub(crate) struct JsonBody(pub Value);

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<JsonBody, ApiError> {
        let (parts, body) = request.into_parts();
        check_type(&parts.headers)?;
        let bytes = read(&parts.headers, body, app).await?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| ApiError::bad_request(format!("the body is not UTF-8: {error}")))?;
        // serde_json goes 128 levels deep and no deeper.
        let value = serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
        Ok(JsonBody(value))
    }
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

async fn read(headers: &HeaderMap, body: Body, app: &App) -> Result<bytes::Bytes, ApiError> {
    let max = app.options.body_bytes_max;
    let too_large =
        || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {max} bytes"));
    let length = headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(body, max);
    match tokio::time::timeout(app.options.body_time, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => match is_length_limit(&error) {
            true => Err(too_large()),
            false => Err(ApiError::bad_request(format!("the body ended early: {error}"))),
        },
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        // The type is http-body-util's, of which nothing else is used here.
        if error.to_string().contains("length limit exceeded") {
            return true;
        }
        source = error.source();
    }
    false
}
