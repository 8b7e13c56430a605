//! `unicorn plan`: which devices a model should run on, and how fast that would be.

mod report;

use std::io::Write;

use anyhow::Context;
use unicorn_core::ModelSpec;
use unicorn_engine::planner::{Ask, Candidate, Check, Correction, Machine, plan};
use unicorn_engine::{EngineOptions, PlaceRules, Placement, Placements};
use unicorn_hub::{HubError, Reference};

use self::report::{Report, Subject};
use crate::args::{DeviceArgs, PlanArgs, PlanFormat};
use crate::config::Config;
use crate::context::ContextChoice;
use crate::devices::cache::DeviceCache;
use crate::devices::unasked;
use crate::exit::{Exit, describe, usage};
use crate::memory;
use crate::model_spec::{Looked, look};
use crate::open_device::{self, Opened};
use crate::output::{Out, say};
use crate::planner::{Grades, Here, Place, Room, Want, machine_file};
use crate::progress::Fetched;
use crate::session::{find_model, open_model, refuse_encoder};

/// Predicts placements and prints them with the choice. Fails where nothing fits.
pub fn run(args: &PlanArgs, config: &Config) -> anyhow::Result<Exit> {
    if args.prompt == 0 && args.decode == 0 {
        return Err(usage("nothing to plan for: --prompt and --decode are both 0"));
    }
    let spec = spec(args, config)?;
    let context = args.ctx.unwrap_or(ContextChoice::Exactly(args.prompt.saturating_add(args.decode)));
    let context = context.resolve(spec.context_max).map_err(usage)?;
    if context < args.prompt.saturating_add(args.decode) {
        return Err(usage(format!(
            "--ctx {context} is less than a prompt of {} and an answer of {} tokens",
            args.prompt, args.decode
        )));
    }
    let sequences_max = args.sequences;
    let options = EngineOptions { context, sequences_max, kv_type: args.kv.kv, ..EngineOptions::default() };
    match &args.simulate {
        Some(name) => {
            let simulated = machine_file::read(name)?;
            let about = format!("{}: {} (not here: simulated)", simulated.name, simulated.about);
            let none = |_: &Candidate| [Correction::NONE; 2];
            let budgets = budgets(args, &simulated.machine)?;
            let machine = Planned { machine: &simulated.machine, about: Some(about), room: None, budgets };
            answer(args, &spec, &options, machine, &none)
        }
        None => {
            let opened = open_all(args, config)?;
            memory::check_names(&opened, &[], args.memory_max.as_ref())?;
            let want = if args.recalibrate { Want::Anew } else { Want::Missing };
            let here = Here::of(&opened, &spec, want, config)?;
            let here =
                here.ok_or_else(|| anyhow::anyhow!("the devices' figures make no sense: --recalibrate"))?;
            let cache = DeviceCache::new(config.cache_dir.as_deref());
            let grades = Grades::read(&cache, &here.keys);
            let corrections = |candidate: &Candidate| grades.corrections(candidate, &spec);
            let room = Room::of(&opened, args.memory_max.as_ref());
            let budgets = Vec::new();
            let machine = Planned { machine: &here.machine, about: None, room: Some(&room), budgets };
            answer(args, &spec, &options, machine, &corrections)
        }
    }
}

/// What is planned for.
struct Planned<'a> {
    machine: &'a Machine,
    /// What a person should know about it.
    about: Option<String>,
    /// Its devices, where they are here.
    room: Option<&'a Room>,
    /// What each may take at most; of devices that are here `room` knows it.
    budgets: Vec<Option<u64>>,
}

/// What earlier runs say about predictions for a placement.
type Corrections<'a> = dyn Fn(&Candidate) -> [Correction; 2] + 'a;

fn answer(
    args: &PlanArgs,
    spec: &ModelSpec,
    options: &EngineOptions,
    Planned { machine, about, room, budgets }: Planned<'_>,
    corrections: &Corrections<'_>,
) -> anyhow::Result<Exit> {
    let only = match &args.place {
        Some(Place::Rules(rules)) => Some(vec![candidate(rules, spec, machine, room.is_some())?]),
        _ => None,
    };
    let check = room.map(|room| |placements: &Placements| room.misfit(spec, placements, options));
    let plan = plan(&Ask {
        spec,
        machine,
        options,
        past: 0,
        prompt: args.prompt,
        decode: args.decode,
        sequences: args.sequences,
        budgets: &budgets,
        check: check.as_ref().map(|check| check as &Check<'_>),
        corrections,
        only,
    })?;
    let subject = Subject { spec, options, machine, about };
    let report = Report::new(&subject, &plan);
    let text = match args.output {
        PlanFormat::Table => report.text(),
        PlanFormat::Json => serde_json::to_string_pretty(&report.json())? + "\n",
    };
    let mut out = Out::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(if plan.chosen.is_some() { Exit::Done } else { Exit::Failed })
}

/// The model as its files' beginnings tell, or the shape in its place.
fn spec(args: &PlanArgs, config: &Config) -> anyhow::Result<ModelSpec> {
    if let Some(shape) = &args.subject.shape {
        return shape.spec(args.subject.ty).map_err(usage);
    }
    let name = config.model(&args.subject.model);
    let whole = |fetched: &Fetched| {
        let spec = open_model(fetched, config)?.spec;
        refuse_encoder(&spec).map(|()| spec)
    };
    let looked = match look(name, config) {
        Err(error) if has_other_source(name, &error) => {
            say!("{}; {name} is fetched whole", describe(&error));
            return whole(&find_model(name, config)?);
        }
        looked => looked?,
    };
    if let Looked::Here(path) = &looked {
        return whole(&Fetched { path: path.clone(), lacking: Vec::new() });
    }
    if let Some(origin) = looked.origin(config).filter(|_| config.talks()) {
        say!("{name}: {origin}");
    }
    let spec = looked.spec().with_context(|| format!("cannot open model {name}"))?;
    refuse_encoder(&spec)?;
    Ok(spec)
}

/// True where a hub does not answer and the model is one of those that do not come from a hub alone.
fn has_other_source(name: &str, error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(HubError::Unreachable { .. } | HubError::Status { .. }))
        && matches!(unicorn_hub::resolve(name), Ok(Reference::Known(_)))
}

