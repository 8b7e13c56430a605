//! Recorded profiles of real devices, for tests of kernel selection. `examples/profile.rs` prints those of a machine.

use crate::profile::GpuProfile;

/// Profiles by name. Those of lavapipe and of the 780M are what the drivers say; the 7900 XTX's is what RADV says without the card; the
/// others are written from public documentation and say so in their driver's name.
const RECORDED: [(&str, &str); 7] = [
    ("780m", include_str!("../profiles/radeon-780m.json")),
    ("7900-xtx", include_str!("../profiles/radeon-7900-xtx.json")),
    ("arc-a770", include_str!("../profiles/arc-a770.json")),
    ("arc-b580", include_str!("../profiles/arc-b580.json")),
    ("h100", include_str!("../profiles/h100.json")),
    ("lavapipe-22.3", include_str!("../profiles/lavapipe-22.3.json")),
    ("lavapipe-26.1", include_str!("../profiles/lavapipe-26.1.json")),
];

/// The profile of this name.
///
/// # Panics
/// When there is none, or its file is no profile.
pub(crate) fn recorded(name: &str) -> GpuProfile {
    let (_, json) = RECORDED.iter().find(|(n, _)| *n == name).unwrap();
    serde_json::from_str(json).unwrap()
}

/// All of them.
pub(crate) fn all() -> Vec<GpuProfile> {
    RECORDED.iter().map(|(name, _)| recorded(name)).collect()
}
