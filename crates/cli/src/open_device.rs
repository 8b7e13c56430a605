//! From what `--device` says, or does not say, to an open device that avoids what a selftest found wrong.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use unicorn_core::{DeviceKind, DeviceOptions, Instrument, Roofline};
use unicorn_engine::PlaceRules;

use crate::args::DeviceArgs;
use crate::config::Config;
use crate::devices::cache::{DeviceCache, Key, ago};
use crate::devices::{DeviceChoice, OpenOptions, Tier, Watch, WatchedDevice, preferred};
use crate::exit::{describe, usage};
use crate::output::{say, say_styled};
use crate::parse::OrAuto;

/// An open device with what it was told.
pub struct Opened {
    /// The device.
    pub device: Arc<dyn Instrument>,
    /// Under which findings about it are kept.
    pub key: Key,
    /// How it chooses kernels.
    pub options: DeviceOptions,
    /// How it is named.
    pub choice: DeviceChoice,
}

/// Limits older than this are measured anew before anything is compared with them.
const LIMITS_AGE_MAX: Duration = Duration::from_secs(3600);

impl Opened {
    /// The device's limits, measured now or within the last hour.
    pub fn limits(&self, config: &Config) -> anyhow::Result<Roofline> {
        let cache = DeviceCache::new(config.cache_dir.as_deref());
        let recent = |at: SystemTime| at.elapsed().is_ok_and(|age| age < LIMITS_AGE_MAX);
        if let Some(found) = cache.limits(&self.key).filter(|found| recent(found.at)) {
            return Ok(found.finding);
        }
        let roof = self.device.measure()?;
        // Keeping it is a convenience: what is measured counts all the same.
        if let Err(error) = cache.keep_limits(&self.key, &roof)
            && config.explains()
        {
            say!("{}", describe(&error));
        }
        Ok(roof)
    }

    /// Bytes that models may take of the device's memory.
    pub fn capacity_bytes(&self) -> u64 {
        let profile = self.device.profile();
        let host = || unicorn_cpu::simd::available().filter(|_| profile.unified_memory);
        let rooms = self.device.room().into_iter().chain(host());
        rooms.map(|room| room.bytes).min().unwrap_or(profile.memory_bytes)
    }
}

/// Opens the device that was named, or else the fastest GPU, or else the CPU, and says which. It passes over kernels that its selftest
/// found wrong, and that is said too.
///
/// Errors when the device cannot be opened or cannot do without such a kernel.
pub fn open(args: &DeviceArgs, config: &Config) -> anyhow::Result<Opened> {
    open_limited(args, None, config)
}

/// Opens the devices that placement rules name, in their order; without rules the one that [`open`] opens.
///
/// Errors when one of them cannot be opened, or two names stand for one device: it would hold everything twice.
pub fn open_all(
    args: &DeviceArgs,
    rules: Option<&PlaceRules>,
    config: &Config,
) -> anyhow::Result<Vec<Opened>> {
    let Some(rules) = rules else { return Ok(vec![open(args, config)?]) };
    let named = |name: &String| {
        let choice: DeviceChoice = name.parse().map_err(|why: String| usage(format!("--place: {why}")))?;
        open(&args.on(choice), config)
    };
    let opened = rules.devices().iter().map(named).collect::<anyhow::Result<Vec<Opened>>>()?;
    for (i, other) in opened.iter().enumerate() {
        let name = &other.device.profile().name;
        if let Some(first) = opened[..i].iter().position(|o| o.device.profile().name == *name) {
            let [first, second] = [first, i].map(|i| &rules.devices()[i]);
            return Err(usage(format!("--place: {first} and {second} are one device, {name}; use one name")));
        }
    }
    Ok(opened)
}

/// Opens a device as [`open`] does, with kernels of one tier at most. A device without some of its features is remembered as another
/// device: what a selftest found about one says nothing about the other.
pub fn open_limited(args: &DeviceArgs, tier: Option<Tier>, config: &Config) -> anyhow::Result<Opened> {
    let (choice, device) = open_as_is(args, tier, config)?;
    let opened = |choice: &DeviceChoice, device, (key, options)| Opened {
        device,
        key,
        options,
        choice: choice.clone(),
    };
    match heed(&*device, &choice, args.batch_invariant, config) {
        Ok(found) => Ok(opened(&choice, device, found)),
        Err(refused) => {
            let Some(other) = choice.instead() else { return Err(refused) };
            say!("{}; {other} runs in its place", describe(&refused));
            let device = other.open(&options(args, tier, config))?;
            let found = heed(&*device, &other, args.batch_invariant, config)?;
            Ok(opened(&other, device, found))
        }
    }
}

/// Opens the device that was named, or else the fastest one, with all its kernels up to a tier.
pub fn open_as_is(
    args: &DeviceArgs,
    tier: Option<Tier>,
    config: &Config,
) -> anyhow::Result<(DeviceChoice, Arc<dyn Instrument>)> {
    let options = options(args, tier, config);
    let (choice, device, ()) = open_by(args, config, &|choice| Ok((choice.open(&options)?, ())))?;
    warn_of_threads(args.threads, &*device, config);
    Ok((choice, device))
}

