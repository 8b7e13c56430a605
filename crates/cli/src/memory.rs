//! Memory: what there is, and a model that does not fit, told so that a person can act on it.

use std::sync::Arc;

use unicorn_core::{Device, KvType, MemoryRoom, ModelSpec};
use unicorn_engine::{
    DeviceMemory, EngineError, EngineOptions, Excess, Leeway, MemoryLimit, MemoryPlan, MemoryScope,
    MemoryShort, Placements, fit,
};

use crate::devices::DeviceChoice;
use crate::exit::usage;
use crate::memory_max::MemoryMax;
use crate::open_device::Opened;
use crate::table::{Align, Table};
use crate::units;

/// The origin of limits that the user set.
pub const FLAG: &str = "--memory-max";
/// Memory of the host that is left to the rest of this program, such as the tokenizer, and to drivers.
const SPARE_BYTES: u64 = 64 << 20;

/// By what an open device goes: what it was asked for by, and what it is called.
fn names(opened: &Opened) -> [String; 2] {
    [opened.choice.to_string(), opened.device.profile().name.clone()]
}

/// Errors where `--memory-max` names a device that is neither open nor one of `others`, which may be opened yet.
pub fn check_names(
    opened: &[Opened],
    others: &[DeviceChoice],
    max: Option<&MemoryMax>,
) -> anyhow::Result<()> {
    let others: Vec<String> = others.iter().map(ToString::to_string).collect();
    let known: Vec<String> = opened.iter().flat_map(names).chain(others.iter().cloned()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let Some(stranger) = max.and_then(|max| max.stranger(&known)) else { return Ok(()) };
    let mut used: Vec<String> = opened.iter().map(|o| o.choice.to_string()).collect();
    let others = others.into_iter().filter(|other| !used.contains(other)).collect::<Vec<_>>();
    used.extend(others);
    Err(usage(format!("--memory-max: {stranger} is not used, but {}", used.join(", "))))
}

/// The limits of the memory that open devices work in: what there is, and what `--memory-max` allows of it.
pub fn limits(opened: &[Opened], max: Option<&MemoryMax>) -> Vec<MemoryLimit> {
    let mut limits: Vec<MemoryLimit> = unicorn_cpu::simd::available().into_iter().map(of_host).collect();
    for (index, open) in opened.iter().enumerate() {
        let names = names(open);
        let allowed = max.and_then(|max| max.of(&[&names[0], &names[1]]));
        let allowed = allowed.map(|bytes| MemoryRoom { bytes, origin: FLAG.to_owned() });
        for MemoryRoom { bytes, origin } in allowed.into_iter().chain(open.device.room()) {
            limits.push(MemoryLimit { scope: MemoryScope::Device(index), bytes, origin });
        }
    }
    limits
}

fn of_host(room: MemoryRoom) -> MemoryLimit {
    let spare = units::bytes(SPARE_BYTES);
    MemoryLimit {
        scope: MemoryScope::Host,
        bytes: room.bytes.saturating_sub(SPARE_BYTES),
        origin: format!("{}, less {spare} for the rest of the program", room.origin),
    }
}

/// A model that does not fit, with what would help.
#[derive(Debug)]
pub struct Refused {
    short: Box<MemoryShort>,
    advice: Option<String>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MemoryShort { plan, excesses } = &*self.short;
        let told: Vec<String> = excesses.iter().map(|excess| told(excess, plan)).collect();
        write!(f, "it does not fit into memory\n{}{}", table(plan), told.join("\n"))?;
        self.advice.as_ref().map_or(Ok(()), |advice| write!(f, "\n{advice}"))
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// An engine's error; where it is about memory, with what would help.
    pub fn or_other(
        error: EngineError,
        spec: &ModelSpec,
        devices: &[Arc<dyn Device>],
        placements: &Placements,
        options: &EngineOptions,
        leeway: &Leeway,
    ) -> anyhow::Error {
        match error {
            EngineError::Memory(short) => {
                let advice = Some(advice(&short.plan, &helps(spec, devices, placements, options, leeway)));
                anyhow::Error::new(Refused { short, advice })
            }
            other => other.into(),
        }
    }

    /// One that no change of options would help.
    pub fn plainly(short: MemoryShort) -> anyhow::Error {
        anyhow::Error::new(Refused { short: Box::new(short), advice: None })
    }
}

/// Options with which the model would fit, as they are typed.
fn helps(
    spec: &ModelSpec,
    devices: &[Arc<dyn Device>],
    placements: &Placements,
    options: &EngineOptions,
    leeway: &Leeway,
) -> Vec<String> {
    let leeway = Leeway { context_min: Some(1), ..*leeway };
    let longest = |kv_type: KvType| {
        let options = EngineOptions { kv_type, ..options.clone() };
        let fitting = fit(spec, devices, placements, &options, &leeway).ok().flatten();
        fitting.map(|options| options.context)
    };
    let mut helps: Vec<String> = longest(options.kv_type).map(|n| format!("--ctx {n}")).into_iter().collect();
    if options.kv_type != KvType::Q8_0 {
        helps.extend(longest(KvType::Q8_0).map(|n| match n == options.context {
            true => "--kv q8_0".to_owned(),
            false => format!("--kv q8_0 --ctx {n}"),
        }));
    }
    helps
}

fn advice(plan: &MemoryPlan, helps: &[String]) -> String {
    let on_several = plan.devices.iter().filter(|d| d.need.total() > 0).count() > 1;
    match helps {
        [] if on_several => {
            "no context is short enough: another --place or a smaller model may fit".to_owned()
        }
        [] => {
            "no context is short enough: --place can share the model among devices, or a smaller one may fit"
                .to_owned()
        }
        helps => format!("it would fit with {}", helps.join(", or ")),
    }
}

/// Who takes how much, where.
fn table(plan: &MemoryPlan) -> String {
    let names = ["device", "memory", "weights", "KV cache", "scratch", "in passing", "total"];
    let align = |name: &'static str| match name {
        "device" | "memory" => (name, Align::Left),
        _ => (name, Align::Right),
    };
    let mut table = Table::new(names.map(align));
    let size = |bytes: u64| if bytes == 0 { "-".to_owned() } else { units::bytes(bytes) };
    let mut row = |device: &str, memory: &str, parts: [u64; 4]| {
        let total = parts.into_iter().fold(0, u64::saturating_add);
        let cells = parts.into_iter().chain([total]).map(size);
        table.row([device.to_owned(), memory.to_owned()].into_iter().chain(cells));
    };
    for DeviceMemory { device, unified, need } in &plan.devices {
        match unified {
            true => row(device, "host", [need.weights, need.kv, need.scratch + need.host, need.passing]),
            false => {
                row(device, "its own", [need.weights, need.kv, need.scratch, 0]);
                row(device, "host", [0, 0, need.host, need.passing]);
            }
        }
    }
    if plan.crossing > 0 {
        row("crossing buffers", "host", [0, 0, plan.crossing, 0]);
    }
    table.text()
}

