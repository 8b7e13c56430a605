//! What a client is told when something goes wrong, in the words of the API that it speaks.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use unicorn_engine::AdmissionError;

/// Which API's form an answer has. It is chosen by the route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`
    Anthropic,
    /// `{"error": "message"}`
    Ollama,
}

impl Dialect {
    /// The dialect of a route.
    pub fn of_path(path: &str) -> Dialect {
        if path.starts_with("/v1/messages") {
            Dialect::Anthropic
        } else if path.starts_with("/api/") {
            Dialect::Ollama
        } else {
            Dialect::OpenAi
        }
    }
}

/// Characters of an error's message: it may repeat what a request said, which may be long.
const MESSAGE_MAX: usize = 1000;
/// Characters of a name in it.
const NAME_MAX: usize = 100;

/// The beginning of a text that somebody sent.
fn beginning(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The code by which Anthropic's clients learn that they have to send the whole conversation each time.
pub(crate) const THREAD_UNSUPPORTED: &str = "thread_unsupported_request";

/// A request that is refused or has failed.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field of the request that is wrong, as a path: `messages[2].content`.
    pub param: Option<String>,
    /// A short name that programs can act on.
    pub code: Option<&'static str>,
    /// When to try again.
    pub retry_after_seconds: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry_after_seconds: None }
    }

    /// 400: a field is wrong.
    pub fn param(param: impl Into<String>, message: impl std::fmt::Display) -> ApiError {
        let param = param.into();
        let error = ApiError::new(StatusCode::BAD_REQUEST, format!("{param}: {message}"));
        ApiError { param: Some(param), code: Some("invalid_value"), ..error }
    }

    /// 400 without a field.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404: there is no such model.
    pub fn no_model(name: &str, known: &[String]) -> ApiError {
        let known = beginning(&known.join(", "), MESSAGE_MAX / 2);
        let message =
            format!("the model `{}` does not exist here; there is: {known}", beginning(name, NAME_MAX));
        let error = ApiError::new(StatusCode::NOT_FOUND, message);
        ApiError { param: Some("model".into()), code: Some("model_not_found"), ..error }
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>, retry_after_seconds: u64) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
        ApiError { retry_after_seconds: Some(retry_after_seconds), code: Some("unavailable"), ..error }
    }

    /// 429: too many wait.
    pub fn queue_full(message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
        ApiError { retry_after_seconds: Some(1), code: Some("queue_full"), ..error }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Why the engine did not take a request. `prompt` names the field that the prompt came from.
    pub fn admission(error: AdmissionError, prompt: &str) -> ApiError {
        let message = error.to_string();
        match error {
            AdmissionError::EmptyPrompt | AdmissionError::TokenOutOfRange { what: "prompt", .. } => {
                ApiError::param(prompt, message)
            }
            AdmissionError::PromptTooLong { .. } => {
                ApiError { code: Some("context_length_exceeded"), ..ApiError::param(prompt, message) }
            }
            AdmissionError::TokenOutOfRange { what, .. } => ApiError::param(what, message),
            AdmissionError::Option(option) => ApiError::param(option.name, message),
            AdmissionError::QueueFull { .. } => ApiError::queue_full(message),
            AdmissionError::Encoder => ApiError::param("model", message),
            AdmissionError::Stopped { .. } => ApiError::unavailable(message, 5),
            _ => ApiError::bad_request(message),
        }
    }

    /// The kind of error, as OpenAI names it.
    fn openai_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500..=599 => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The kind of error, as Anthropic names it.
    fn anthropic_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500..=599 => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// The body of the answer.
    pub fn body(&self, dialect: Dialect) -> Value {
        let message = beginning(&self.message, MESSAGE_MAX);
        let param = self.param.as_ref().map(|param| beginning(param, MESSAGE_MAX));
        match dialect {
            Dialect::OpenAi => json!({"error": {
                "message": message, "type": self.openai_type(), "param": param, "code": self.code,
            }}),
            Dialect::Anthropic => {
                let mut error = json!({"type": self.anthropic_type(), "message": message});
                if let Some(code) = self.code {
                    error["details"] = json!({"error_code": code});
                    if code == THREAD_UNSUPPORTED {
                        error["details"]["unsupported"] = json!(["thread"]);
                    }
                }
                json!({"type": "error", "error": error, "request_id": null})
            }
            Dialect::Ollama => json!({"error": message}),
        }
    }

    /// The whole answer. `request_id` is how the client may speak of its request.
    pub fn response(&self, dialect: Dialect, request_id: &str) -> Response {
        let mut body = self.body(dialect);
        if dialect == Dialect::Anthropic {
            body["request_id"] = request_id.into();
        }
        let mut response = (self.status, axum::Json(body)).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// Leaves the error for the layer that knows the route and so its [`Dialect`].
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_of_a_request_are_not_repeated_whole() {
        let error = ApiError::param("x".repeat(5000), "ü".repeat(100_000));
        for dialect in [Dialect::OpenAi, Dialect::Anthropic, Dialect::Ollama] {
            assert!(error.body(dialect).to_string().len() < 8 * MESSAGE_MAX, "{dialect:?}");
        }
        let error = ApiError::no_model(&"m".repeat(1 << 20), &["known".into()]);
        let message = error.body(Dialect::Ollama)["error"].as_str().unwrap().to_owned();
        assert!(message.len() < 300 && message.ends_with("there is: known"), "{message}");
    }
}
