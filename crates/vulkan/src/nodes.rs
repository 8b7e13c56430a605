//! Whether the system shows a GPU at all, told without loading its drivers: that maps a software driver of some 60 MB where there is one.

use std::path::Path;

/// What the names of the device nodes begin with that drivers of GPUs open on Linux, below `/dev`: DRM (AMD, Intel, most others), NVIDIA,
/// WSL, Adreno, Mali, PowerVR, Tegra.
const NODES: [(&str, &str); 9] = [
    ("dri", "renderD"),
    ("dri", "card"),
    ("", "nvidia"),
    ("", "dxg"),
    ("", "kgsl"),
    ("", "mali"),
    ("", "pvr"),
    ("", "nvgpu"),
    ("", "nvhost-gpu"),
];

/// Whether a GPU may be here: on Linux, whether it has a device node; elsewhere, and where `/dev` cannot be read, always.
pub fn gpu_possible() -> bool {
    !cfg!(target_os = "linux") || has_node(Path::new("/dev"))
}

fn has_node(dev: &Path) -> bool {
    let begins = |folder: &str, with: &str| {
        let Ok(entries) = std::fs::read_dir(dev.join(folder)) else { return folder.is_empty() };
        entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with(with))
    };
    NODES.iter().any(|(folder, with)| begins(folder, with))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_a_gpu_is_seen_and_nothing_else_taken_for_one() {
        let dev = tempfile::tempdir().unwrap();
        std::fs::write(dev.path().join("null"), "").unwrap();
        assert!(!has_node(dev.path()));
        std::fs::create_dir(dev.path().join("dri")).unwrap();
        assert!(!has_node(dev.path()));
        std::fs::write(dev.path().join("dri/renderD128"), "").unwrap();
        assert!(has_node(dev.path()));

        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("nvidiactl"), "").unwrap();
        assert!(has_node(other.path()));
        // What cannot be read may hold one.
        assert!(has_node(&other.path().join("absent")));
    }
}
