//! How right predictions were: kept for each device, told beside each measurement, and used to correct the next ones.

use unicorn_core::ModelSpec;
use unicorn_engine::planner::{Candidate, Correction, PhasePrediction, RUNS_MAX};

use super::figures::{Grade, Phase};
use crate::devices::cache::{DeviceCache, Key};
use crate::units;

/// The grades of the devices of a machine, in its order.
pub struct Grades<'a> {
    cache: &'a DeviceCache,
    keys: &'a [Key],
    /// Of each device as the first of those that a placement uses.
    kept: Vec<Vec<Grade>>,
}

impl<'a> Grades<'a> {
    /// Reads what is kept about these devices.
    pub fn read(cache: &'a DeviceCache, keys: &'a [Key]) -> Grades<'a> {
        let kept = keys.iter().map(|key| cache.grades(key).map_or(Vec::new(), |found| found.finding));
        Grades { cache, keys, kept: kept.collect() }
    }

    /// The first device that a placement uses in a phase, and what the placement is called among its grades.
    fn place(&self, candidate: &Candidate, spec: &ModelSpec, phase: Phase) -> Option<(usize, String)> {
        let [prefill, decode] = candidate.kinds(spec);
        let (kind, used) = if phase == Phase::Prefill { prefill } else { decode };
        let (first, others) = used.split_first()?;
        let mut label = kind.to_string();
        for other in others {
            label += &format!(" with {}", self.keys.get(*other)?.short());
        }
        Some((*first, label))
    }

    /// What earlier runs say about predictions for placements: of prefill, and of decode.
    pub fn corrections(&self, candidate: &Candidate, spec: &ModelSpec) -> [Correction; 2] {
        [Phase::Prefill, Phase::Decode].map(|phase| {
            let Some((first, label)) = self.place(candidate, spec, phase) else { return Correction::NONE };
            let same = |g: &&Grade| g.placement == label && g.phase == phase;
            let kept = self.kept.get(first).into_iter().flatten();
            let ratios: Vec<f64> = kept.filter(same).map(|g| g.ratio).collect();
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
        let Some((first, placement)) = self.place(candidate, spec, phase) else { return Ok(()) };
        let Some(kept) = self.kept.get_mut(first) else { return Ok(()) };
        kept.push(Grade { placement: placement.clone(), phase, ratio });
        let same = |g: &Grade| g.placement == placement && g.phase == phase;
        if kept.iter().filter(|g| same(g)).count() > RUNS_MAX
            && let Some(oldest) = kept.iter().position(same)
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
        let [prefill, decode] = again.corrections(&single, &spec);
        assert_eq!((prefill.ratio, prefill.runs, decode), (2.0, RUNS_MAX, Correction::NONE));
        let [prefill, decode] = again.corrections(&parts, &spec);
        assert_eq!((prefill, decode.ratio, decode.runs), (Correction::NONE, 0.5, 1));
        // What is known about a placement counts where only one phase has it.
        let apart = candidate("prefill:0-29=a,decode:mixer=a,decode:ffn=b", &spec);
        let [prefill, decode] = again.corrections(&apart, &spec);
        assert_eq!((prefill.ratio, decode.ratio), (2.0, 0.5));
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
