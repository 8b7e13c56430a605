//! What was found out about a device and is worth keeping: its measured limits, the outcome of its selftest, the planner's figures and how
//! right its predictions were. One small JSON file each, in the cache folder, for one device, driver and build of the kernels; anything
//! unreadable counts as absent.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use unicorn_core::{DeviceProfile, Roofline};

use crate::planner::figures::{Calibration, Grade};

/// What a finding holds for: another driver, another number of threads or other kernels make it void.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    identity: String,
    computing: String,
}

impl Key {
    /// The key of a device as opened. `kernels` changes whenever the backend's kernels do. The name on the command line is no part of it:
    /// `vulkan` and `vulkan:0` may be the same device.
    pub fn new(profile: &DeviceProfile, kernels: u64) -> Key {
        let (kind, description, workers) = (profile.kind, &profile.description, profile.workers);
        let features = profile.features.join(", ");
        let version = env!("CARGO_PKG_VERSION");
        let with = |workers: &str| {
            format!("{kind}; {description}; {features}; {workers}unicorn {version}; kernels {kernels:016x}")
        };
        Key { identity: with(&format!("{workers} workers; ")), computing: with("") }
    }

    /// What the device computes with, all that may change a result and nothing else.
    pub fn computing(&self) -> &str {
        &self.computing
    }

    /// A word that differs for every identity.
    pub fn short(&self) -> String {
        format!("{:016x}", fnv(self.identity.bytes()))
    }

    /// A file name that people recognize and that differs for every identity.
    fn file(&self, what: &str) -> String {
        let hash = self.short();
        let mut words = self.identity.split("; ").take(2).collect::<Vec<_>>().join("-");
        words.retain(|c| c.is_ascii_alphanumeric() || c == '-' || c == ' ');
        words.truncate(48);
        format!("{}-{hash}.{what}.json", words.trim().replace(' ', "-").to_ascii_lowercase())
    }
}

fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// A finding with the device that it is about and the time when it was made.
#[derive(Serialize, Deserialize)]
struct Kept<T> {
    identity: String,
    unix_seconds: u64,
    finding: T,
}

/// A finding read back.
#[derive(Clone, PartialEq, Debug)]
pub struct Found<T> {
    /// What was found.
    pub finding: T,
    /// When.
    pub at: SystemTime,
}

/// [`Roofline`] as it is written.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
struct Limits {
    read_bytes_per_second: f64,
    copy_bytes_per_second: Option<f64>,
    integer_ops_per_second: f64,
    float_ops_per_second: f64,
    matrix_ops_per_second: Option<f64>,
}

/// Outcome of a selftest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Cases that ran.
    pub cases: usize,
    /// Cases that came out wrong.
    pub cases_wrong: usize,
    /// Seed of the random weights and inputs.
    pub seed: u64,
    /// Kernels not to be trusted.
    pub wrong: Vec<Wrong>,
}

/// A kernel that computes something else than it should.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wrong {
    /// Op and kernel, as profiles name them.
    pub kernel: String,
    /// The cases that show it.
    pub cases: Vec<String>,
}

/// What was found wrong by this process while it served: it holds also where nothing is kept.
static HERE: Mutex<Vec<(Key, Found<Verdict>)>> = Mutex::new(Vec::new());

/// The folder of findings; without one nothing is kept.
#[derive(Clone, Debug)]
pub struct DeviceCache {
    folder: Option<PathBuf>,
}

impl DeviceCache {
    /// Below the folder for what can be found out again.
    pub fn new(cache_folder: Option<&Path>) -> DeviceCache {
        DeviceCache { folder: cache_folder.map(|c| c.join("devices")) }
    }

    /// The limits measured last.
    pub fn limits(&self, key: &Key) -> Option<Found<Roofline>> {
        let found: Found<Limits> = self.read(key, "limits")?;
        let l = found.finding;
        let sound = |rate: f64| rate.is_finite() && rate > 0.0;
        let rates = [l.read_bytes_per_second, l.integer_ops_per_second, l.float_ops_per_second];
        let optional = [l.copy_bytes_per_second, l.matrix_ops_per_second];
        if !rates.into_iter().chain(optional.into_iter().flatten()).all(sound) {
            return None;
        }
        let finding = Roofline {
            read_bytes_per_second: l.read_bytes_per_second,
            integer_ops_per_second: l.integer_ops_per_second,
            float_ops_per_second: l.float_ops_per_second,
            matrix_ops_per_second: l.matrix_ops_per_second,
            copy_bytes_per_second: l.copy_bytes_per_second,
        };
        Some(Found { finding, at: found.at })
    }

    /// Keeps measured limits.
    pub fn keep_limits(&self, key: &Key, roof: &Roofline) -> anyhow::Result<()> {
        let limits = Limits {
            read_bytes_per_second: roof.read_bytes_per_second,
            copy_bytes_per_second: roof.copy_bytes_per_second,
            integer_ops_per_second: roof.integer_ops_per_second,
            float_ops_per_second: roof.float_ops_per_second,
            matrix_ops_per_second: roof.matrix_ops_per_second,
        };
        self.write(key, "limits", limits)
    }

    /// The outcome of the last selftest, with what canaries have found since.
    pub fn verdict(&self, key: &Key) -> Option<Found<Verdict>> {
        let here = HERE.lock().unwrap_or_else(PoisonError::into_inner);
        let here = here.iter().rev().find(|(of, _)| of == key).map(|(_, found)| found.clone());
        here.or_else(|| self.read(key, "selftest"))
    }

