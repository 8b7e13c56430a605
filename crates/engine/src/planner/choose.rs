//! Which placement to take, and why.

use unicorn_core::{Block, ModelSpec};

use super::candidates::{Candidate, candidates};
use super::grade::Correction;
use super::machine::Machine;
use super::reason::{Misfit, Reason};
use super::simulate::{Simulated, Task, simulate};
use crate::need::Need;
use crate::{EngineOptions, PlacementError, Placements};

/// What of a placement does not fit; `None` where it can be.
pub type Check<'a> = dyn Fn(&Placements) -> Option<Misfit> + 'a;

/// What is to be planned.
pub struct Ask<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// The devices to choose from.
    pub machine: &'a Machine,
    /// How the engine is set up.
    pub options: &'a EngineOptions,
    /// Positions before the prompt.
    pub past: usize,
    /// Tokens of a prompt; 0 for none.
    pub prompt: usize,
    /// Tokens of an answer; 0 for none.
    pub decode: usize,
    /// Equal requests at once.
    pub sequences: usize,
    /// Bytes that each device may take at most, by its number; one without an entry may take all that its memory has.
    pub budgets: &'a [Option<u64>],
    /// Tells what of a placement does not fit, where there are devices to ask, and so as loading it would; `None` compares estimates with
    /// the machine's memories and the budgets.
    pub check: Option<&'a Check<'a>>,
    /// What earlier runs say about predictions for placements: of prefill, and of decode.
    pub corrections: &'a dyn Fn(&Candidate) -> [Correction; 2],
    /// Placements to predict beside every device alone; `None` looks for them.
    pub only: Option<Vec<Candidate>>,
}

/// One phase as predicted.
#[derive(Clone, PartialEq, Debug)]
pub struct PhasePrediction {
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Seconds, corrected.
    pub seconds: f64,
    /// Seconds before the correction.
    pub raw_seconds: f64,
    /// What was corrected.
    pub correction: Correction,
    /// The simulation; of a decode phase only of some of its tokens.
    pub simulated: Simulated,
}

impl PhasePrediction {
    /// Tokens of all sequences a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// Share of the time in which a device works, 0 to 1.
    pub fn busy(&self, device: usize) -> f64 {
        self.simulated.busy[device] / self.simulated.seconds.max(f64::MIN_POSITIVE)
    }

    /// Share of the time in which at least two devices work, 0 to 1.
    pub fn overlap(&self) -> f64 {
        self.simulated.several / self.simulated.seconds.max(f64::MIN_POSITIVE)
    }
}

/// A candidate with what it would cost.
#[derive(Clone, PartialEq, Debug)]
pub struct Prediction {
    /// The placement.
    pub candidate: Candidate,
    /// Prompts; `None` where none was asked for.
    pub prefill: Option<PhasePrediction>,
    /// Answers; `None` where none was asked for.
    pub decode: Option<PhasePrediction>,
    /// Seconds in which state goes from the devices of prefill to those of decode.
    pub handover_seconds: f64,
    /// Bytes that each device needs.
    pub device_bytes: Vec<u64>,
    /// Bytes that are needed of each memory.
    pub memory_bytes: Vec<u64>,
    /// Why it cannot be.
    pub misfit: Option<Misfit>,
}

impl Prediction {
    /// Seconds of all phases.
    pub fn seconds(&self) -> f64 {
        let phases: f64 = [&self.prefill, &self.decode].into_iter().flatten().map(|p| p.seconds).sum();
        phases + self.handover_seconds
    }

    /// Share by which the prediction may be off, as far as that is known.
    fn error(&self) -> f64 {
        let phases = [&self.prefill, &self.decode];
        phases.into_iter().flatten().map(|p| p.correction.error).fold(0.0, f64::max)
    }
}

/// All candidates, the fastest first and those that do not fit last, with the choice among them.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The candidates.
    pub ranked: Vec<Prediction>,
    /// Index of the one to take; `None` where none fits.
    pub chosen: Option<usize>,
    /// Why.
    pub reason: Reason,
}

/// Bounds of what several devices must be better than one by: errors of the two predictions are alike, but not equal.
const MARGIN: std::ops::RangeInclusive<f64> = 0.03..=0.3;
/// Tokens of a decode phase that are simulated, in its middle.
const DECODE_SIMULATED: usize = 8;

