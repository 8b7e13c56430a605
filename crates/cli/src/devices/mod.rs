//! Backends by name. A backend is one file here with one entry in [`BACKENDS`]; nothing else names it.

pub mod cache;
mod cpu;
mod opened;
mod reference;
mod vulkan;
mod watched;

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use unicorn_core::{Device, DeviceError};

pub use opened::{open, open_as_is, open_limited, open_watched};
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

/// What a backend would run on if nobody says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Preference {
    /// The variant to open, itself `None` for the plain name; outer `None` where there is nothing to be taken unasked.
    pub variant: Option<Option<String>>,
    /// Why this one, or why none, for people.
    pub why: String,
}

/// A kind of device that this binary can open.
pub struct Backend {
    /// Name before the colon of `--device`.
    name: &'static str,
    /// One line for `unicorn devices`.
    about: &'static str,
    /// The variants that `unicorn devices` lists on this machine, `None` being the plain name.
    present: fn() -> Vec<Option<String>>,
    /// Names that may follow the colon, for messages and completions.
    variants: fn() -> Vec<String>,
    /// Takes [`OpenOptions::tier`].
    tiers: bool,
    /// Whether something may follow the colon.
    accepts: fn(&str) -> bool,
    /// What to take where no device was named.
    preferred: fn() -> Preference,
    /// The variant to run on where the device cannot do without a kernel that its selftest found wrong.
    instead: Option<&'static str>,
    /// A number that changes when the kernels do, as far as the program's version does not tell.
    kernels: fn() -> u64,
    /// Opens a device.
    open: fn(&OpenOptions) -> Result<Arc<dyn Device>, DeviceError>,
    /// Opens a device and watches it, where the backend has a driver to watch.
    watch: Option<OpenWatched>,
}

static BACKENDS: [&Backend; 3] = [&cpu::BACKEND, &vulkan::BACKEND, &reference::BACKEND];

/// Where no device was named: the first of these that has something.
static PREFERRED: [&Backend; 2] = [&vulkan::BACKEND, &cpu::BACKEND];

/// `NAME` or `NAME:VARIANT`, known to exist in this binary, though not yet to be usable on this machine.
#[derive(Clone)]
pub struct DeviceChoice {
    backend: &'static Backend,
    variant: Option<String>,
}

impl DeviceChoice {
    /// The processor's cores at their widest level: what other devices are compared with.
    pub fn cpu() -> DeviceChoice {
        DeviceChoice { backend: &cpu::BACKEND, variant: None }
    }

    /// Opens the device as its kernels are, whatever a selftest said about them; see [`open`] for the rest.
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

    /// The device to run on in place of this one, where it has kernels that it cannot do without and that are wrong.
    fn instead(&self) -> Option<DeviceChoice> {
        let other = DeviceChoice { backend: self.backend, variant: Some(self.backend.instead?.to_owned()) };
        (other.variant != self.variant).then_some(other)
    }

    /// What the backend is, for people.
    pub fn about(&self) -> &'static str {
        self.backend.about
    }

    /// Under which findings about the device are kept.
    pub fn key(&self, device: &dyn Device) -> cache::Key {
        cache::Key::new(device.profile(), (self.backend.kernels)())
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
            (Some(backend), Some(v)) if (backend.accepts)(v) => {
                Ok(DeviceChoice { backend, variant: Some(v.to_owned()) })
            }
            _ => Err(format!(
                "no device `{text}`; there are {}, and vulkan:NAME by a part of a GPU's name; `unicorn devices` lists this machine's",
                names().join(", ")
            )),
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

/// Everything that `--device` takes, but for parts of names.
pub fn names() -> Vec<String> {
    let with_variants = |b: &&Backend| {
        let variants = (b.variants)();
        let name = b.name;
        std::iter::once(name.to_owned()).chain(variants.into_iter().map(move |v| format!("{name}:{v}")))
    };
    BACKENDS.iter().flat_map(with_variants).collect()
}

/// The devices of this machine that `unicorn devices` lists.
pub fn present() -> impl Iterator<Item = DeviceChoice> {
    let of = |backend: &'static Backend| {
        (backend.present)().into_iter().map(move |variant| DeviceChoice { backend, variant })
    };
    BACKENDS.into_iter().flat_map(of)
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
        assert_eq!("vulkan:H100".parse::<DeviceChoice>().unwrap().to_string(), "vulkan:h100");
    }

    #[test]
    fn an_unknown_device_lists_the_known_ones() {
        for name in ["gpu", "cpu:", "cpu:mmx", "reference:avx2", "vulkan:", ""] {
            assert!(name.parse::<DeviceChoice>().unwrap_err().contains("cpu:scalar"), "{name}");
        }
    }
}
