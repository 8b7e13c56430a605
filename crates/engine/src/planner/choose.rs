//! Which placement to take, and why.

use unicorn_core::{Block, ModelSpec};

use super::candidates::{Candidate, candidates};
use super::grade::Correction;
use super::machine::Machine;
use super::reason::{Misfit, Reason};
use super::simulate::{Phase, Simulated, simulate};
use crate::{EngineOptions, Placement, PlacementError};

/// What is to be planned.
pub struct Ask<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// The devices to choose from.
    pub machine: &'a Machine,
    /// How the engine is set up.
    pub options: &'a EngineOptions,
    /// Tokens of a prompt; 0 for none.
    pub prompt: usize,
    /// Tokens of an answer; 0 for none.
    pub decode: usize,
    /// Equal requests at once.
    pub sequences: usize,
    /// Bytes that each device may take at most, by its number; one without an entry may take all that its memory has.
    pub budgets: &'a [Option<u64>],
    /// What earlier runs say about predictions for a placement: of prefill, and of decode.
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
        [&self.prefill, &self.decode].into_iter().flatten().map(|p| p.seconds).sum()
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
        let new = only.iter().filter(|o| !all.iter().any(|c| c.placement == o.placement));
        let new: Vec<Candidate> = new.cloned().collect();
        all.extend(new);
    }
    let mut ranked: Vec<Prediction> = all.into_iter().map(|c| predict(ask, c)).collect();
    let order = |p: &Prediction| (p.misfit.is_some(), p.candidate.devices().len());
    ranked.sort_by(|a, b| {
        let seconds = a.seconds().total_cmp(&b.seconds());
        order(a).0.cmp(&order(b).0).then(seconds).then(order(a).1.cmp(&order(b).1))
    });
    let wanted = |p: &Prediction| match &ask.only {
        Some(only) => only.iter().any(|o| o.placement == p.candidate.placement),
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

/// What a candidate would cost.
fn predict(ask: &Ask<'_>, candidate: Candidate) -> Prediction {
    let [prefill, decode] = (ask.corrections)(&candidate);
    let run =
        |phase| simulate(ask.spec, &candidate.placement, ask.machine, ask.options, ask.sequences, phase);
    let prefill = (ask.prompt > 0).then(|| {
        let simulated = run(Phase::Answer { prompt: ask.prompt, tokens: 1 });
        PhasePrediction {
            tokens: ask.prompt * ask.sequences,
            seconds: simulated.seconds * prefill.ratio,
            raw_seconds: simulated.seconds,
            correction: prefill,
            simulated,
        }
    });
    let decode = (ask.decode > 0).then(|| {
        let tokens = ask.decode.min(DECODE_SIMULATED);
        let past = ask.prompt + (ask.decode - tokens) / 2;
        let simulated = run(Phase::Decode { past, tokens });
        let raw_seconds = simulated.seconds * ask.decode as f64 / tokens as f64;
        PhasePrediction {
            tokens: ask.decode * ask.sequences,
            seconds: raw_seconds * decode.ratio,
            raw_seconds,
            correction: decode,
            simulated,
        }
    });
    let placement = &candidate.placement;
    let device_bytes: Vec<u64> =
        (0..ask.machine.devices.len()).map(|d| needed_bytes(ask.spec, placement, d, ask.options)).collect();
    let mut memory_bytes = vec![0u64; ask.machine.memories.len()];
    for (device, bytes) in ask.machine.devices.iter().zip(&device_bytes) {
        memory_bytes[device.memory] = memory_bytes[device.memory].saturating_add(*bytes);
    }
    let misfit = misfit(ask, &device_bytes, &memory_bytes);
    Prediction { prefill, decode, device_bytes, memory_bytes, misfit, candidate }
}

/// The first thing that is too small.
fn misfit(ask: &Ask<'_>, device_bytes: &[u64], memory_bytes: &[u64]) -> Option<Misfit> {
    let over = |name: &str, needed: u64, available: u64, budget: bool| {
        (needed > available).then(|| Misfit { name: name.to_owned(), needed, available, budget })
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

/// Buffers of a row of the batch, each as wide as the model or its feed-forward blocks, that a device uses beside the residual stream.
const BUFFERS: u64 = 4;

/// Bytes that a device needs for the blocks that are placed on it.
fn needed_bytes(spec: &ModelSpec, placement: &Placement, device: usize, options: &EngineOptions) -> u64 {
    let part = placement.part(spec, device);
    if part.blocks.is_empty() {
        return 0;
    }
    let positions = options.pages().saturating_mul(options.page_tokens);
    let kv = part.blocks.iter().map(|block| match block {
        Block::Attention { spec, .. } => {
            let row = options.kv_type.tensor_type().row_bytes(spec.head_dim).unwrap_or(0) as u64;
            (2 * spec.kv_heads as u64).saturating_mul(row).saturating_mul(positions as u64)
        }
        _ => 0,
    });
    let widest = part.blocks.iter().map(|block| match block {
        Block::Ffn { spec, .. } => spec.hidden.max(spec.width),
        _ => 0,
    });
    let rows = options.prefill_chunk.min(options.context) as u64;
    let activations = (widest.max().unwrap_or(0) as u64).saturating_mul(rows * BUFFERS);
    let scratch = activations.saturating_add(part.vocab as u64).saturating_mul(size_of::<f32>() as u64);
    part.weight_bytes().saturating_add(kv.fold(0, u64::saturating_add)).saturating_add(scratch)
}

#[cfg(test)]
mod tests;
