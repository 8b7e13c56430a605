//! From what `--place` says, or does not say, to open devices and a placement; and predictions for it that are graded.

use unicorn_core::ModelSpec;
use unicorn_engine::planner::{Ask, Candidate, Plan, Prediction, plan};
use unicorn_engine::{EngineOptions, Placement, Placements, Timings};

use super::choice::{Load, Place};
use super::figures::Phase;
use super::grades::{Grades, in_words};
use super::here::{Here, Want};
use crate::args::DeviceArgs;
use crate::config::Config;
use crate::devices::cache::DeviceCache;
use crate::devices::unasked;
use crate::exit::{describe, usage};
use crate::open_device::{self, Opened};
use crate::output::say;

/// Open devices with what each is to run.
pub struct Placed {
    /// In the order of the placement.
    pub opened: Vec<Opened>,
    /// Over them.
    pub placements: Placements,
}

impl Placed {
    /// All of a model on one device.
    pub fn one(opened: Opened, spec: &ModelSpec) -> anyhow::Result<Placed> {
        Ok(Placed { opened: vec![opened], placements: Placement::single(spec)?.into() })
    }
}

/// Opens the devices for a model and places it on them. It shall be fast at `load`.
///
/// Errors when a device cannot be opened or rules do not fit the model.
pub fn place(
    args: &DeviceArgs,
    place: &Place,
    spec: &ModelSpec,
    options: &EngineOptions,
    load: Load,
    config: &Config,
) -> anyhow::Result<Placed> {
    match place {
        Place::Rules(rules) => {
            let placements = rules.resolve(spec).map_err(|e| usage(format!("--place: {e}")))?;
            Ok(Placed { opened: open_device::open_all(args, Some(rules), config)?, placements })
        }
        Place::Auto if args.device.is_none() => automatic(args, spec, options, load, config),
        _ => Ok(Placed {
            opened: open_device::open_all(args, None, config)?,
            placements: Placement::single(spec)?.into(),
        }),
    }
}

/// The fastest device alone, unless there are several and their figures say that another placement is faster. With one device nothing is
/// planned, and nothing is measured here.
fn automatic(
    args: &DeviceArgs,
    spec: &ModelSpec,
    options: &EngineOptions,
    load: Load,
    config: &Config,
) -> anyhow::Result<Placed> {
    let choices: Vec<_> = unasked().collect();
    let mut opened = open_device::open_all(args, None, config)?;
    let first = opened.first().map(|o| o.device.profile().name.clone()).unwrap_or_default();
    let alone = |opened| Ok(Placed { opened, placements: Placement::single(spec)?.into() });
    if choices.len() < 2 || Here::of(&opened, spec, Want::Kept, config)?.is_none() {
        return alone(opened);
    }
    for choice in choices.into_iter().filter(|choice| choice.to_string() != first) {
        let named = DeviceArgs { device: Some(choice.clone()), threads: args.threads };
        match open_device::open(&named, config) {
            Ok(device) => opened.push(device),
            // It was not asked for.
            Err(error) if config.explains() => say!("{choice} is left out: {}", describe(&error)),
            Err(_) => {}
        }
    }
    let planned = match Here::of(&opened, spec, Want::Kept, config)? {
        Some(here) => Some(predict(&here, spec, options, load, None, config)?),
        None => None,
    };
    let Some((plan, chosen)) = planned.and_then(|plan| plan.chosen.map(|chosen| (plan, chosen))) else {
        opened.truncate(1);
        return alone(opened);
    };
    let candidate = &plan.ranked[chosen].candidate;
    if config.explains() || (config.talks() && candidate.devices().len() > 1) {
        say!("placement {}: {}", candidate.rules, plan.reason);
    }
    // Only what is used stays open.
    let used = candidate.devices();
    let placements = among(&candidate.placements, &used, spec)?;
    let kept = opened.into_iter().enumerate().filter(|(i, _)| used.contains(i)).map(|(_, o)| o).collect();
    Ok(Placed { opened: kept, placements })
}

/// The same placements over the devices that they use alone, which are renumbered in their order.
fn among(placements: &Placements, used: &[usize], spec: &ModelSpec) -> anyhow::Result<Placements> {
    let number = |device: usize| used.iter().position(|u| *u == device).unwrap_or(0);
    let renumbered = |placement: &Placement| {
        let assignment = (0..spec.blocks.len()).map(|b| number(placement.device(b))).collect();
        Placement::new(spec, used.len(), assignment)
    };
    Ok(Placements { prefill: renumbered(&placements.prefill)?, decode: renumbered(&placements.decode)? })
}