/// Opens a device as [`open_as_is`] does, and watches its driver.
pub fn open_watched(
    args: &DeviceArgs,
    watch: Watch,
    tier: Option<Tier>,
    config: &Config,
) -> anyhow::Result<(DeviceChoice, WatchedDevice)> {
    let options = options(args, tier, config);
    let (choice, device, watched) = open_by(args, config, &|choice| choice.open_watched(&options, watch))?;
    Ok((choice, (device, watched)))
}

/// What a device is told when it is opened.
pub fn options<'a>(args: &DeviceArgs, tier: Option<Tier>, config: &'a Config) -> OpenOptions<'a> {
    OpenOptions {
        threads: args.threads.and_then(OrAuto::value),
        tier,
        small: args.small,
        cache_folder: config.cache_dir.as_deref(),
        faults: &config.faults,
        note: &|note| say!("{note}"),
    }
}

/// Says it where a processor is to use more threads than it can run at once: they take turns, and wait for each other at every step.
pub fn warn_of_threads(threads: Option<OrAuto<usize>>, device: &dyn Instrument, config: &Config) {
    if device.profile().kind != DeviceKind::Cpu || !config.talks() {
        return;
    }
    // Counts the CPU affinity and the quotas of control groups.
    let available = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    if let Some(warning) = threads.and_then(OrAuto::value).and_then(|threads| too_many(threads, available)) {
        say!("{warning}");
    }
}

fn too_many(threads: usize, available: usize) -> Option<String> {
    (threads > available).then(|| {
        let s = if available == 1 { "" } else { "s" };
        format!("--threads {threads}: this process may use {available} processor{s}; more threads than that gain nothing")
    })
}

/// A way to open a device, with what comes with it.
type Opening<'a, T> = &'a dyn Fn(&DeviceChoice) -> anyhow::Result<(Arc<dyn Instrument>, T)>;

/// Opens the device that was named, or else the first that is preferred and can be opened this way.
fn open_by<T>(
    args: &DeviceArgs,
    config: &Config,
    open: Opening<'_, T>,
) -> anyhow::Result<(DeviceChoice, Arc<dyn Instrument>, T)> {
    if let Some(choice) = &args.device {
        let (device, with) = open(choice)?;
        return Ok((choice.clone(), device, with));
    }
    let mut reasons: Vec<String> = Vec::new();
    for preference in preferred() {
        let (choice, why) = match preference {
            Ok((choice, why)) => (Some(choice), why),
            Err(why) => (None, why),
        };
        reasons.extend(Some(why).filter(|why| !why.is_empty()));
        let Some(choice) = choice else { continue };
        match open(&choice) {
            Ok((device, with)) => {
                if config.talks() {
                    let profile = device.profile();
                    let why = reasons.join("; ");
                    let line = format!("device {}: {} ({why})", profile.name, profile.description);
                    say_styled(&config.style.dim(&line));
                }
                return Ok((choice, device, with));
            }
            Err(error) => reasons.push(describe(&error)),
        }
    }
    Err(anyhow!("no device can be opened: {}", reasons.join("; ")))
}

/// Makes the device avoid what its selftest found wrong, and compute every text as if it were alone where that is asked for. Returns under
/// which key the verdict was kept, and the options.
///
/// Errors when it cannot.
fn heed(
    device: &dyn Instrument,
    choice: &DeviceChoice,
    batch_invariant: bool,
    config: &Config,
) -> anyhow::Result<(Key, DeviceOptions)> {
    let (key, asked) = (choice.key(device), DeviceOptions { batch_invariant, ..DeviceOptions::default() });
    if batch_invariant {
        device.configure(&asked).with_context(|| format!("{choice}: --batch-invariant"))?;
    }
    let Some(found) = DeviceCache::new(config.cache_dir.as_deref()).verdict(&key) else {
        return Ok((key, asked));
    };
    let (verdict, when) = (&found.finding, ago(found.at));
    let avoid: Vec<String> = verdict.wrong.iter().map(|w| w.kernel.clone()).collect();
    let options = DeviceOptions { avoid, ..asked };
    if options.avoid.is_empty() {
        return Ok((key, options));
    }
    let list = options.avoid.join(", ");
    device.configure(&options).with_context(|| {
        format!("{choice}: found wrong on this device ({when}): {list}; `unicorn selftest --device {choice}` checks again")
    })?;
    if config.talks() {
        for wrong in &verdict.wrong {
            let case = wrong.cases.first().map_or("", String::as_str);
            say!(
                "{choice}: avoiding the kernel `{}`: found wrong ({when}), for example in {case}; `unicorn selftest --device {choice}` checks again",
                wrong.kernel
            );
        }
    }
    Ok((key, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_processors_are_warned_of() {
        assert_eq!((too_many(2, 2), too_many(1, 2), too_many(64, usize::MAX)), (None, None, None));
        let warning = too_many(64, 2).unwrap();
        assert!(warning.contains("--threads 64") && warning.contains("2 processors"), "{warning}");
        assert!(too_many(2, 1).unwrap().contains("1 processor;"));
    }
}
