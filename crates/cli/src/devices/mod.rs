//! Backends by name. A backend is one file here with one entry in [`BACKENDS`]; nothing else names it.

mod cpu;
mod reference;
mod vulkan;
mod watched;

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use unicorn_core::{Device, DeviceError};

pub use watched::{OpenWatched, Watch, Watched, WatchedDevice};

/// What a backend is told when it opens a device.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// What follows the colon of `--device`, checked by [`Backend::accepts`].
    pub variant: Option<String>,
    /// Worker threads; `None` leaves the choice to the device.
    pub threads: Option<usize>,
    /// The best tier of kernels that a GPU may use; `None` leaves the choice to the device.
    pub tier: Option<Tier>,
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

/// A kind of device that this binary can open.
pub struct Backend {
    /// Name before the colon of `--device`.
    name: &'static str,
    /// One line for `unicorn devices`.
    about: &'static str,
    /// Listed by `unicorn devices`; the reference loops are not, they take minutes to measure.
    listed: bool,
    /// Names that may follow the colon, for messages and completions.
    variants: fn() -> Vec<String>,
    /// Takes [`OpenOptions::tier`].
    tiers: bool,
    /// Opens a device.
    open: fn(&OpenOptions) -> Result<Arc<dyn Device>, DeviceError>,
    /// Opens a device and watches it, where the backend has a driver to watch.
    watch: Option<OpenWatched>,
}

static BACKENDS: [&Backend; 3] = [&cpu::BACKEND, &vulkan::BACKEND, &reference::BACKEND];

impl Backend {
    fn accepts(&self, variant: &str) -> bool {
        (self.variants)().iter().any(|v| v == variant)
    }
}

/// `NAME` or `NAME:VARIANT`, known to exist in this binary, though not yet to be usable on this machine.
#[derive(Clone)]
pub struct DeviceChoice {
    backend: &'static Backend,
    variant: Option<String>,
}

impl DeviceChoice {
    /// Opens the device.
    pub fn open(&self, threads: Option<usize>) -> anyhow::Result<Arc<dyn Device>> {
        self.open_limited(threads, None)
    }

    /// Opens the device with kernels of one tier at most.
    pub fn open_limited(
        &self,
        threads: Option<usize>,
        tier: Option<Tier>,
    ) -> anyhow::Result<Arc<dyn Device>> {
        anyhow::ensure!(tier.is_none() || self.backend.tiers, "device {self} has no tiers of kernels");
        let options = OpenOptions { variant: self.variant.clone(), threads, tier };
        (self.backend.open)(&options).with_context(|| format!("cannot open device {self}"))
    }

    /// What the backend is, for people.
    pub fn about(&self) -> &'static str {
        self.backend.about
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let text = text.to_ascii_lowercase();
        let (name, variant) = text.split_once(':').map_or((text.as_str(), None), |(n, v)| (n, Some(v)));
        let backend = BACKENDS.into_iter().find(|b| b.name == name);
        match (backend, variant) {
            (Some(backend), None) => Ok(DeviceChoice { backend, variant: None }),
            (Some(backend), Some(v)) if backend.accepts(v) => {
                Ok(DeviceChoice { backend, variant: Some(v.to_owned()) })
            }
            _ => Err(format!("no device `{text}`; known: {}", names().join(", "))),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.variant {
            Some(variant) => write!(f, "{}:{variant}", self.backend.name),
            None => f.write_str(self.backend.name),
        }
    }
}

impl std::fmt::Debug for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceChoice({self})")
    }
}

/// Everything that `--device` takes.
pub fn names() -> Vec<String> {
    let with_variants = |b: &&Backend| {
        let variants = (b.variants)();
        let name = b.name;
        std::iter::once(name.to_owned()).chain(variants.into_iter().map(move |v| format!("{name}:{v}")))
    };
    BACKENDS.iter().flat_map(with_variants).collect()
}

/// The choices that `unicorn devices` measures.
pub fn listed() -> impl Iterator<Item = DeviceChoice> {
    BACKENDS.into_iter().filter(|b| b.listed).map(|backend| DeviceChoice { backend, variant: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_to_itself() {
        for name in names() {
            assert_eq!(name.parse::<DeviceChoice>().map(|d| d.to_string()), Ok(name));
        }
        assert_eq!("CPU".parse::<DeviceChoice>().unwrap().to_string(), "cpu");
    }

    #[test]
    fn an_unknown_device_lists_the_known_ones() {
        for name in ["gpu", "cpu:", "cpu:mmx", "reference:avx2", ""] {
            assert!(name.parse::<DeviceChoice>().unwrap_err().contains("cpu:scalar"), "{name}");
        }
    }
}
