//! Installs clients below `target/clients`, once, and runs their checks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::list::{Client, Source};
use super::report::Report;
use crate::sh;

/// Longest that the checks of one client may take.
const CHECKS_MAX: Duration = Duration::from_secs(1800);

/// Where the checks are.
pub fn scripts() -> PathBuf {
    sh::root().join("xtask/src/clients/scripts")
}

/// A client that is ready to run.
pub struct Installed {
    command: Command,
    log: PathBuf,
}

/// Installs a client where it is not there in these versions.
pub fn install(client: &Client) -> Result<Installed> {
    let folder = sh::target("clients").join(client.name);
    let log = folder.with_extension("log");
    let command = match client.source {
        Source::Python => python(client, &folder)?,
        Source::Node => node(client, &folder)?,
        Source::Rust => rust(&folder)?,
    };
    Ok(Installed { command, log })
}

/// Runs `make` in an empty folder, unless the folder is there with these pins.
fn once(folder: &Path, pins: &[&str], make: impl FnOnce() -> Result<()>) -> Result<()> {
    let (mark, wanted) = (folder.join("pins"), pins.join("\n"));
    if fs::read_to_string(&mark).is_ok_and(|pins| pins == wanted) {
        return Ok(());
    }
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    make()?;
    Ok(fs::write(mark, wanted)?)
}

fn python(client: &Client, folder: &Path) -> Result<Command> {
    let interpreter = folder.join("bin/python");
    once(folder, client.pins, || {
        sh::output(sh::command("python3").args(["-m", "venv"]).arg(folder))?;
        let options = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
        sh::output(sh::command(&interpreter).args(options).args(client.pins))?;
        Ok(())
    })?;
    let mut command = sh::command(interpreter);
    // Compiled scripts would lie beside the sources.
    command.arg(scripts().join(client.script)).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

fn node(client: &Client, folder: &Path) -> Result<Command> {
    once(folder, client.pins, || {
        fs::write(folder.join("package.json"), "{\"private\": true, \"type\": \"module\"}\n")?;
        let options = ["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact"];
        sh::output(sh::command("npm").args(options).args(client.pins).current_dir(folder))?;
        Ok(())
    })?;
    // Node looks for packages where a script lies.
    for script in ["checks.mjs", client.script] {
        fs::copy(scripts().join(script), folder.join(script)).with_context(|| script.to_owned())?;
    }
    let mut command = sh::command("node");
    command.arg(folder.join(client.script));
    Ok(command)
}

fn rust(folder: &Path) -> Result<Command> {
    let manifest = sh::root().join("xtask/async-openai/Cargo.toml");
    let mut build = sh::cargo("build --quiet --manifest-path");
    sh::output(build.arg(manifest).arg("--target-dir").arg(folder))?;
    Ok(sh::command(folder.join("debug/async-openai-client")))
}

impl Installed {
    /// Runs the checks against a server.
    pub fn run(mut self, base: &str, model: &str, embedder: &str) -> Result<Report> {
        let log = File::create(&self.log).with_context(|| self.log.display().to_string())?;
        // No client is to look for its own service, or through a proxy for ours.
        for name in
            ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"]
        {
            self.command.env_remove(name);
        }
        self.command.env("NO_PROXY", "*").env("HF_HUB_OFFLINE", "1").env("DO_NOT_TRACK", "1");
        self.command.args([base, model, embedder]).stdout(log.try_clone()?).stderr(log);
        let mut child = self.command.spawn().with_context(|| sh::show(&self.command))?;
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if begin.elapsed() > CHECKS_MAX {
                child.kill()?;
                child.wait()?;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let output = fs::read(&self.log)?;
        ensure!(!output.is_empty() || !status.success(), "{} printed nothing", sh::show(&self.command));
        Ok(Report::read(&String::from_utf8_lossy(&output), status.success()))
    }
}
