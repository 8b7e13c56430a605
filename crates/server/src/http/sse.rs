//! Streams: server-sent events and lines of JSON.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

/// Events that a client may be behind before the answer waits for it.
const EVENTS_MAX: usize = 16;

/// Where the events of a stream go. Each call is `None` once the client is gone, which ends the answer with `?`.
pub(crate) struct Events(mpsc::Sender<Event>);

impl Events {
    /// Sends `data: ...`.
    pub async fn data(&self, data: &Value) -> Option<()> {
        self.0.send(Event::default().data(data.to_string())).await.ok()
    }

    /// Sends `event: ...` and `data: ...`.
    pub async fn named(&self, name: &str, data: &Value) -> Option<()> {
        self.0.send(Event::default().event(name).data(data.to_string())).await.ok()
    }

    /// Sends `data: [DONE]`.
    pub async fn done(&self) -> Option<()> {
        self.0.send(Event::default().data("[DONE]")).await.ok()
    }

    /// The next item of a stream; `None` at its end, and as soon as the client is gone.
    pub async fn next<T>(&self, stream: &mut (impl Stream<Item = T> + Unpin)) -> Option<T> {
        tokio::select! {
            _ = self.0.closed() => None,
            item = stream.next() => item,
        }
    }
}

/// An answer of server-sent events, which `make` sends. The head goes out at once, and a comment after each silence of `ping`.
pub(crate) fn respond<F>(ping: Duration, make: impl FnOnce(Events) -> F) -> Response
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(make(Events(sender)));
    let events = ReceiverStream::new(events).map(Ok::<Event, Infallible>);
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(ping).text("ping")).into_response();
    // Proxies that collect an answer would spoil it.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Where lines of JSON go, as Ollama streams.
pub(crate) struct Lines(mpsc::Sender<Result<Bytes, Infallible>>);

impl Lines {
    /// Sends a line.
    pub async fn line(&self, value: &Value) -> Option<()> {
        self.0.send(Ok(Bytes::from(format!("{value}\n")))).await.ok()
    }

    /// As [`Events::next`].
    pub async fn next<T>(&self, stream: &mut (impl Stream<Item = T> + Unpin)) -> Option<T> {
        tokio::select! {
            _ = self.0.closed() => None,
            item = stream.next() => item,
        }
    }
}

/// An answer of lines, which `make` sends.
pub(crate) fn respond_lines<F>(make: impl FnOnce(Lines) -> F) -> Response
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let (sender, lines) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(make(Lines(sender)));
    let mut response = Body::from_stream(ReceiverStream::new(lines)).into_response();
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
