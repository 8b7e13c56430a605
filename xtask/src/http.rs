//! As much of HTTP/1.1 as it takes to try a server, and to leave it in the middle of an answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Longest wait for a byte.
const PATIENCE: Duration = Duration::from_secs(120);

/// Opens a connection for each request.
#[derive(Clone, Copy)]
pub struct Client {
    port: u16,
}

/// A whole answer.
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| String::from_utf8_lossy(&self.body).into_owned())
    }
}

/// An answer whose head has come and whose body is coming.
pub struct Answer {
    pub status: u16,
    reader: BufReader<TcpStream>,
    chunked: bool,
    /// Bytes that are still to come, where that is known.
    left: usize,
}

impl Client {
    pub fn new(port: u16) -> Client {
        Client { port }
    }

    pub fn get(self, path: &str) -> Result<Reply> {
        self.send(&request("GET", path, None))?.whole()
    }

    pub fn post(self, path: &str, body: &Value) -> Result<Reply> {
        self.begin(path, body)?.whole()
    }

    /// Sends a request and waits for the head of the answer.
    pub fn begin(self, path: &str, body: &Value) -> Result<Answer> {
        self.send(&request("POST", path, Some(body.to_string().as_bytes())))
    }

    /// A connection on which nothing was sent yet.
    pub fn connect(self) -> Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).context("the server does not accept")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Sends bytes as they are and waits for the head of the answer.
    pub fn send(self, bytes: &[u8]) -> Result<Answer> {
        let mut stream = self.connect()?;
        stream.write_all(bytes)?;
        Answer::begin(stream)
    }
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    if let Some(body) = body {
        head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend(body.unwrap_or_default());
    bytes
}

impl Answer {
    /// Reads the head of an answer.
    pub fn begin(stream: TcpStream) -> Result<Answer> {
        let mut reader = BufReader::new(stream);
        let first = line(&mut reader)?.context("no answer came")?;
        let status = first.get(9..12).and_then(|s| s.parse().ok()).with_context(|| first.clone())?;
        let (mut chunked, mut left) = (false, 0);
        loop {
            let header = line(&mut reader)?.context("the head is cut short")?.to_ascii_lowercase();
            match header.split_once(": ") {
                Some(("transfer-encoding", "chunked")) => chunked = true,
                Some(("content-length", n)) => left = n.parse()?,
                None if header.is_empty() => break,
                _ => {}
            }
        }
        Ok(Answer { status, reader, chunked, left })
    }

    /// The next part of the body; `None` at its end.
    pub fn part(&mut self) -> Result<Option<Vec<u8>>> {
        let size = match self.chunked {
            true => {
                let size = line(&mut self.reader)?.context("the body is cut short")?;
                usize::from_str_radix(&size, 16).with_context(|| size.clone())?
            }
            false => std::mem::take(&mut self.left),
        };
        let mut bytes = vec![0; size + if self.chunked { 2 } else { 0 }];
        self.reader.read_exact(&mut bytes).context("the body is cut short")?;
        bytes.truncate(size);
        Ok((size > 0).then_some(bytes))
    }

    /// The rest of it.
    pub fn whole(mut self) -> Result<Reply> {
        let mut body = Vec::new();
        while let Some(part) = self.part()? {
            body.extend(part);
        }
        Ok(Reply { status: self.status, body })
    }
}

fn line(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    // No server has a reason to send longer ones.
    if reader.take(1 << 20).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    ensure!(line.ends_with(b"\n"), "a line without an end");
    Ok(Some(String::from_utf8(line)?.trim_end_matches(['\r', '\n']).to_owned()))
}

/// What server-sent events carry.
pub fn events(body: &[u8]) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(body).context("events that are no UTF-8")?;
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| Ok(serde_json::from_str(data)?)).collect()
}

/// The text of the first answer in events of completions; an error where one says so.
pub fn streamed(events: &[Value]) -> Result<String> {
    let mut text = String::new();
    for event in events {
        if let Some(error) = event.get("error") {
            bail!("{error}");
        }
        text += event["choices"][0]["text"].as_str().unwrap_or_default();
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answered(bytes: &'static [u8]) -> Result<Reply> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let client = Client::new(listener.local_addr().unwrap().port());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(bytes).unwrap();
        });
        client.send(b"GET ")?.whole()
    }

    #[test]
    fn answers_are_read_in_both_forms() {
        let plain = answered(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        assert_eq!((plain.status, plain.body.as_slice()), (404, &b"{}"[..]));
        let chunked =
            answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
                .unwrap();
        assert_eq!((chunked.status, chunked.body.as_slice()), (200, &b"abc"[..]));
        assert!(answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab").is_err());
        assert!(answered(b"").is_err());
    }

    #[test]
    fn events_are_read() {
        let body = b": ping\n\ndata: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\ndata: [DONE]\n\n";
        assert_eq!(streamed(&events(body).unwrap()).unwrap(), "ab");
        assert!(streamed(&events(b"data: {\"error\":{\"message\":\"x\"}}\n\n").unwrap()).is_err());
    }
}