/// Predicts every candidate and chooses.
///
/// Errors when the model has no order that can be placed.
pub fn plan(ask: &Ask<'_>) -> Result<Plan, PlacementError> {
    let mut all = candidates(ask.spec, ask.machine, ask.options.prefill_chunk, ask.options.kv_type)?;
    if let Some(only) = &ask.only {
        all.retain(|c| c.devices().len() == 1);
        let new = only.iter().filter(|o| !all.iter().any(|c| c.placements == o.placements));
        let new: Vec<Candidate> = new.cloned().collect();
        all.extend(new);
    }
    let mut ranked: Vec<Prediction> = all.into_iter().map(|c| predict(ask, c)).collect();
    if ask.only.is_none() && ask.prompt > 0 && ask.decode > 0 {
        ranked.extend(apart(ask, &ranked));
    }
    let order = |p: &Prediction| (p.misfit.is_some(), p.candidate.devices().len());
    ranked.sort_by(|a, b| {
        let seconds = a.seconds().total_cmp(&b.seconds());
        order(a).0.cmp(&order(b).0).then(seconds).then(order(a).1.cmp(&order(b).1))
    });
    let wanted = |p: &Prediction| match &ask.only {
        Some(only) => only.iter().any(|o| o.placements == p.candidate.placements),
        None => true,
    };
    let (chosen, reason) = choose(ask, &ranked, &wanted);
    Ok(Plan { ranked, chosen, reason })
}

fn choose(
    ask: &Ask<'_>,
    ranked: &[Prediction],
    wanted: &dyn Fn(&Prediction) -> bool,
) -> (Option<usize>, Reason) {
    let single = |p: &Prediction| p.candidate.devices().len() == 1;
    let fitting = || ranked.iter().enumerate().filter(|(_, p)| p.misfit.is_none());
    let alone = fitting().find(|(_, p)| single(p));
    if ask.only.is_some() {
        let asked = fitting().find(|(_, p)| wanted(p));
        let misfit = ranked.iter().find(|p| wanted(p)).and_then(|p| p.misfit.clone());
        return match (asked, misfit) {
            (Some((index, p)), _) => {
                let ratio = alone.map(|(_, a)| (a.candidate.rules.clone(), a.seconds() / p.seconds()));
                (Some(index), Reason::Asked { than_single: ratio })
            }
            (None, Some(misfit)) => (None, Reason::NoneFits(misfit)),
            (None, None) => (None, Reason::Nothing),
        };
    }
    let several = fitting().find(|(_, p)| !single(p));
    match (alone, several) {
        (None, None) => {
            let least = ranked.iter().filter_map(|p| p.misfit.clone()).min_by_key(|m| m.lacking());
            (None, least.map_or(Reason::Nothing, Reason::NoneFits))
        }
        (None, Some((index, _))) => {
            let misfit = ranked.iter().filter(|p| single(p)).filter_map(|p| p.misfit.clone());
            (Some(index), Reason::NoSingleFits(misfit.min_by_key(|m| m.lacking())))
        }
        (Some((index, _)), None) => {
            let others = fitting().filter(|(i, _)| *i != index).map(|(_, p)| p);
            let next =
                others.map(|p| (p.candidate.rules.clone(), p.seconds() / ranked[index].seconds())).next();
            (Some(index), Reason::Alone { next, several: None })
        }
        (Some((one, a)), Some((many, b))) => {
            let margin = a.error().max(b.error()).clamp(*MARGIN.start(), *MARGIN.end());
            let gain = a.seconds() / b.seconds();
            if gain > 1.0 + margin {
                (Some(many), Reason::Several { than: a.candidate.rules.clone(), gain, margin })
            } else {
                let other = fitting().find(|(i, p)| *i != one && single(p)).map(|(_, p)| p);
                let next = other.map(|p| (p.candidate.rules.clone(), p.seconds() / a.seconds()));
                let several = Some((b.candidate.rules.clone(), gain, margin));
                (Some(one), Reason::Alone { next, several })
            }
        }
    }
}

/// Placements whose phases are combined: so many of the fastest of each.
const APART: usize = 3;

/// The fastest placements for prompts, each with the fastest other ones for answers. Those that fit come first: of one that does not, no
/// pair is likely to.
fn apart(ask: &Ask<'_>, found: &[Prediction]) -> Vec<Prediction> {
    let fastest = |of: fn(&Prediction) -> Option<f64>| {
        let mut all: Vec<&Prediction> = found.iter().collect();
        let seconds = |p: &Prediction| of(p).unwrap_or(f64::INFINITY);
        let fits = |p: &Prediction| p.misfit.is_none();
        all.sort_by(|a, b| fits(b).cmp(&fits(a)).then(seconds(a).total_cmp(&seconds(b))));
        all.truncate(APART);
        all
    };
    let prefill = fastest(|p| p.prefill.as_ref().map(|p| p.seconds));
    let decode = fastest(|p| p.decode.as_ref().map(|p| p.seconds));
    let pairs = prefill.iter().flat_map(|p| decode.iter().map(move |d| (*p, *d)));
    let pairs = pairs.filter(|(p, d)| p.candidate != d.candidate);
    let both = pairs.map(|(p, d)| {
        let candidate = Candidate::of_phases(&p.candidate, &d.candidate);
        let mut prediction = room(ask, candidate);
        (prediction.prefill, prediction.decode) = (p.prefill.clone(), d.decode.clone());
        prediction
    });
    both.collect()
}

