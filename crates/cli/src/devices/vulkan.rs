//! `vulkan`: the fastest real GPU; or one by its number in the driver's order or by a part of its name, which may be a software driver.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex};

use unicorn_core::{Device, DeviceError, Instrument};
use unicorn_vulkan::{
    Candidate, Context, GpuProfile, Library, LibraryOptions, Limit, SharedMessages, SharedStatistics,
    VulkanDevice, VulkanError, VulkanOptions,
};

use super::backend::{Backend, OpenOptions, Preference, Tier, Watch, Watched, WatchedDevice};

pub(super) const BACKEND: Backend = Backend {
    name: "vulkan",
    about: "GPU through Vulkan",
    present,
    variants: || vec!["0".to_owned(), "1".to_owned()],
    accepts: |variant| !variant.trim().is_empty(),
    preferred,
    unasked,
    instead: None,
    kernels: unicorn_vulkan::shaders::fingerprint,
    tiers: true,
    open,
    watch: Some(watch),
};

/// GPU seconds of a submission where a device was lost before, which may have been a watchdog's doing.
const SMALL_SECONDS: f64 = 0.03;

/// What was found when the device to take was chosen: loading the drivers a second time would cost a start some tens of milliseconds.
static FOUND: Mutex<Option<(Library, Vec<Candidate>)>> = Mutex::new(None);

/// How devices are opened where nobody asks for more: with names for a debugger that may be listening.
const OPTIONS: LibraryOptions =
    LibraryOptions { labels: true, validation: false, statistics: false, compile_only: false };

fn candidates(options: LibraryOptions) -> Result<(Library, Vec<Candidate>), VulkanError> {
    if options == OPTIONS
        && let Some(found) = FOUND.lock().unwrap_or_else(|e| e.into_inner()).take()
    {
        return Ok(found);
    }
    let library = Library::load(options)?;
    let candidates = library.candidates()?;
    Ok((library, candidates))
}

fn present() -> Vec<Option<String>> {
    let count = candidates(OPTIONS).map_or(0, |(_, c)| c.len());
    // Without any, opening says what is missing.
    if count == 0 { vec![None] } else { (0..count).map(|i| Some(i.to_string())).collect() }
}

/// Every real GPU that has what the kernels need.
fn unasked() -> Vec<Option<String>> {
    if !unicorn_vulkan::gpu_possible() {
        return Vec::new();
    }
    let Ok((library, candidates)) = candidates(OPTIONS) else { return Vec::new() };
    let real = |i: &usize| !candidates[*i].profile.software && candidates[*i].missing().is_empty();
    let found = (0..candidates.len()).filter(real).map(|i| Some(i.to_string())).collect();
    *FOUND.lock().unwrap_or_else(|e| e.into_inner()) = Some((library, candidates));
    found
}

/// The fastest real GPU, if there is one that has what the kernels need.
fn preferred() -> Preference {
    if !unicorn_vulkan::gpu_possible() {
        return Preference { variant: None, why: "no device node of a GPU below /dev".to_owned() };
    }
    let (library, candidates) = match candidates(OPTIONS) {
        Ok(found) => found,
        Err(error) => return Preference { variant: None, why: format!("Vulkan cannot be used: {error}") },
    };
    let profiles: Vec<&GpuProfile> = candidates.iter().map(|c| &c.profile).collect();
    let usable = |i: usize| candidates[i].missing().is_empty();
    if let Some(i) = fastest(&profiles, usable) {
        *FOUND.lock().unwrap_or_else(|e| e.into_inner()) = Some((library, candidates));
        return Preference { variant: Some(Some(i.to_string())), why: "the fastest GPU here".to_owned() };
    }
    let software = candidates.iter().position(|c| c.profile.software);
    let lacking = candidates.iter().find(|c| !c.profile.software);
    let why = match (lacking, software) {
        (Some(c), _) => format!("{} lacks {}", c.profile.name, c.missing().join(", ")),
        (None, Some(i)) => format!("no GPU; the software driver vulkan:{i} is used only when named"),
        (None, None) => "no GPU".to_owned(),
    };
    Preference { variant: None, why }
}

fn open(variant: Option<&str>, options: &OpenOptions<'_>) -> Result<Arc<dyn Instrument>, DeviceError> {
    open_as(variant, options, OPTIONS).map(|device| device as Arc<dyn Instrument>)
}

