//! Devices whose drivers are watched while they run: for `unicorn selftest`.

use std::sync::Arc;

use anyhow::Context;
use unicorn_core::{Device, DeviceError};

use super::{DeviceChoice, OpenOptions, Tier};

/// What a backend is asked to watch.
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
pub type WatchedDevice = (Arc<dyn Device>, Box<dyn Watched>);

/// How a backend opens a device that is watched.
pub type OpenWatched = fn(&OpenOptions, Watch) -> Result<WatchedDevice, DeviceError>;

impl DeviceChoice {
    /// Opens the device and watches it.
    pub fn open_watched(&self, watch: Watch, tier: Option<Tier>) -> anyhow::Result<WatchedDevice> {
        let open = self.backend.watch.with_context(|| format!("{self} has no driver to watch"))?;
        let options = OpenOptions { variant: self.variant.clone(), threads: None, tier };
        let (device, watched) =
            open(&options, watch).with_context(|| format!("cannot open device {self}"))?;
        anyhow::ensure!(
            !watch.kernels || watched.kernels()?.is_some(),
            "the driver of {} tells nothing about compiled kernels",
            device.profile().description
        );
        Ok((device, watched))
    }
}