/// Seconds in which the state of mixers that are elsewhere in decode goes there, out of one device and into the other.
fn handover_seconds(ask: &Ask<'_>, placements: &Placements) -> f64 {
    let positions = (ask.past + ask.prompt) * ask.sequences;
    let moved = ask.spec.blocks.iter().enumerate().map(|(index, block)| {
        let (from, to) = (placements.prefill.device(index), placements.decode.device(index));
        if from == to {
            return 0.0;
        }
        let bytes = match block {
            Block::Attention { spec, .. } => {
                let kept = positions.min(spec.window.unwrap_or(usize::MAX).saturating_mul(ask.sequences));
                spec.position_bytes(ask.options.kv_type).unwrap_or(0) * kept
            }
            Block::ShortConv { spec, .. } => size_of::<f32>() * spec.state_floats() * ask.sequences,
            Block::Embedding { .. } | Block::Ffn { .. } | Block::Head { .. } => return 0.0,
            Block::EncoderEmbedding { .. } | Block::EncoderAttention { .. } => return 0.0,
            Block::EncoderFfn { .. } | Block::EncoderHead { .. } => return 0.0,
        } as f64;
        [from, to].map(|d| bytes / ask.machine.devices[d].crossing_bytes_per_second.value).iter().sum()
    });
    moved.sum()
}

/// Tokens of prompts that are simulated at most, where there are several.
const PROMPT_TOKENS_MAX: usize = 65_536;

/// What a candidate would cost.
fn predict(ask: &Ask<'_>, candidate: Candidate) -> Prediction {
    let [prefill, decode] = (ask.corrections)(&candidate);
    let run_of =
        |placement, task, sequences| simulate(ask.spec, placement, ask.machine, ask.options, sequences, task);
    let run = |placement, task| run_of(placement, task, ask.sequences);
    let mut prediction = room(ask, candidate);
    let placements = &prediction.candidate.placements;
    let read = (ask.prompt > 0).then(|| {
        let task = Task::Answer { past: ask.past, prompt: ask.prompt, tokens: 1 };
        // Prompts follow each other: some of them tell how long all take.
        let few = (PROMPT_TOKENS_MAX / ask.prompt.max(1)).clamp(1, ask.sequences.max(1));
        let simulated = run_of(&placements.prefill, task, few).times(ask.sequences as f64 / few as f64);
        PhasePrediction {
            tokens: ask.prompt * ask.sequences,
            seconds: simulated.seconds * prefill.ratio,
            raw_seconds: simulated.seconds,
            correction: prefill,
            simulated,
        }
    });
    let written = (ask.decode > 0).then(|| {
        let tokens = ask.decode.min(DECODE_SIMULATED);
        let past = ask.past + ask.prompt + (ask.decode - tokens) / 2;
        let simulated = run(&placements.decode, Task::Decode { past, tokens });
        let raw_seconds = simulated.seconds * ask.decode as f64 / tokens as f64;
        PhasePrediction {
            tokens: ask.decode * ask.sequences,
            seconds: raw_seconds * decode.ratio,
            raw_seconds,
            correction: decode,
            simulated,
        }
    });
    (prediction.prefill, prediction.decode) = (read, written);
    prediction
}

/// What a candidate takes of the memories, its phases being open.
fn room(ask: &Ask<'_>, candidate: Candidate) -> Prediction {
    let placements = &candidate.placements;
    let needs = Need::of_placements(ask.spec, placements, ask.options);
    // The buffers for crossing are small, and there once.
    let mut device_bytes: Vec<u64> = needs.iter().map(|need| Need { crossing: 0, ..*need }.total()).collect();
    device_bytes.resize(ask.machine.devices.len(), 0);
    let mut memory_bytes = vec![0u64; ask.machine.memories.len()];
    for (device, bytes) in ask.machine.devices.iter().zip(&device_bytes) {
        memory_bytes[device.memory] = memory_bytes[device.memory].saturating_add(*bytes);
    }
    let misfit = match ask.check {
        Some(check) => check(placements),
        None => misfit(ask, &device_bytes, &memory_bytes),
    };
    let handover_seconds = handover_seconds(ask, placements);
    Prediction {
        prefill: None,
        decode: None,
        handover_seconds,
        device_bytes,
        memory_bytes,
        misfit,
        candidate,
    }
}

/// The first thing that is too small.
fn misfit(ask: &Ask<'_>, device_bytes: &[u64], memory_bytes: &[u64]) -> Option<Misfit> {
    let over = |name: &str, needed: u64, available: u64, budget: bool| {
        (needed > available).then(|| Misfit::Memory { name: name.to_owned(), needed, available, budget })
    };
    let budgets = ask.machine.devices.iter().zip(device_bytes).zip(ask.budgets);
    let budget = budgets
        .filter_map(|((device, needed), budget)| over(&device.name, *needed, (*budget)?, true))
        .max_by_key(Misfit::lacking);
    let memories = ask.machine.memories.iter().zip(memory_bytes);
    let memory =
        memories.filter_map(|(m, needed)| over(&m.name, *needed, m.bytes, false)).max_by_key(Misfit::lacking);
    budget.or(memory)
}

#[cfg(test)]
mod tests;
