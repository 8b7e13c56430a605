//! `vulkan`: the first real GPU, or one by its number in the driver's order, which may be a software driver.

use std::sync::Arc;

use unicorn_core::{Device, DeviceError};
use unicorn_vulkan::{
    Candidate, Context, Library, LibraryOptions, Limit, SharedMessages, SharedStatistics, VulkanDevice,
    VulkanError, VulkanOptions,
};

use super::{Backend, OpenOptions, Tier, Watch, Watched, WatchedDevice};
use crate::config::Config;
use crate::output::say;

pub(super) const BACKEND: Backend = Backend {
    name: "vulkan",
    about: "GPU through Vulkan",
    listed: true,
    variants: || (0..8).map(|i| i.to_string()).collect(),
    tiers: true,
    open,
    watch: Some(watch),
};

fn open(options: &OpenOptions) -> Result<Arc<dyn Device>, DeviceError> {
    open_as(options, LibraryOptions::default()).map(|device| device as Arc<dyn Device>)
}

fn watch(options: &OpenOptions, watch: Watch) -> Result<WatchedDevice, DeviceError> {
    let Watch { kernels, validate, compile_only } = watch;
    let library = LibraryOptions {
        validation: validate,
        statistics: kernels,
        compile_only,
        ..LibraryOptions::default()
    };
    let device = open_as(options, library)?;
    if validate {
        device.prove_validation().map_err(|e| e.into_device_error(&device.profile().name))?;
    }
    let context = device.context();
    let watched = WatchedVulkan { statistics: context.statistics(), messages: context.validation_messages() };
    Ok((device, Box::new(watched)))
}

struct WatchedVulkan {
    statistics: Option<SharedStatistics>,
    messages: Option<SharedMessages>,
}

impl Watched for WatchedVulkan {
    fn kernels(&self) -> anyhow::Result<Option<Vec<String>>> {
        let Some(statistics) = &self.statistics else { return Ok(None) };
        let statistics = statistics.lock().unwrap_or_else(|e| e.into_inner());
        let lines: Result<Vec<String>, _> = statistics.iter().map(serde_json::to_string).collect();
        let mut lines = lines?;
        // Several threads compile, in no order.
        lines.sort();
        Ok(Some(lines))
    }

    fn messages(&self) -> Vec<String> {
        let Some(messages) = &self.messages else { return Vec::new() };
        messages.lock().unwrap_or_else(|e| e.into_inner()).iter().map(ToString::to_string).collect()
    }
}

fn open_as(options: &OpenOptions, library: LibraryOptions) -> Result<Arc<VulkanDevice>, DeviceError> {
    let name = match &options.variant {
        Some(v) => format!("vulkan:{v}"),
        None => "vulkan".to_owned(),
    };
    open_named(options, library, &name).map_err(|e| e.into_device_error(&name))
}

fn open_named(
    options: &OpenOptions,
    library: LibraryOptions,
    name: &str,
) -> Result<Arc<VulkanDevice>, VulkanError> {
    let library = Library::load(library)?;
    let candidates = library.candidates()?;
    let mut chosen = choose(&candidates, options.variant.as_deref().and_then(|v| v.parse().ok()))
        .ok_or_else(|| {
            let found =
                candidates.iter().enumerate().map(|(i, c)| format!("vulkan:{i} is {}", c.profile.name));
            let found = found.collect::<Vec<_>>().join(", ");
            VulkanError::NoDevice {
                asked: name.to_owned(),
                found: if found.is_empty() { "none".into() } else { found },
            }
        })?;
    if let Some(tier) = options.tier {
        let limit = match tier {
            Tier::Cooperative => Limit::Cooperative,
            Tier::Dot => Limit::Dot,
            Tier::Plain => Limit::Plain,
        };
        chosen.profile = limit.apply(&chosen.profile)?;
    }
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
