//! Devices by the names that `--device` takes.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use unicorn_core::Instrument;

use super::backend::{Backend, OpenOptions, Watch, WatchedDevice};
use super::{cache, cpu, reference, vulkan};

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

    /// Opens the device with all its kernels up to the tier asked for, whatever a selftest said about them.
    pub fn open(&self, options: &OpenOptions<'_>) -> anyhow::Result<Arc<dyn Instrument>> {
        self.check_tier(options)?;
        let device = (self.backend.open)(self.variant.as_deref(), options)
            .with_context(|| format!("cannot open device {self}"))?;
        Ok(options.faults.around(device))
    }

    /// Opens the device as [`DeviceChoice::open`] does, and watches its driver.
    ///
    /// Errors also where there is no driver to watch, or one that does not tell what is asked.
    pub fn open_watched(&self, options: &OpenOptions<'_>, watch: Watch) -> anyhow::Result<WatchedDevice> {
        let open = self.backend.watch.with_context(|| format!("{self} has no driver to watch"))?;
        self.check_tier(options)?;
        let (device, watched) = open(self.variant.as_deref(), options, watch)
            .with_context(|| format!("cannot open device {self}"))?;
        anyhow::ensure!(
            !watch.kernels || watched.kernels()?.is_some(),
            "the driver of {} tells nothing about compiled kernels",
            device.profile().description
        );
        Ok((device, watched))
    }

    fn check_tier(&self, options: &OpenOptions<'_>) -> anyhow::Result<()> {
        anyhow::ensure!(
            options.tier.is_none() || self.backend.tiers,
            "device {self} has no tiers of kernels"
        );
        Ok(())
    }

    /// The device to run on in place of this one, where it has kernels that it cannot do without and that are wrong.
    pub fn instead(&self) -> Option<DeviceChoice> {
        let other = DeviceChoice { backend: self.backend, variant: Some(self.backend.instead?.to_owned()) };
        (other.variant != self.variant).then_some(other)
    }

    /// What the backend is, for people.
    pub fn about(&self) -> &'static str {
        self.backend.about
    }

    /// Under which findings about the device are kept.
    pub fn key(&self, device: &dyn Instrument) -> cache::Key {
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
fn names() -> Vec<String> {
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

/// All devices that may be taken where none was named: real GPUs and the processor.
pub fn unasked() -> impl Iterator<Item = DeviceChoice> {
    let of = |backend: &'static Backend| {
        (backend.unasked)().into_iter().map(move |variant| DeviceChoice { backend, variant })
    };
    PREFERRED.into_iter().flat_map(of)
}

/// What to try in turn where no device was named, with why; `Err` says why a backend has nothing to be taken unasked.
pub fn preferred() -> impl Iterator<Item = Result<(DeviceChoice, String), String>> {
    PREFERRED.into_iter().map(|backend| {
        let preference = (backend.preferred)();
        let choice = preference.variant.map(|variant| DeviceChoice { backend, variant });
        choice.map(|choice| (choice, preference.why.clone())).ok_or(preference.why)
    })
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
