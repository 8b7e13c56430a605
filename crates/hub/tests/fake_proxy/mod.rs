//! A proxy on the loopback interface that speaks SOCKS 4, 4a, 5 and HTTP CONNECT. Whatever host it is asked for, it
//! connects to the loopback interface: names that nobody can look up must have been looked up here.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub struct FakeProxy {
    /// `HOST:PORT`.
    pub address: String,
    /// What was asked for: protocol, user with password, target.
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl FakeProxy {
    pub fn start() -> FakeProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let noted = noted.clone();
                std::thread::spawn(move || serve(stream, &noted));
            }
        });
        FakeProxy { address, asked }
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut client: TcpStream, asked: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (what, port) = match byte(&mut reader)? {
        4 => socks4(&mut reader, &mut client)?,
        5 => socks5(&mut reader, &mut client)?,
        first => connect(first, &mut reader, &mut client)?,
    };
    asked.lock().unwrap().push(what);
    let mut target = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let (mut back, mut forth) = (target.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || io::copy(&mut back, &mut forth));
    io::copy(&mut reader, &mut target)?;
    Ok(())
}

fn byte(reader: &mut impl Read) -> io::Result<u8> {
    let mut one = [0];
    reader.read_exact(&mut one)?;
    Ok(one[0])
}

fn bytes(reader: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut all = vec![0; count];
    reader.read_exact(&mut all)?;
    Ok(all)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn address(bytes: &[u8]) -> String {
    bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(".")
}

fn socks4(reader: &mut impl BufRead, client: &mut TcpStream) -> io::Result<(String, u16)> {
    assert_eq!(byte(reader)?, 1);
    let port = u16::from_be_bytes(bytes(reader, 2)?.try_into().unwrap());
    let ip = bytes(reader, 4)?;
    let mut zero_ended = || -> io::Result<String> {
        let mut all = Vec::new();
        reader.read_until(0, &mut all)?;
        all.pop();
        Ok(text(all))
    };
    zero_ended()?;
    let host = if ip[..3] == [0, 0, 0] { zero_ended()? } else { address(&ip) };
    client.write_all(&[0, 90, 0, 0, 0, 0, 0, 0])?;
    Ok((format!("socks4 {host}"), port))
}

fn socks5(reader: &mut impl Read, client: &mut TcpStream) -> io::Result<(String, u16)> {
    let count = byte(reader)? as usize;
    let methods = bytes(reader, count)?;
    let mut user = String::new();
    if methods.contains(&2) {
        client.write_all(&[5, 2])?;
        assert_eq!(byte(reader)?, 1);
        let mut part = || -> io::Result<String> {
            let count = byte(reader)? as usize;
            Ok(text(bytes(reader, count)?))
        };
        user = format!("{}:{} ", part()?, part()?);
        client.write_all(&[1, 0])?;
    } else {
        client.write_all(&[5, 0])?;
    }
    assert_eq!(bytes(reader, 3)?, [5, 1, 0]);
    let host = match byte(reader)? {
        1 => address(&bytes(reader, 4)?),
        3 => {
            let count = byte(reader)? as usize;
            text(bytes(reader, count)?)
        }
        kind => panic!("address of kind {kind}"),
    };
    let port = u16::from_be_bytes(bytes(reader, 2)?.try_into().unwrap());
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    Ok((format!("socks5 {user}{host}"), port))
}

fn connect(first: u8, reader: &mut impl BufRead, client: &mut TcpStream) -> io::Result<(String, u16)> {
    let mut line = (first as char).to_string();
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or_default().to_string();
    let mut user = String::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("proxy-authorization") => {
                user = format!("{value} ")
            }
            Some(_) => {}
            None => break,
        }
    }
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (host, port) = target.rsplit_once(':').unwrap();
    Ok((format!("connect {user}{host}"), port.parse().unwrap()))
}