/// `host memory: 1.2 GB wanted, 300 MB there (cgroup /x memory.max)`.
fn told(excess: &Excess, plan: &MemoryPlan) -> String {
    let Excess { limit, wanted } = excess;
    let whose = match limit.scope {
        MemoryScope::Host => "host memory".to_owned(),
        MemoryScope::Device(index) => plan.devices.get(index).map_or_else(String::new, |d| d.device.clone()),
    };
    let [wanted, there] = [*wanted, limit.bytes].map(units::bytes);
    // Where nothing grows with the context it does not matter.
    let at = match plan.devices.iter().any(|d| d.need.kv > 0) {
        true => format!(" at a context of {} tokens", plan.context),
        false => String::new(),
    };
    format!("{whose}: {wanted} wanted{at}, {there} there ({})", limit.origin)
}

#[cfg(test)]
mod tests {
    use unicorn_core::{DeviceOptions, Instrument, MemoryNeed};
    use unicorn_cpu::ReferenceDevice;

    use super::*;
    use crate::devices::cache::Key;
    use crate::exit::{Exit, of_error};

    fn reference(choice: &str) -> Opened {
        let device: Arc<dyn Instrument> = Arc::new(ReferenceDevice::new());
        let (key, options) = (Key::new(device.profile(), 0), DeviceOptions::default());
        Opened { device, key, options, choice: choice.parse().unwrap() }
    }

