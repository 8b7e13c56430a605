//! Mesa's lavapipe, the Vulkan driver that runs on processors: right, not fast, so that kernels can be tested without a GPU.

use std::path::{Path, PathBuf};

use crate::sh;

/// Where distributions put the descriptions of Vulkan drivers.
const DRIVERS: &str = "/usr/share/vulkan/icd.d";

/// The driver's description; installed with apt where it is missing and that is possible. `None` with a reason otherwise.
pub fn driver() -> Result<PathBuf, String> {
    if let Some(found) = find() {
        return Ok(found);
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err("no lavapipe driver here, and no apt to install one".into());
    }
    let apt = |arguments: &[&str]| {
        sh::run(sh::command("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update", "-qq"])
        .and_then(|()| apt(&["install", "-y", "-qq", "libvulkan1", "mesa-vulkan-drivers"]))
        .map_err(|e| format!("lavapipe could not be installed: {e:#}"))?;
    find().ok_or_else(|| format!("mesa-vulkan-drivers left no lavapipe in {DRIVERS}"))
}

fn find() -> Option<PathBuf> {
    let entries = std::fs::read_dir(DRIVERS).ok()?;
    entries
        .flatten()
        .map(|e| e.path())
        .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("lvp_icd")))
}
