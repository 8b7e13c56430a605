//! Connections: accepted within a bound, served until the client or the server ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use crate::error::{ApiError, Dialect};
use crate::http::patience::Patient;
use crate::options::ServerOptions;

/// Time in which answers that were given up can still say so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves connections until `ending` turns true, then lets those that have answers under way finish for a while. `give_up` ends what is not
/// finished by then.
pub(crate) async fn listen(
    listener: TcpListener,
    router: Router,
    options: &ServerOptions,
    mut ending: watch::Receiver<bool>,
    give_up: impl FnOnce(),
) {
    let room = Arc::new(Semaphore::new(options.connections_max));
    let (open, mut closed) = tokio::sync::mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = told_to_end(&mut ending) => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        // Whose requests these are.
        let Ok(address) = stream.peer_addr() else { continue };
        let router = router.clone();
        let (options, ending, open) = (options.clone(), ending.clone(), open.clone());
        tokio::spawn(async move {
            serve(stream, address, router, &options, ending).await;
            drop((permit, open));
        });
    }
    drop((listener, open));
    // `recv` ends when the last connection has.
    if tokio::time::timeout(options.drain, closed.recv()).await.is_err() {
        give_up();
        let _ = tokio::time::timeout(LAST_WORDS, closed.recv()).await;
    }
}

async fn told_to_end(ending: &mut watch::Receiver<bool>) {
    // One that tells nothing any more has ended too.
    let _ = ending.wait_for(|ending| *ending).await;
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Tokens are small and are wanted now.
            let _ = stream.set_nodelay(true);
            Some((stream, permit))
        }
        Err(error) => {
            // No file descriptor left, say: others must close theirs first.
            if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            None
        }
    }
}

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    options: &ServerOptions,
    mut ending: watch::Receiver<bool>,
) {
    let service =
        ServiceExt::<Request<Incoming>>::map_request(router, move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(address);
            request
        });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.head_time)
        .max_buf_size(options.head_bytes_max.max(8192))
        .serve_connection(
            TokioIo::new(Patient::new(stream, options.write_time)),
            TowerToHyperService::new(service),
        );
    let result = tokio::select! {
        result = &mut connection => result,
        () = told_to_end(&mut ending) => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    // A connection that ends badly is the client's doing. Only one that was too slow with a head that it had begun is told.
    if result.is_err_and(|error| error.is_timeout()) {
        let parts = connection.into_parts();
        if !parts.read_buf.is_empty() {
            let mut stream = parts.io.into_inner();
            let _ = stream.write_all(&head_too_slow()).await;
            let _ = stream.shutdown().await;
        }
    }
}

/// What a client that takes too long for its head is told.
fn head_too_slow() -> Vec<u8> {
    let error = ApiError::new(StatusCode::REQUEST_TIMEOUT, "the head of the request did not come in time");
    let body = error.body(Dialect::OpenAi).to_string();
    let head = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
