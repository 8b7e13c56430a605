//! A recent Mesa in a folder of its own, next to whatever the system has: lavapipe with cooperative matrices, RADV with a kernel driver
//! that does nothing (pipelines compile, nothing executes), and the Khronos validation layer.
//!
//! The packages are Debian's. apt fetches them from the archive that this machine is set up with, against Debian's signed lists of
//! hashes; nothing is installed. They run with the C library that comes with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::sh;

const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const PACKAGES: [&str; 3] = ["mesa-vulkan-drivers", "mesa-drm-shim", "vulkan-validationlayers"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Older ones know no cooperative matrices on processors.
const VERSION_MIN: (u32, u32) = (26, 1);

/// A Vulkan driver of Mesa.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// Runs on the processor.
    Lavapipe,
    /// Compiles for an AMD GPU by its code name, for example `phoenix`, and executes nothing.
    Radv(&'static str),
}

/// The unpacked packages.
pub struct Mesa {
    dir: PathBuf,
    /// For example `26.1.6-1~bpo13+1`.
    pub version: String,
}

impl Mesa {
    /// Fetches the packages where they are not there yet.
    pub fn install() -> Result<Mesa> {
        let dir = sh::target("mesa");
        if !dir.exists() {
            // Renamed when complete: a folder of this name is always whole.
            let partial = sh::target("mesa.partial");
            let _ = fs::remove_dir_all(&partial);
            fetch(&partial).context("NOT RUN: Mesa could not be fetched")?;
            fs::rename(&partial, &dir).with_context(|| dir.display().to_string())?;
        }
        let list = dir.join("packages.txt");
        let packages = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
        let version = version_of(&packages)?;
        Ok(Mesa { dir, version })
    }

    fn libraries(&self) -> PathBuf {
        self.dir.join("root/usr/lib/x86_64-linux-gnu")
    }

    /// A command that sees one driver alone, and the validation layer if it asks for it.
    pub fn command(&self, driver: Driver, program: &Path) -> Result<Command> {
        let name = if driver == Driver::Lavapipe { "lvp" } else { "radeon" };
        let libraries = self.libraries();
        let library = libraries.join(format!("libvulkan_{name}.so"));
        let description = self.dir.join(format!("{name}.json"));
        let json = serde_json::json!({
            "file_format_version": "1.0.1",
            "ICD": { "api_version": "1.4.0", "library_path": library },
        });
        fs::write(&description, json.to_string()).with_context(|| description.display().to_string())?;
        let mut command = sh::command(self.dir.join("root/usr/lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&libraries);
        command.env("VK_DRIVER_FILES", &description).env_remove("VK_ICD_FILENAMES");
        command.env("VK_LAYER_PATH", self.dir.join("root/usr/share/vulkan/explicit_layer.d"));
        if let Driver::Radv(gpu) = driver {
            command.arg("--preload").arg(libraries.join("libamdgpu_noop_drm_shim.so"));
            // A cached pipeline may come without its statistics.
            command.env("AMDGPU_GPU_ID", gpu).env("MESA_SHADER_CACHE_DISABLE", "true");
        }
        command.arg(program);
        Ok(command)
    }
}

/// Fills a folder with the unpacked packages under `root` and their names under `packages.txt`.
fn fetch(dir: &Path) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "the packages are for x86-64");
    ensure!(Path::new("/usr/bin/apt-get").exists(), "there is no apt here");
    ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing");
    let apt = dir.join("apt");
    for sub in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(sub))?;
    }
    let archive = archive()?;
    let sources: String =
        SUITES.iter().map(|s| format!("deb [signed-by={KEYRING}] {archive} {s} main\n")).collect();
    fs::write(apt.join("sources.list"), sources)?;
    fs::write(apt.join("status"), "")?;
    apt_get(&apt, &["update"])?;
    let mut arguments = vec!["-y", "-d", "--no-install-recommends", "-t", SUITES[1], "install"];
    arguments.extend(PACKAGES);
    apt_get(&apt, &arguments)?;
    let mut packages = Vec::new();
    for entry in fs::read_dir(apt.join("cache/archives"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            sh::output(sh::command("dpkg").arg("-x").arg(&path).arg(dir.join("root")))?;
            packages.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    packages.sort();
    version_of(&packages.join("\n"))?;
    fs::write(dir.join("packages.txt"), packages.join("\n") + "\n")?;
    fs::remove_dir_all(apt)?;
    Ok(())
}

/// apt with lists, cache and state of its own, so that nothing of the system's is read or changed.
fn apt_get(apt: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = sh::command("apt-get");
    let path = |name: &str| apt.join(name).display().to_string();
    for option in [
        format!("Dir::Etc::sourcelist={}", path("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".into(),
        "Dir::Etc::preferencesparts=/dev/null".into(),
        format!("Dir::State::lists={}", path("lists")),
        format!("Dir::Cache={}", path("cache")),
        format!("Dir::State::status={}", path("status")),
        "APT::Sandbox::User=root".into(),
    ] {
        command.arg("-o").arg(option);
    }
    sh::run(command.arg("-qq").args(arguments))
}

/// The address of the Debian archive in the system's own configuration.
fn archive() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|e| e.path()));
    }
    let texts = files.iter().filter_map(|f| fs::read_to_string(f).ok());
    texts.filter_map(|t| archive_of(&t)).next().context("no Debian archive in apt's configuration")
}

fn archive_of(sources: &str) -> Option<String> {
    let lines = sources.lines().filter(|l| !l.trim_start().starts_with('#'));
    let is_archive =
        |word: &&str| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian");
    lines.flat_map(str::split_whitespace).find(is_archive).map(str::to_owned)
}

/// The version of the drivers in a list of package files.
fn version_of(packages: &str) -> Result<String> {
    let prefix = format!("{}_", PACKAGES[0]);
    let version = packages.lines().find_map(|p| p.strip_prefix(&prefix)?.split('_').next());
    let version = version.with_context(|| format!("no {} was fetched", PACKAGES[0]))?;
    let mut numbers = version.split('.').map(|n| n.parse::<u32>());
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(anyhow!("{} has the version {version}", PACKAGES[0]));
    };
    if (major, minor) < VERSION_MIN {
        bail!("Mesa {version} is older than {}.{}", VERSION_MIN.0, VERSION_MIN.1);
    }
    Ok(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_found() {
        let new = "Types: deb\n# http://other.example/debian\nURIs: http://mirror.example/debian\n";
        assert_eq!(archive_of(new).as_deref(), Some("http://mirror.example/debian"));
        let old =
            "deb http://mirror.example/debian-security x main\ndeb https://mirror.example/debian/ x main";
        assert_eq!(archive_of(old).as_deref(), Some("https://mirror.example/debian/"));
        assert_eq!(archive_of("deb http://archive.example/ubuntu x main"), None);
    }

    #[test]
    fn old_versions_are_refused() {
        let list = |version: &str| format!("libc6_2.41_amd64.deb\nmesa-vulkan-drivers_{version}_amd64.deb\n");
        assert_eq!(version_of(&list("26.1.6-1~bpo13+1")).unwrap(), "26.1.6-1~bpo13+1");
        assert!(version_of(&list("25.3.0-1")).unwrap_err().to_string().contains("older than 26.1"));
        assert!(version_of("libc6_2.41_amd64.deb").is_err());
    }
}
