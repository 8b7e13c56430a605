//! `vulkan`: the first real GPU, or one by its number in the driver's order, which may be a software driver.

use std::sync::Arc;

use unicorn_core::{Device, DeviceError};
use unicorn_vulkan::{Candidate, Context, Library, LibraryOptions, VulkanDevice, VulkanError, VulkanOptions};

use super::{Backend, OpenOptions};
use crate::config::Config;
use crate::output::say;

pub(super) const BACKEND: Backend = Backend {
    name: "vulkan",
    about: "GPU through Vulkan",
    listed: true,
    variants: || (0..8).map(|i| i.to_string()).collect(),
    open,
};

fn open(options: &OpenOptions) -> Result<Arc<dyn Device>, DeviceError> {
    let name = match &options.variant {
        Some(v) => format!("vulkan:{v}"),
        None => "vulkan".to_owned(),
    };
    open_named(options, &name).map_err(|e| e.into_device_error(&name))
}

fn open_named(options: &OpenOptions, name: &str) -> Result<Arc<dyn Device>, VulkanError> {
    let library = Library::load(LibraryOptions::default())?;
    let candidates = library.candidates()?;
    let chosen =
        choose(&candidates, options.variant.as_deref().and_then(|v| v.parse().ok())).ok_or_else(|| {
            let found =
                candidates.iter().enumerate().map(|(i, c)| format!("vulkan:{i} is {}", c.profile.name));
            let found = found.collect::<Vec<_>>().join(", ");
            VulkanError::NoDevice {
                asked: name.to_owned(),
                found: if found.is_empty() { "none".into() } else { found },
            }
        })?;
    let context = Context::open(library, &chosen)?;
    let cache_folder = Config::cache_folder().map(|folder| folder.join("vulkan"));
    let options = VulkanOptions { cache_folder, ..VulkanOptions::default() };
    let device = VulkanDevice::open(context, name, &options)?;
    for note in device.notes() {
        say!("{note}");
    }
    Ok(Arc::new(device))
}

/// By number; else the first real GPU, discrete before integrated. A software driver is never taken unasked.
fn choose(candidates: &[Candidate], number: Option<usize>) -> Option<Candidate> {
    if let Some(number) = number {
        return candidates.get(number).cloned();
    }
    let real = candidates.iter().filter(|c| !c.profile.software && c.missing().is_empty());
    real.min_by_key(|c| c.profile.integrated).cloned()
}