    /// Keeps the outcome of a selftest.
    pub fn keep_verdict(&self, key: &Key, verdict: &Verdict) -> anyhow::Result<()> {
        self.write(key, "selftest", verdict)
    }

    /// Keeps what is not to be used any more, for this process even where nothing can be written.
    pub fn quarantine(&self, key: &Key, verdict: &Verdict) -> anyhow::Result<()> {
        let found = Found { finding: verdict.clone(), at: SystemTime::now() };
        let mut here = HERE.lock().unwrap_or_else(PoisonError::into_inner);
        here.retain(|(of, _)| of != key);
        here.push((key.clone(), found));
        drop(here);
        self.keep_verdict(key, verdict)
    }

    /// The planner's figures.
    pub fn calibration(&self, key: &Key) -> Option<Found<Calibration>> {
        self.read(key, "calibration")
    }

    /// Keeps the planner's figures.
    pub fn keep_calibration(&self, key: &Key, calibration: &Calibration) -> anyhow::Result<()> {
        self.write(key, "calibration", calibration)
    }

    /// How right predictions were, oldest first.
    pub fn grades(&self, key: &Key) -> Option<Found<Vec<Grade>>> {
        self.read(key, "grades")
    }

    /// Keeps how right predictions were.
    pub fn keep_grades(&self, key: &Key, grades: &[Grade]) -> anyhow::Result<()> {
        self.write(key, "grades", grades)
    }

    /// Forgets how right predictions were: they rested on other figures.
    pub fn forget_grades(&self, key: &Key) {
        if let Some(folder) = &self.folder {
            // Without the file there is nothing to forget.
            let _ = std::fs::remove_file(folder.join(key.file("grades")));
        }
    }

    fn read<T: DeserializeOwned>(&self, key: &Key, what: &str) -> Option<Found<T>> {
        let path = self.folder.as_ref()?.join(key.file(what));
        let kept: Kept<T> = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(kept.unix_seconds))?;
        (kept.identity == key.identity).then_some(Found { finding: kept.finding, at })
    }

    /// Writes whole or not at all.
    fn write<T: Serialize>(&self, key: &Key, what: &str, finding: T) -> anyhow::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let kept = Kept { identity: key.identity.clone(), unix_seconds, finding };
        let path = folder.join(key.file(what));
        let text = serde_json::to_vec_pretty(&kept)?;
        let written = std::fs::create_dir_all(folder)
            .and_then(|()| tempfile::NamedTempFile::new_in(folder))
            .and_then(|mut file| file.write_all(&text).map(|()| file))
            .and_then(|file| file.persist(&path).map(drop).map_err(|failed| failed.error));
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

/// `just now`, `5 minutes ago`, `3 days ago`.
pub fn ago(at: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(at).map_or(0, |d| d.as_secs());
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use unicorn_core::Device;
    use unicorn_cpu::ReferenceDevice;

    use super::*;

    fn key(kernels: u64) -> Key {
        Key::new(ReferenceDevice::new().profile(), kernels)
    }

    fn cache(folder: &tempfile::TempDir) -> DeviceCache {
        DeviceCache { folder: Some(folder.path().join("devices")) }
    }

    #[test]
    fn findings_come_back_for_the_same_kernels_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder);
        let roof = Roofline {
            read_bytes_per_second: 1.5e9,
            integer_ops_per_second: 3e9,
            float_ops_per_second: 2e9,
            matrix_ops_per_second: None,
            copy_bytes_per_second: Some(1e9),
        };
        assert_eq!(cache.limits(&key(1)), None);
        cache.keep_limits(&key(1), &roof).unwrap();
        assert_eq!(cache.limits(&key(1)).unwrap().finding, roof);
        assert_eq!(cache.limits(&key(2)), None);
        let wrong = vec![Wrong { kernel: "ffn_down linear_q4_0".into(), cases: vec!["ffn/q4_0".into()] }];
        let verdict = Verdict { cases: 3, cases_wrong: 1, seed: 7, wrong };
        cache.keep_verdict(&key(1), &verdict).unwrap();
        assert_eq!(cache.verdict(&key(1)).unwrap().finding, verdict);
        assert_eq!(std::fs::read_dir(folder.path().join("devices")).unwrap().count(), 2);
    }

    #[test]
    fn damaged_or_senseless_files_count_as_absent() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder);
        let zero = Roofline {
            read_bytes_per_second: 0.0,
            integer_ops_per_second: 1.0,
            float_ops_per_second: 1.0,
            matrix_ops_per_second: None,
            copy_bytes_per_second: None,
        };
        cache.keep_limits(&key(1), &zero).unwrap();
        assert_eq!(cache.limits(&key(1)), None);
        std::fs::write(folder.path().join("devices").join(key(1).file("selftest")), b"{").unwrap();
        assert_eq!(cache.verdict(&key(1)), None);
        assert!(DeviceCache { folder: None }.keep_limits(&key(1), &zero).is_ok());
    }

    #[test]
    fn ages_are_told_in_whole_units() {
        let before = |seconds| ago(SystemTime::now() - Duration::from_secs(seconds));
        assert_eq!(before(5), "just now");
        assert_eq!(before(70), "1 minute ago");
        assert_eq!(before(3 * 86_400 + 5), "3 days ago");
    }
}