/// The devices that rules name, and else all that may be taken unasked. One of these that cannot be opened is left out.
fn open_all(args: &PlanArgs, config: &Config) -> anyhow::Result<Vec<Opened>> {
    let device = DeviceArgs::any(args.threads);
    if let Some(Place::Rules(rules)) = &args.place {
        return open_device::open_all(&device, Some(rules), config);
    }
    let mut opened = Vec::new();
    for choice in unasked() {
        let named = device.on(choice.clone());
        match open_device::open(&named, config) {
            Ok(device) => opened.push(device),
            Err(error) => say!("{choice} is left out: {}", describe(&error)),
        }
    }
    anyhow::ensure!(!opened.is_empty(), "no device can be opened");
    Ok(opened)
}

/// The placement that rules make on the devices of a machine: one whose devices were opened by these rules, if it is `here`. A device may be
/// named by the beginning of its name, as `vulkan`.
fn candidate(
    rules: &PlaceRules,
    spec: &ModelSpec,
    machine: &Machine,
    here: bool,
) -> anyhow::Result<Candidate> {
    let resolved = rules.resolve(spec).map_err(|e| usage(format!("--place: {e}")))?;
    let number = |name: &String| {
        let mut devices = machine.devices.iter();
        let named = devices.position(|d| d.name == *name || d.name.split(':').next() == Some(name));
        named.ok_or_else(|| {
            let known: Vec<&str> = machine.devices.iter().map(|d| d.name.as_str()).collect();
            usage(format!("--place: there is no device {name}; there are {}", known.join(", ")))
        })
    };
    // Open devices are in the order of the rules; their own names may be others than those they were asked for by.
    let numbers = match here && machine.devices.len() == rules.devices().len() {
        true => (0..machine.devices.len()).collect(),
        false => rules.devices().iter().map(number).collect::<anyhow::Result<Vec<usize>>>()?,
    };
    let here = |placement: &Placement| {
        let assignment = (0..spec.blocks.len()).map(|b| numbers[placement.device(b)]).collect();
        Placement::new(spec, machine.devices.len(), assignment)
    };
    let placements = Placements { prefill: here(&resolved.prefill)?, decode: here(&resolved.decode)? };
    Ok(Candidate { rules: rules.to_string(), placements })
}

/// The budget of each device.
fn budgets(args: &PlanArgs, machine: &Machine) -> anyhow::Result<Vec<Option<u64>>> {
    let Some(max) = &args.memory_max else { return Ok(Vec::new()) };
    let names: Vec<&str> = machine.devices.iter().map(|d| d.name.as_str()).collect();
    match max.stranger(&names) {
        Some(name) => {
            let known = names.join(", ");
            Err(usage(format!("--memory-max: there is no device {name}; there are {known}")))
        }
        None => Ok(names.iter().map(|name| max.of(&[name])).collect()),
    }
}

#[cfg(test)]
mod tests {
    use unicorn_cases::shapes;
    use unicorn_core::TensorType;

    use super::*;

    #[test]
    fn rules_for_open_devices_are_taken_in_their_order() {
        let mut machine = machine_file::read("phoenix").unwrap().machine;
        machine.devices.truncate(2);
        // Asked for as `vulkan` and `vulkan:0`, the first being the fastest one of all.
        for (device, name) in machine.devices.iter_mut().zip(["vulkan:1", "vulkan:0"]) {
            device.name = name.into();
        }
        let spec = shapes::model("smollm2-135m", TensorType::Q8_0).unwrap();
        let of = |rules: &str, here| {
            let made = candidate(&rules.parse().unwrap(), &spec, &machine, here)?.placements.prefill;
            anyhow::Ok([1, 2].map(|block| made.device(block)))
        };
        assert_eq!(of("mixer=vulkan:0,ffn=vulkan", true).unwrap(), [0, 1]);
        assert_eq!(of("mixer=vulkan,ffn=vulkan:0", true).unwrap(), [0, 1]);
        // Devices that are not here go by their names.
        assert_eq!(of("mixer=vulkan:0,ffn=vulkan:1", false).unwrap(), [1, 0]);
        assert!(of("mixer=vulkan:0,ffn=cpu", false).unwrap_err().to_string().contains("no device cpu"));
    }
}
