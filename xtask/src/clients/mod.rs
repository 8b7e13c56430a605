//! `cargo xtask clients`: programs that speak to OpenAI, Anthropic or Ollama, unchanged, against the server.

mod install;
mod list;
mod report;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::data::{self, TestData};
use crate::served::Served;
use crate::sh;
use crate::tally::{NOT_RUN, Tally};
use list::{CLIENTS, Client};
use report::Report;

/// Options of `cargo xtask clients`.
#[derive(clap::Args)]
pub struct Args {
    /// Run only the clients whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Run only those that are small enough for every run of the tests
    #[arg(long)]
    small: bool,
    /// The server to try, instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Folder of an embedding model to serve beside the other
    #[arg(long, value_name = "DIR")]
    embedder: Option<PathBuf>,
}

/// Runs the clients and fails where a check failed.
pub fn run(args: &Args) -> Result<()> {
    let data = data::install()?;
    let binary = match &args.binary {
        Some(binary) => std::fs::canonicalize(binary)?,
        None => {
            sh::run(&mut sh::cargo("build --locked --release -p unicorn"))?;
            sh::target("release/unicorn")
        }
    };
    let only = args.only.as_deref().unwrap_or("");
    let chosen = |client: &&Client| client.name.contains(only) && (client.small || !args.small);
    let clients: Vec<&Client> = CLIENTS.iter().filter(chosen).collect();
    if clients.is_empty() {
        bail!("no client is called {only}");
    }
    let tally = tried(&binary, &data, args.embedder.as_deref(), "", &clients)?;
    println!("{tally}");
    tally.judge(false)
}

/// The small ones, as a part of all tests; embeddings are left out where the test data has no model for them.
pub fn small(binary: &std::path::Path, data: &TestData) -> Result<Tally> {
    let clients: Vec<&Client> = CLIENTS.iter().filter(|client| client.small).collect();
    let embedder = sh::target("test-data/minilm");
    tried(binary, data, embedder.is_dir().then_some(embedder.as_path()), "-", &clients)
}

/// `without` is what clients are told in place of an embedding model: `-` to leave its checks out.
fn tried(
    binary: &std::path::Path,
    data: &TestData,
    embedder: Option<&std::path::Path>,
    without: &str,
    clients: &[&Client],
) -> Result<Tally> {
    let smollm2 = data.smollm2.display().to_string();
    // Some clients set no bound on an answer, and a small model may not find its end.
    let mut arguments = vec!["-m", &smollm2, "--device", "cpu", "--ctx", "1024"];
    let embedder = embedder.map(|folder| folder.display().to_string());
    if let Some(folder) = &embedder {
        arguments.extend(["-m", folder.as_str(), "--models-max", "2"]);
    }
    let mut served = Served::unicorn(binary, "clients", &arguments)?;
    let model = served.model()?;
    let second = embedder.as_deref().and_then(|folder| folder.rsplit('/').next()).unwrap_or(without);
    let mut reports = Vec::new();
    for client in clients {
        let begin = Instant::now();
        println!("\n     Running {} ({})", client.name, client.pins.join(", "));
        let mut report = match install::install(client) {
            Ok(installed) => installed.run(&served.base(), &model, second)?,
            Err(error) => Report::missing(&format!("{error:#}")),
        };
        report.seconds = begin.elapsed().as_secs_f64();
        // A client that ends the server has found something.
        served.check()?;
        reports.push((client.name, report));
    }
    let tally = report::table(&reports);
    if tally.not_run > 0 {
        println!("what did not run is told above, with the reason: look for {NOT_RUN}");
    }
    Ok(tally)
}
