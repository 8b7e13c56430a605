//! How right predictions were: kept for each device, told beside each measurement, and used to correct the next ones.

use unicorn_core::ModelSpec;
use unicorn_engine::planner::{Candidate, Correction, PhasePrediction, RUNS_MAX};

use super::figures::{Grade, Phase};
use super::here::types;
use crate::devices::cache::{DeviceCache, Key};
use crate::units;

/// The grades of the devices of a machine, in its order.
pub struct Grades<'a> {
    cache: &'a DeviceCache,
    keys: &'a [Key],
    /// Of each device as the first of those that a placement uses.
    kept: Vec<Vec<Grade>>,
}

/// Predictions that are off alike.
struct Kind {
    placement: String,
    weights: String,
    phase: Phase,
}

impl Kind {
    fn is_of(&self, grade: &Grade) -> bool {
        (&grade.placement, &grade.weights, grade.phase) == (&self.placement, &self.weights, self.phase)
    }
}

impl<'a> Grades<'a> {
    /// Reads what is kept about these devices.
    pub fn read(cache: &'a DeviceCache, keys: &'a [Key]) -> Grades<'a> {
        let kept = keys.iter().map(|key| cache.grades(key).map_or(Vec::new(), |found| found.finding));
        Grades { cache, keys, kept: kept.collect() }
    }

    /// The first device that a placement uses in a phase, and what predictions of this kind are called among its grades.
    fn kind(&self, candidate: &Candidate, spec: &ModelSpec, phase: Phase) -> Option<(usize, Kind)> {
        let [prefill, decode] = candidate.kinds(spec);
        let (kind, used) = if phase == Phase::Prefill { prefill } else { decode };
        let (first, others) = used.split_first()?;
        let mut placement = kind.to_string();
        for other in others {
            placement += &format!(" with {}", self.keys.get(*other)?.short());
        }
        let weights = types(spec).first().map_or("", |ty| ty.name()).to_owned();
        Some((*first, Kind { placement, weights, phase }))
    }

    /// What earlier runs say about predictions for placements: of prefill, and of decode.
    pub fn corrections(&self, candidate: &Candidate, spec: &ModelSpec) -> [Correction; 2] {
        [Phase::Prefill, Phase::Decode].map(|phase| {
            let Some((first, kind)) = self.kind(candidate, spec, phase) else { return Correction::NONE };
            let kept = self.kept.get(first).into_iter().flatten();
            let ratios: Vec<f64> = kept.filter(|g| kind.is_of(g)).map(|g| g.ratio).collect();
            Correction::of(&ratios)
        })
    }

    /// Keeps how a measurement went beside its prediction.
    ///
    /// Errors when that cannot be written.
    pub fn keep(
        &mut self,
        candidate: &Candidate,
        spec: &ModelSpec,
        phase: Phase,
        ratio: f64,
    ) -> anyhow::Result<()> {
        let Some((first, kind)) = self.kind(candidate, spec, phase) else { return Ok(()) };
        let Some(kept) = self.kept.get_mut(first) else { return Ok(()) };
        kept.push(Grade { placement: kind.placement.clone(), weights: kind.weights.clone(), phase, ratio });
        if kept.iter().filter(|g| kind.is_of(g)).count() > RUNS_MAX
            && let Some(oldest) = kept.iter().position(|g| kind.is_of(g))
        {
            kept.remove(oldest);
        }
        self.cache.keep_grades(&self.keys[first], kept)
    }
}

/// `predicted 100 tok/s, measured 93.0: 7.0 % slower`, and what was corrected.
pub fn in_words(phase: Phase, predicted: &PhasePrediction, measured_tokens_per_second: f64) -> String {
    let expected = predicted.tokens_per_second();
    let off = measured_tokens_per_second / expected - 1.0;
    let how = if off < 0.0 { "slower" } else { "faster" };
    let mut line = format!(
        "{phase}: predicted {} tok/s, measured {}: {} {how}",
        units::three_digits(expected),
        units::three_digits(measured_tokens_per_second),
        units::percent(off.abs()),
    );
    line.extend(corrected(&predicted.correction).map(|text| format!(" ({text})")));
    line
}

