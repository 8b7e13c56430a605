//! A server in a process of its own, for the tasks that try one.

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::http::{Client, Reply};
use crate::sh;

/// Longest that a server may take until it answers.
const START_MAX: Duration = Duration::from_secs(120);

/// A running server; it ends when this is dropped.
pub struct Served {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Served {
    /// Starts `unicorn serve` on a free port and waits until its model is there. Where the log goes is named after `name`.
    pub fn unicorn(binary: &Path, name: &str, arguments: &[&str]) -> Result<Served> {
        let mut command = sh::command(binary);
        command.arg("serve").args(arguments).env_remove("UNICORN_API_KEY").env("HF_HUB_OFFLINE", "1");
        // What earlier runs computed is not found again.
        let pages = sh::target("served").join(format!("{name}-kv"));
        if pages.exists() {
            std::fs::remove_dir_all(&pages).with_context(|| pages.display().to_string())?;
        }
        command.env("UNICORN_KV_DIR", pages);
        Served::start(command, name)
    }

    /// Starts a server that knows `--port` and `/health`.
    pub fn start(mut command: Command, name: &str) -> Result<Served> {
        let port = free_port()?;
        let folder = sh::target("served");
        std::fs::create_dir_all(&folder)?;
        let log = folder.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| log.display().to_string())?;
        command.args(["--port", &port.to_string()]).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("cannot run {}", sh::show(&command)))?;
        let mut served = Served { child, port, log };
        let begin = Instant::now();
        while !served.client().get("/health").is_ok_and(|reply| reply.status == 200) {
            ensure!(begin.elapsed() < START_MAX, "it does not answer: {}", served.said());
            served.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(served)
    }

    /// An error where the process has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the server has ended: {status}\n{}", self.said()),
            None => Ok(()),
        }
    }

    /// The end of what it has written.
    pub fn said(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub fn client(&self) -> Client {
        Client::new(self.port)
    }

    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The name of its first model.
    pub fn model(&self) -> Result<String> {
        let models = self.client().get("/v1/models")?.json()?;
        Ok(models["data"][0]["id"].as_str().context("the server names no model")?.to_owned())
    }

    /// A figure of `/metrics`, 0 where it is not there.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let Reply { body, .. } = self.client().get("/metrics")?;
        let text = String::from_utf8_lossy(&body);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(Ok(0.0), |value| value.parse().with_context(|| format!("{name} {value}")))
    }

    /// Bytes of memory that the process has at the moment.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
