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

    /// As [`Events::next`], with a line of `ping` after each silence of `silence`: lines have no comments.
    pub async fn next<T>(
        &self,
        stream: &mut (impl Stream<Item = T> + Unpin),
        silence: Duration,
        ping: impl Fn() -> Value,
    ) -> Option<T> {
        loop {
            tokio::select! {
                _ = self.0.closed() => return None,
                item = stream.next() => return item,
                () = tokio::time::sleep(silence) => self.line(&ping()).await?,
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_never_silent_for_long() {
        let (sender, mut sent) = mpsc::channel(8);
        let lines = Lines(sender);
        let (give, given) = mpsc::channel(1);
        let mut given = ReceiverStream::new(given);
        let ping = || serde_json::json!({"done": false});
        let next = async {
            let first = lines.next(&mut given, Duration::from_millis(10), ping).await;
            (first, lines.next(&mut given, Duration::from_secs(600), ping).await)
        };
        let client = async {
            let ping = sent.recv().await.unwrap().unwrap();
            assert_eq!(&ping[..], b"{\"done\":false}\n");
            give.send(7).await.unwrap();
            // And then it goes.
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(sent);
        };
        assert_eq!(tokio::join!(next, client).0, (Some(7), None));
    }
}