/// What the planner says about these devices, with what earlier runs say about its predictions.
fn predict(
    here: &Here,
    spec: &ModelSpec,
    options: &EngineOptions,
    load: Load,
    only: Option<Vec<Candidate>>,
    config: &Config,
) -> anyhow::Result<Plan> {
    let cache = DeviceCache::new(config.cache_dir.as_deref());
    let grades = Grades::read(&cache, &here.keys);
    Ok(plan(&Ask {
        spec,
        machine: &here.machine,
        options,
        past: load.past,
        prompt: load.prompt,
        decode: load.decode,
        sequences: load.sequences,
        budgets: &[],
        corrections: &|candidate| grades.corrections(candidate, spec),
        only,
    })?)
}

/// Predicts what was measured, tells both, and keeps the error.
pub struct Grader {
    here: Here,
    candidate: Candidate,
}

impl Grader {
    /// For a model as it is placed; `None` where the devices' figures are not known.
    ///
    /// Errors as [`Here::of`] does.
    pub fn new(placed: &Placed, spec: &ModelSpec, config: &Config) -> anyhow::Result<Option<Grader>> {
        let Some(here) = Here::of(&placed.opened, spec, Want::Kept, config)? else { return Ok(None) };
        let candidate = Candidate { rules: String::new(), placements: placed.placements.clone() };
        Ok(Some(Grader { here, candidate }))
    }

    /// What a request is predicted to take.
    pub fn predict(
        &self,
        spec: &ModelSpec,
        options: &EngineOptions,
        load: Load,
        config: &Config,
    ) -> anyhow::Result<Option<Prediction>> {
        let plan = predict(&self.here, spec, options, load, Some(vec![self.candidate.clone()]), config)?;
        let this = |p: &Prediction| p.candidate.placements == self.candidate.placements;
        Ok(plan.ranked.into_iter().find(this))
    }

    /// Keeps a measured rate beside what was predicted; returns both in words.
    pub fn grade(
        &self,
        spec: &ModelSpec,
        phase: Phase,
        prediction: &Prediction,
        measured_tokens_per_second: f64,
        config: &Config,
    ) -> Option<String> {
        let predicted = match phase {
            Phase::Prefill => prediction.prefill.as_ref(),
            Phase::Decode => prediction.decode.as_ref(),
        }?;
        if !(measured_tokens_per_second.is_finite() && measured_tokens_per_second > 0.0) {
            return None;
        }
        let raw = predicted.tokens as f64 / predicted.raw_seconds;
        let cache = DeviceCache::new(config.cache_dir.as_deref());
        let mut grades = Grades::read(&cache, &self.here.keys);
        let ratio = raw / measured_tokens_per_second;
        // Keeping it is a convenience: what is told counts all the same.
        if let Err(error) = grades.keep(&self.candidate, spec, phase, ratio)
            && config.explains()
        {
            say!("{}", describe(&error));
        }
        Some(in_words(phase, predicted, measured_tokens_per_second))
    }

    /// Tells what was predicted for a request beside what it took. Prompts that were partly reused and answers of a few tokens say nothing.
    pub fn tell(
        &self,
        spec: &ModelSpec,
        options: &EngineOptions,
        timings: &Timings,
        config: &Config,
    ) -> anyhow::Result<()> {
        let prompt = if timings.reused_tokens == 0 { timings.prompt_tokens } else { 0 };
        let decode = timings.generated_tokens.saturating_sub(1);
        let load = Load { past: 0, prompt, decode, sequences: 1 };
        let Some(prediction) = self.predict(spec, options, load, config)? else { return Ok(()) };
        let rates = [
            (Phase::Prefill, timings.prefill_tokens_per_second()),
            (Phase::Decode, timings.decode_tokens_per_second()),
        ];
        for (phase, rate) in rates {
            let few = phase == Phase::Decode && decode < DECODE_MIN;
            if let Some(line) = (!few).then(|| self.grade(spec, phase, &prediction, rate, config)).flatten() {
                say!("{line}");
            }
        }
        Ok(())
    }
}

/// Tokens of an answer from which on its rate says something.
const DECODE_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use unicorn_cases::shapes;
    use unicorn_core::TensorType;
    use unicorn_engine::PlaceRules;

    use super::*;

    #[test]
    fn a_placement_counts_the_devices_that_stay_open() {
        let spec = shapes::model("smollm2-135m", TensorType::Q8_0).unwrap();
        // Of three devices the first is not used.
        let rules: PlaceRules = "0-29=a,prefill:mixer=b,prefill:ffn=c,decode:0-29=c".parse().unwrap();
        let all = rules.resolve(&spec).unwrap();
        let candidate = Candidate { rules: rules.to_string(), placements: all };
        let used = candidate.devices();
        assert_eq!(used, [1, 2]);
        let placements = among(&candidate.placements, &used, &spec).unwrap();
        assert_eq!((placements.prefill.devices(), placements.decode.devices()), (2, 2));
        assert_eq!([1, 2, 3].map(|b| placements.prefill.device(b)), [0, 1, 0]);
        assert_eq!([1, 2, 3].map(|b| placements.decode.device(b)), [1, 1, 1]);
    }
}