    #[test]
    fn a_flag_limits_the_devices_that_it_names_and_no_others() {
        let opened = [reference("reference"), reference("cpu")];
        let flags = |max: &str| -> Vec<(MemoryScope, u64)> {
            let limits = limits(&opened, Some(&max.parse().unwrap()));
            let of_flag = limits.into_iter().filter(|l| l.origin == "--memory-max");
            of_flag.map(|l| (l.scope, l.bytes)).collect()
        };
        let device = |index, bytes| (MemoryScope::Device(index), bytes);
        assert_eq!(flags("1GB"), [device(0, 1_000_000_000), device(1, 1_000_000_000)]);
        assert_eq!(flags("cpu=2GB"), [device(1, 2_000_000_000)]);
        assert_eq!(flags("1GB,cpu=2GB"), [device(0, 1_000_000_000), device(1, 2_000_000_000)]);
        let vulkan = "vulkan:1=1GB".parse().unwrap();
        let error = check_names(&opened, &[], Some(&vulkan)).unwrap_err();
        assert_eq!(of_error(&error), Exit::Usage);
        assert!(error.to_string().contains("vulkan:1 is not used, but reference, cpu"), "{error}");
        check_names(&opened, &["vulkan:1".parse().unwrap()], Some(&vulkan)).unwrap();
        check_names(&opened, &[], Some(&"1GB,cpu=2GB".parse().unwrap())).unwrap();
        // What the system says always counts.
        #[cfg(target_os = "linux")]
        assert!(limits(&opened, None).iter().any(|l| l.scope == MemoryScope::Host && l.bytes > 0));
    }

    #[test]
    fn a_refusal_says_who_wants_what_where_the_limit_is_and_what_would_help() {
        let need = MemoryNeed {
            weights: 4_000_000_000,
            kv: 500_000_000,
            scratch: 90_000_000,
            host: 0,
            passing: 1_000,
        };
        let card = MemoryNeed { host: 7_000_000, ..need };
        let device = |name: &str, unified, need| DeviceMemory { device: name.into(), unified, need };
        let plan = MemoryPlan {
            devices: vec![device("cpu", true, need), device("vulkan:0", false, card)],
            crossing: 12_000_000,
            context: 8192,
            kv_type: KvType::F16,
        };
        let limit = |scope, origin: &str| MemoryLimit { scope, bytes: 300_000_000, origin: origin.into() };
        let limits =
            [limit(MemoryScope::Host, "cgroup /x memory.max"), limit(MemoryScope::Device(1), "--memory-max")];
        let short = Box::new(plan.check(&limits).unwrap_err());
        let helps = vec!["--ctx 2048".to_owned(), "--kv q8_0".to_owned()];
        let advice_of = |helps: &[String]| Some(advice(&plan, helps));
        let text = Refused { short: short.clone(), advice: advice_of(&helps) }.to_string();
        for part in [
            "cpu               host     4.00 GB    500 MB  90.0 MB",
            "vulkan:0          its own  4.00 GB    500 MB  90.0 MB           -  4.59 GB",
            "vulkan:0          host           -         -  7.00 MB",
            "crossing buffers  host           -         -  12.0 MB",
            "host memory: 4.61 GB wanted at a context of 8192 tokens, 300 MB there (cgroup /x memory.max)",
            "vulkan:0: 4.59 GB wanted at a context of 8192 tokens, 300 MB there (--memory-max)",
            "it would fit with --ctx 2048, or --kv q8_0",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let text = Refused { short, advice: advice_of(&[]) }.to_string();
        assert!(text.contains("another --place"), "{text}");
    }
}
