//! What a backend is to this binary: how its devices are named, opened and watched.

use std::path::Path;
use std::sync::Arc;

use unicorn_core::{DeviceError, Instrument};

use super::faults::Faults;

/// What a backend is told when it opens a device.
#[derive(Clone, Copy)]
pub struct OpenOptions<'a> {
    /// Worker threads; `None` leaves the choice to the device.
    pub threads: Option<usize>,
    /// The best tier of kernels that a GPU may use; `None` leaves the choice to the device.
    pub tier: Option<Tier>,
    /// Little work at a time, for a device that was lost before.
    pub small: bool,
    /// What shall go wrong, to see what becomes of it.
    pub faults: &'a Faults,
    /// Folder for what can be made again, such as compiled pipelines; without one nothing is kept.
    pub cache_folder: Option<&'a Path>,
    /// Gets each line that a person should know about the device.
    pub note: &'a dyn Fn(&str),
}

/// What the matrix products of a GPU are built from, best first.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// Cooperative matrices
    Cooperative,
    /// Packed integer dot products for quantized weights
    Dot,
    /// Plain arithmetic
    Plain,
}

/// What a backend would run on if nobody says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Preference {
    /// The variant to open, itself `None` for the plain name; outer `None` where there is nothing to be taken unasked.
    pub variant: Option<Option<String>>,
    /// Why this one, or why none, for people.
    pub why: String,
}

/// A kind of device that this binary can open. A variant is what follows the colon of `--device`, `None` being the plain name.
pub struct Backend {
    /// Name before the colon of `--device`.
    pub name: &'static str,
    /// One line for `unicorn devices`.
    pub about: &'static str,
    /// The variants that `unicorn devices` lists on this machine.
    pub present: fn() -> Vec<Option<String>>,
    /// Names that may follow the colon, for messages and completions.
    pub variants: fn() -> Vec<String>,
    /// Takes [`OpenOptions::tier`].
    pub tiers: bool,
    /// Whether something may follow the colon.
    pub accepts: fn(&str) -> bool,
    /// What to take where no device was named.
    pub preferred: fn() -> Preference,
    /// All variants that may be taken where no device was named; found without opening one.
    pub unasked: fn() -> Vec<Option<String>>,
    /// The variant to run on where the device cannot do without a kernel that its selftest found wrong.
    pub instead: Option<&'static str>,
    /// A number that changes when the kernels do, as far as the program's version does not tell.
    pub kernels: fn() -> u64,
    /// Opens a variant that [`Backend::accepts`] took.
    pub open: Open,
    /// Opens a variant and watches it, where the backend has a driver to watch.
    pub watch: Option<OpenWatched>,
}

/// How a backend opens a device.
pub type Open = fn(Option<&str>, &OpenOptions<'_>) -> Result<Arc<dyn Instrument>, DeviceError>;

/// What is to be watched while a device runs: for `unicorn selftest`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// Collect what the driver tells about compiled kernels.
    pub kernels: bool,
    /// Check every driver call, and collect what is said.
    pub validate: bool,
    /// Compile kernels, execute none.
    pub compile_only: bool,
}

/// What was seen; readable when the device is gone, which is when the last messages come.
pub trait Watched {
    /// One JSON object per compiled kernel; `None` where the driver tells nothing about them.
    fn kernels(&self) -> anyhow::Result<Option<Vec<String>>>;
    /// Complaints about driver calls.
    fn messages(&self) -> Vec<String>;
}

/// An open device with what watches it.
pub type WatchedDevice = (Arc<dyn Instrument>, Box<dyn Watched>);

/// How a backend opens a device that is watched.
pub type OpenWatched = fn(Option<&str>, &OpenOptions<'_>, Watch) -> Result<WatchedDevice, DeviceError>;
