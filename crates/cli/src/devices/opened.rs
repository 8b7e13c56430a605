//! From what `--device` says, or does not say, to an open device that avoids what a selftest found wrong.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use unicorn_core::{Device, DeviceOptions, Roofline};

use super::cache::{DeviceCache, Key, ago};
use super::{DeviceChoice, PREFERRED, Tier, Watch, WatchedDevice};
use crate::args::DeviceArgs;
use crate::config::Config;
use crate::exit::describe;
use crate::output::{say, say_styled};

/// An open device with what it was told.
pub struct Opened {
    /// The device.
    pub device: Arc<dyn Device>,
    /// Under which findings about it are kept.
    pub key: Key,
    /// How it chooses kernels.
    pub options: DeviceOptions,
}

/// Limits older than this are measured anew before anything is compared with them.
const LIMITS_AGE_MAX: Duration = Duration::from_secs(3600);

impl Opened {
    /// The device's limits, measured now or within the last hour.
    pub fn limits(&self, config: &Config) -> anyhow::Result<Roofline> {
        let cache = DeviceCache::new(config);
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
}

/// Opens the device that was named, or else the fastest GPU, or else the CPU, and says which. It passes over kernels that its selftest
/// found wrong, and that is said too.
///
/// Errors when the device cannot be opened or cannot do without such a kernel.
pub fn open(args: &DeviceArgs, config: &Config) -> anyhow::Result<Opened> {
    open_limited(args, None, config)
}

/// The same with kernels of one tier at most. What lacks some of its features counts as another device: findings are kept apart.
pub fn open_limited(args: &DeviceArgs, tier: Option<Tier>, config: &Config) -> anyhow::Result<Opened> {
    let (choice, device) = open_as_is(args, tier, config)?;
    let found = match heed(&*device, &choice, config) {
        Ok(found) => found,
        Err(refused) => {
            let Some(other) = choice.instead() else { return Err(refused) };
            say!("{}; {other} runs in its place", describe(&refused));
            let device = other.open_limited(args.threads, tier)?;
            let (key, options) = heed(&*device, &other, config)?;
            return Ok(Opened { device, key, options });
        }
    };
    let (key, options) = found;
    Ok(Opened { device, key, options })
}

/// Opens the device that was named, or else the fastest one, with all its kernels up to a tier.
pub fn open_as_is(
    args: &DeviceArgs,
    tier: Option<Tier>,
    config: &Config,
) -> anyhow::Result<(DeviceChoice, Arc<dyn Device>)> {
    let open = |choice: &DeviceChoice| Ok((choice.open_limited(args.threads, tier)?, ()));
    let (choice, device, ()) = open_by(args, config, &open)?;
    Ok((choice, device))
}

/// The same for a device that is watched while it runs.
pub fn open_watched(
    args: &DeviceArgs,
    watch: Watch,
    tier: Option<Tier>,
    config: &Config,
) -> anyhow::Result<(DeviceChoice, WatchedDevice)> {
    let (choice, device, watched) = open_by(args, config, &|choice| choice.open_watched(watch, tier))?;
    Ok((choice, (device, watched)))
}

/// A way to open a device, with what comes with it.
type Opening<'a, T> = &'a dyn Fn(&DeviceChoice) -> anyhow::Result<(Arc<dyn Device>, T)>;

/// Opens the device that was named, or else the first that is preferred and can be opened this way.
fn open_by<T>(
    args: &DeviceArgs,
    config: &Config,
    open: Opening<'_, T>,
) -> anyhow::Result<(DeviceChoice, Arc<dyn Device>, T)> {
    if let Some(choice) = &args.device {
        let (device, with) = open(choice)?;
        return Ok((choice.clone(), device, with));
    }
    let mut reasons: Vec<String> = Vec::new();
    for backend in PREFERRED {
        let preference = (backend.preferred)();
        reasons.extend(Some(preference.why).filter(|why| !why.is_empty()));
        let Some(variant) = preference.variant else { continue };
        let choice = DeviceChoice { backend, variant };
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

/// Makes the device avoid what its selftest found wrong. Returns under which key that was kept, and the options.
///
/// Errors when it cannot.
fn heed(device: &dyn Device, choice: &DeviceChoice, config: &Config) -> anyhow::Result<(Key, DeviceOptions)> {
    let key = choice.key(device);
    let Some(found) = DeviceCache::new(config).verdict(&key) else {
        return Ok((key, DeviceOptions::default()));
    };
    let (verdict, when) = (&found.finding, ago(found.at));
    let avoid: Vec<String> = verdict.wrong.iter().map(|w| w.kernel.clone()).collect();
    let options = DeviceOptions { avoid, ..DeviceOptions::default() };
    if options.avoid.is_empty() {
        return Ok((key, options));
    }
    let list = options.avoid.join(", ");
    device.configure(&options).with_context(|| {
        format!("{choice}: the selftest of this device ({when}) found wrong: {list}; `unicorn selftest --device {choice}` checks again")
    })?;
    if config.talks() {
        for wrong in &verdict.wrong {
            let case = wrong.cases.first().map_or("", String::as_str);
            say!(
                "{choice}: avoiding the kernel `{}`: wrong in the selftest ({when}), for example in {case}",
                wrong.kernel
            );
        }
    }
    Ok((key, options))
}