fn watch(
    variant: Option<&str>,
    options: &OpenOptions<'_>,
    watch: Watch,
) -> Result<WatchedDevice, DeviceError> {
    let Watch { kernels, validate, compile_only } = watch;
    let library = LibraryOptions { validation: validate, statistics: kernels, compile_only, ..OPTIONS };
    let device = open_as(variant, options, library)?;
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

fn open_as(
    variant: Option<&str>,
    options: &OpenOptions<'_>,
    library: LibraryOptions,
) -> Result<Arc<VulkanDevice>, DeviceError> {
    let name = match variant {
        Some(v) => format!("vulkan:{v}"),
        None => "vulkan".to_owned(),
    };
    open_named(&name, variant, options, library).map_err(|e| e.into_device_error(&name))
}

fn open_named(
    name: &str,
    variant: Option<&str>,
    options: &OpenOptions<'_>,
    library: LibraryOptions,
) -> Result<Arc<VulkanDevice>, VulkanError> {
    let (library, candidates) = candidates(library)?;
    let profiles: Vec<&GpuProfile> = candidates.iter().map(|c| &c.profile).collect();
    let usable = |i: usize| candidates[i].missing().is_empty();
    let number = choose(&profiles, usable, variant).ok_or_else(|| {
        let software =
            |p: &GpuProfile| if p.software { ", a software driver that is used only when named" } else { "" };
        let found = profiles.iter().enumerate();
        let found = found.map(|(i, p)| format!("vulkan:{i} is {}{}", p.name, software(p)));
        let found = found.collect::<Vec<_>>().join(", ");
        let found = if found.is_empty() { "none".into() } else { found };
        VulkanError::NoDevice { asked: name.to_owned(), found }
    })?;
    let mut chosen = candidates[number].clone();
    if let Some(tier) = options.tier {
        let limit = match tier {
            Tier::Cooperative => Limit::Cooperative,
            Tier::Dot => Limit::Dot,
            Tier::Plain => Limit::Plain,
        };
        chosen.profile = limit.apply(&chosen.profile)?;
    }
    // What runs is named by number, whatever it was asked for as.
    let context = Context::open(library, &chosen)?;
    let cache_folder = options.cache_folder.map(|folder| folder.join("vulkan"));
    let submit_seconds_max = options.small.then_some(SMALL_SECONDS);
    let vulkan = VulkanOptions { cache_folder, submit_seconds_max };
    let device = VulkanDevice::open(context, &format!("vulkan:{number}"), &vulkan)?;
    device.notes().iter().for_each(|note| (options.note)(note));
    Ok(Arc::new(device))
}

/// By number; by a part of the name, real GPUs first; else the fastest real one. A software driver is never taken unasked.
fn choose(profiles: &[&GpuProfile], usable: impl Fn(usize) -> bool, wanted: Option<&str>) -> Option<usize> {
    let Some(wanted) = wanted else { return fastest(profiles, usable) };
    if let Ok(number) = wanted.parse::<usize>() {
        return (number < profiles.len()).then_some(number);
    }
    let wanted = wanted.to_lowercase();
    let named = |i: usize| profiles[i].name.to_lowercase().contains(&wanted);
    fastest(profiles, |i| named(i) && usable(i)).or_else(|| (0..profiles.len()).find(|i| named(*i)))
}

/// Discrete before integrated, then the one with the most memory of its own; the first of equals.
fn fastest(profiles: &[&GpuProfile], fits: impl Fn(usize) -> bool) -> Option<usize> {
    let memory = |p: &GpuProfile| p.heaps.iter().filter(|h| h.device_local).map(|h| h.bytes).sum::<u64>();
    let real = (0..profiles.len()).filter(|i| !profiles[*i].software && fits(*i));
    real.min_by_key(|i| (profiles[*i].integrated, Reverse(memory(profiles[*i]))))
}

#[cfg(test)]
mod tests {
    use unicorn_vulkan::Heap;

    use super::*;

    fn gpu(name: &str, integrated: bool, software: bool, gigabytes: u64) -> GpuProfile {
        GpuProfile {
            name: name.into(),
            driver: String::new(),
            vendor: 0,
            integrated,
            software,
            subgroup_min: 32,
            subgroup_max: 32,
            subgroup_default: 32,
            subgroup_size_control: true,
            shared_bytes: 32 << 10,
            workgroup_invocations: 1024,
            workgroup_subgroups: 32,
            push_bytes: 128,
            allocation_bytes: 1 << 32,
            f16: true,
            integer_dot: true,
            matrices: Vec::new(),
            matrix2: false,
            heaps: vec![Heap { bytes: gigabytes << 30, device_local: true }],
            timestamp_ns: 1.0,
            cores: None,
            avoid: Vec::new(),
        }
    }

    #[test]
    fn the_fastest_real_gpu_is_taken_and_never_a_software_driver() {
        let all = [
            gpu("llvmpipe", false, true, 64),
            gpu("Radeon 780M", true, false, 32),
            gpu("NVIDIA A2", false, false, 16),
            gpu("NVIDIA H100 80GB", false, false, 80),
        ];
        let of = |profiles: &[&GpuProfile], wanted| choose(profiles, |_| true, wanted);
        let every: Vec<&GpuProfile> = all.iter().collect();
        assert_eq!(of(&every, None), Some(3));
        assert_eq!(of(&every[..2], None), Some(1));
        assert_eq!(of(&every[..1], None), None);
        assert_eq!(choose(&every, |i| i != 3, None), Some(2));
    }

    #[test]
    fn numbers_and_parts_of_names() {
        let all = [gpu("llvmpipe", false, true, 64), gpu("NVIDIA A2", false, false, 16)];
        let every: Vec<&GpuProfile> = all.iter().collect();
        let of = |wanted| choose(&every, |_| true, Some(wanted));
        assert_eq!((of("0"), of("1"), of("2")), (Some(0), Some(1), None));
        assert_eq!((of("nvidia"), of("LLVM"), of("radeon")), (Some(1), Some(0), None));
    }
}