/// `corrected by 0.93 from 12 runs`; nothing where nothing is known.
pub fn corrected(correction: &Correction) -> Option<String> {
    let Correction { ratio, runs, .. } = correction;
    // Times are corrected; people think in rates.
    let runs = if *runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") };
    (correction.runs > 0).then(|| format!("corrected by {:.2} from {runs}", 1.0 / ratio))
}

#[cfg(test)]
mod tests {
    use unicorn_cases::shapes;
    use unicorn_core::{Device, TensorType};
    use unicorn_cpu::ReferenceDevice;
    use unicorn_engine::PlaceRules;

    use super::*;

    fn candidate(rules: &str, spec: &ModelSpec) -> Candidate {
        let placements = rules.parse::<PlaceRules>().unwrap().resolve(spec).unwrap();
        Candidate { rules: rules.into(), placements }
    }

    #[test]
    fn grades_correct_the_same_kind_of_placement_only_and_stay_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DeviceCache::new(Some(folder.path()));
        let profile = ReferenceDevice::new().profile().clone();
        let keys = [Key::new(&profile, 1), Key::new(&profile, 2)];
        let spec = shapes::model("smollm2-135m", TensorType::Q8_0).unwrap();
        let [single, parts] = ["0-29=a", "mixer=a,ffn=b"].map(|rules| candidate(rules, &spec));
        let mut grades = Grades::read(&cache, &keys);
        for _ in 0..RUNS_MAX + 5 {
            grades.keep(&single, &spec, Phase::Prefill, 2.0).unwrap();
        }
        grades.keep(&parts, &spec, Phase::Decode, 0.5).unwrap();
        let again = Grades::read(&cache, &keys);
        let (often, once) = (Correction::of(&[2.0; RUNS_MAX]), Correction::of(&[0.5]));
        assert!(often.ratio > 1.8 && often.runs == RUNS_MAX && once.ratio < 0.8 && once.runs == 1);
        assert_eq!(again.corrections(&single, &spec), [often, Correction::NONE]);
        assert_eq!(again.corrections(&parts, &spec), [Correction::NONE, once]);
        // What is known about a placement counts where only one phase has it.
        let apart = candidate("prefill:0-29=a,decode:mixer=a,decode:ffn=b", &spec);
        assert_eq!(again.corrections(&apart, &spec), [often, once]);
        // Kernels for another type of weights are other kernels.
        let f16 = shapes::model("smollm2-135m", TensorType::F16).unwrap();
        assert_eq!(again.corrections(&single, &f16), [Correction::NONE; 2]);
        // With another second device it is another placement.
        let other = [Key::new(&profile, 1), Key::new(&profile, 3)];
        assert_eq!(Grades::read(&cache, &other).corrections(&parts, &spec), [Correction::NONE; 2]);
        cache.forget_grades(&keys[0]);
        assert_eq!(Grades::read(&cache, &keys).corrections(&single, &spec), [Correction::NONE; 2]);
    }

    #[test]
    fn words_say_which_way_it_was_off() {
        let correction = Correction { ratio: 1.25, error: 0.1, runs: 12 };
        let simulated = unicorn_engine::planner::Simulated::default();
        let predicted =
            PhasePrediction { tokens: 512, seconds: 2.0, raw_seconds: 1.6, correction, simulated };
        let line = in_words(Phase::Prefill, &predicted, 192.0);
        assert_eq!(
            line,
            "prompt: predicted 256 tok/s, measured 192: 25.0 % slower (corrected by 0.80 from 12 runs)"
        );
        let uncorrected = PhasePrediction { correction: Correction::NONE, ..predicted };
        assert!(in_words(Phase::Decode, &uncorrected, 320.0).ends_with("measured 320: 25.0 % faster"));
    }
}
