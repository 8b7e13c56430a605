use proptest::prelude::*;

use super::*;
use crate::Placement;
use crate::planner::candidates::PlacementKind;
use crate::planner::machine::{Curve, Origin};
use crate::planner::testing::{device, figure, machine};
use crate::testing::tiny_spec;

/// Devices whose mixers and ffns take this long whatever the rows, with a memory each.
fn of(seconds: &[(f64, f64)], bytes: u64) -> Machine {
    let named = |(i, (mixer, ffn)): (usize, &(f64, f64))| {
        let mut device = device(&format!("d{i}"), i);
        device.mixer = Curve::constant(*mixer, Origin::Measured).unwrap();
        device.ffn = Curve::constant(*ffn, Origin::Measured).unwrap();
        device
    };
    machine(seconds.iter().enumerate().map(named).collect(), bytes)
}

fn options() -> EngineOptions {
    EngineOptions { prefill_chunk: 32, context: 1024, ..EngineOptions::default() }
}

fn no_corrections(_: &Candidate) -> [Correction; 2] {
    [Correction::NONE; 2]
}

fn ask<'a>(spec: &'a ModelSpec, machine: &'a Machine, options: &'a EngineOptions) -> Ask<'a> {
    Ask {
        spec,
        machine,
        options,
        past: 0,
        prompt: 512,
        decode: 0,
        sequences: 1,
        budgets: &[],
        check: None,
        corrections: &no_corrections,
        only: None,
    }
}

fn chosen(plan: &Plan) -> &Prediction {
    &plan.ranked[plan.chosen.unwrap()]
}

#[test]
fn two_equal_devices_share_a_prompt_and_one_decodes_alone() {
    let (spec, options, machine) = (tiny_spec(8), options(), of(&[(1.0, 1.0), (1.0, 1.0)], 1 << 40));
    let prompt = plan(&ask(&spec, &machine, &options)).unwrap();
    let best = chosen(&prompt);
    assert!(best.candidate.devices().len() == 2, "{:?}", best.candidate.rules);
    let phase = best.prefill.as_ref().unwrap();
    assert!(phase.overlap() > 0.75 && phase.busy(0) > 0.8 && phase.busy(1) > 0.8, "{phase:?}");
    let Reason::Several { gain, .. } = &prompt.reason else { panic!("{:?}", prompt.reason) };
    assert!(*gain > 1.7, "{gain}");
    // One sequence gains nothing in decode: ties go to the single device.
    let answer = plan(&Ask { prompt: 0, decode: 100, ..ask(&spec, &machine, &options) }).unwrap();
    assert_eq!(chosen(&answer).candidate.devices(), [0]);
    assert!(chosen(&answer).prefill.is_none());
    // Nor do eight in two groups where both devices read all their weights for each group. They do where rows are what takes time.
    let many = |machine: &Machine| {
        let ask = Ask { prompt: 0, decode: 100, sequences: 8, ..ask(&spec, machine, &options) };
        let plan = plan(&ask).unwrap();
        chosen(&plan).candidate.devices().len()
    };
    assert_eq!(many(&machine), 1);
    let mut by_rows = machine.clone();
    for device in &mut by_rows.devices {
        device.ffn = Curve::new(&[(1, 4.0), (2, 8.0)], Origin::Measured).unwrap();
    }
    assert_eq!(many(&by_rows), 2);
}

#[test]
fn devices_with_different_strengths_take_the_parts_they_are_good_at() {
    let (spec, options, machine) = (tiny_spec(8), options(), of(&[(1.0, 9.0), (9.0, 1.0)], 1 << 40));
    let plan = plan(&ask(&spec, &machine, &options)).unwrap();
    assert_eq!(chosen(&plan).candidate.kinds(&spec)[0].0, PlacementKind::Parts);
    assert!(
        chosen(&plan).candidate.rules.starts_with("mixer=d0,ffn=d1"),
        "{}",
        chosen(&plan).candidate.rules
    );
}

#[test]
fn prompts_and_answers_are_placed_apart_where_that_pays_for_moving_the_state() {
    let (spec, options) = (tiny_spec(8), options());
    // Two devices read prompts in half the time; answers are slowed down by the latency of each hop.
    let mut machine = of(&[(1.0, 1.0), (1.0, 1.0)], 1 << 40);
    machine.devices.iter_mut().for_each(|d| d.latency_seconds = figure(4.0));
    let ask = Ask { decode: 16, ..ask(&spec, &machine, &options) };
    let plan = plan(&ask).unwrap();
    let best = chosen(&plan);
    let [prefill, decode] = best.candidate.kinds(&spec);
    assert_eq!((prefill.1.len(), decode.0), (2, PlacementKind::Single), "{}", best.candidate.rules);
    assert!(best.candidate.rules.starts_with("prefill:"), "{}", best.candidate.rules);
    let whole = best.prefill.as_ref().unwrap().seconds + best.decode.as_ref().unwrap().seconds;
    assert_eq!(best.seconds(), whole);
    // Each position of a mixer has 16 bytes in F16; what moves goes out of one device and into the other.
    let mut slow = machine.clone();
    slow.devices.iter_mut().for_each(|d| d.crossing_bytes_per_second = figure(512.0));
    let placements = &best.candidate.placements;
    let moved = handover_seconds(
        &Ask { machine: &slow, decode: 16, ..self::ask(&spec, &slow, &options) },
        placements,
    );
    let elsewhere = (0..spec.blocks.len()).filter(|b| {
        spec.blocks[*b].state().is_some() && placements.prefill.device(*b) != placements.decode.device(*b)
    });
    let elsewhere = elsewhere.count();
    assert!(elsewhere > 0);
    assert_eq!(moved, elsewhere as f64 * 512.0 * 16.0 * 2.0 / 512.0);
}

#[test]
fn a_small_gain_is_left_alone_until_predictions_are_known_to_be_right() {
    let (spec, options, machine) = (tiny_spec(8), options(), of(&[(1.0, 1.0), (6.7, 6.7)], 1 << 40));
    let first = plan(&ask(&spec, &machine, &options)).unwrap();
    let Reason::Alone { several: Some((_, gain, margin)), .. } = first.reason else {
        panic!("{:?}", first.reason)
    };
    assert!(gain > 1.035 && gain < 1.0 + margin, "{gain} {margin}");
    let sure = |_: &Candidate| [Correction { ratio: 1.0, error: 0.01, runs: 9 }; 2];
    let second = plan(&Ask { corrections: &sure, ..ask(&spec, &machine, &options) }).unwrap();
    assert!(matches!(second.reason, Reason::Several { .. }), "{:?}", second.reason);
}

#[test]
fn corrections_change_times_and_choice() {
    let (spec, options, machine) = (tiny_spec(4), options(), of(&[(1.0, 1.0), (1.2, 1.2)], 1 << 40));
    let slow = |candidate: &Candidate| match candidate.devices()[..] {
        [1] => [Correction::NONE; 2],
        _ => [Correction { ratio: 2.0, error: 0.0, runs: 5 }; 2],
    };
    let plan = plan(&Ask { corrections: &slow, ..ask(&spec, &machine, &options) }).unwrap();
    assert_eq!(chosen(&plan).candidate.devices(), [1]);
    let first = plan.ranked.iter().find(|p| p.candidate.devices() == [0]).unwrap();
    let phase = first.prefill.as_ref().unwrap();
    assert_eq!(phase.seconds, 2.0 * phase.raw_seconds);
}

#[test]
fn what_does_not_fit_is_said_and_shared_memory_counts_for_all() {
    let (spec, options) = (tiny_spec(4), options());
    let whole = Need::of_placements(&spec, &Placement::single(&spec).unwrap().into(), &options)[0].total();
    // Each holds three quarters of the model.
    let mut machine = of(&[(1.0, 1.0), (1.0, 1.0)], whole * 3 / 4);
    let split = plan(&ask(&spec, &machine, &options)).unwrap();
    assert!(matches!(
        &split.reason,
        Reason::NoSingleFits(Some(Misfit::Memory { needed, budget: false, .. })) if *needed == whole
    ));
    assert_eq!(chosen(&split).candidate.devices(), [0, 1]);
    assert!(chosen(&split).memory_bytes.iter().all(|b| *b > 0 && *b <= whole * 3 / 4));
    // With one memory for both, nothing does.
    machine.devices[1].memory = 0;
    let none = plan(&ask(&spec, &machine, &options)).unwrap();
    assert_eq!(none.chosen, None);
    assert!(
        matches!(&none.reason, Reason::NoneFits(Misfit::Memory { name, .. }) if name == "memory of d0"),
        "{:?}",
        none.reason
    );
    // A budget counts as the memory does, and is named.
    let machine = of(&[(1.0, 1.0), (5.0, 5.0)], 1 << 40);
    let budgets = [Some(whole - 1), None];
    let other =
        plan(&Ask { budgets: &budgets, decode: 9, prompt: 0, ..ask(&spec, &machine, &options) }).unwrap();
    let first = other.ranked.iter().find(|p| p.candidate.devices() == [0]).unwrap();
    assert!(matches!(
        &first.misfit,
        Some(m @ Misfit::Memory { name, budget: true, .. }) if name == "d0" && m.lacking() == 1
    ));
    assert_ne!(chosen(&other).candidate.devices(), [0]);
}

#[test]
fn devices_that_are_asked_decide_what_fits() {
    let (spec, options) = (tiny_spec(4), options());
    // By the estimates nothing fits, or everything: neither counts.
    for bytes in [0, 1 << 40] {
        let machine = of(&[(1.0, 1.0), (2.0, 2.0)], bytes);
        let full = |placements: &Placements| {
            let name = || "d0".to_owned();
            let used = placements.ways().iter().any(|p| (0..spec.blocks.len()).any(|b| p.device(b) == 0));
            used.then(|| Misfit::Memory { name: name(), needed: 2, available: 1, budget: false })
        };
        let first = plan(&Ask { check: Some(&full), ..ask(&spec, &machine, &options) }).unwrap();
        assert_eq!(chosen(&first).candidate.devices(), [1]);
        assert!(first.ranked.iter().all(|p| p.misfit.is_none() == (p.candidate.devices() == [1])));
        // Phases that are placed apart are asked about too.
        let none = |_: &Placements| Some(Misfit::Refused("no kernel for F16".to_owned()));
        let none = plan(&Ask { check: Some(&none), decode: 9, ..ask(&spec, &machine, &options) }).unwrap();
        assert!(none.chosen.is_none() && none.ranked.iter().all(|p| p.misfit.is_some()));
        assert_eq!(none.reason.to_string(), "it does not fit: no kernel for F16");
    }
}

#[test]
fn phases_are_placed_apart_on_devices_that_have_room() {
    let (spec, options) = (tiny_spec(8), options());
    // The first device is the fastest, and full.
    let mut machine = of(&[(0.5, 0.5), (1.0, 1.0), (1.0, 1.0)], 1 << 40);
    machine.devices.iter_mut().for_each(|d| d.latency_seconds = figure(4.0));
    let full = |placements: &Placements| {
        let used = placements.ways().iter().any(|p| p.assignment().contains(&0));
        used.then(|| Misfit::Refused("full".to_owned()))
    };
    let plan = plan(&Ask { check: Some(&full), decode: 16, ..ask(&spec, &machine, &options) }).unwrap();
    let best = chosen(&plan);
    assert!(best.candidate.rules.starts_with("prefill:"), "{}", best.candidate.rules);
}

#[test]
fn a_placement_that_was_asked_for_is_compared_with_the_best_alone() {
    let (spec, options, machine) = (tiny_spec(4), options(), of(&[(1.0, 1.0), (3.0, 3.0)], 1 << 40));
    let placement = Placement::new(&spec, 2, vec![1; spec.blocks.len()]).unwrap();
    let only = Some(vec![Candidate { rules: "0-3=d1".into(), placements: placement.into() }]);
    let plan = plan(&Ask { only, ..ask(&spec, &machine, &options) }).unwrap();
    assert_eq!(plan.ranked.len(), 2);
    assert_eq!(chosen(&plan).candidate.devices(), [1]);
    let Reason::Asked { than_single: Some((rules, gain)) } = &plan.reason else {
        panic!("{:?}", plan.reason)
    };
    assert!(rules == "0-3=d0" && (gain * 3.0 - 1.0).abs() < 1e-6, "{rules} {gain}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_choice_is_the_fastest_that_fits_or_the_best_alone_within_the_margin(
        layers in 1usize..7,
        seconds in prop::collection::vec((0.01f64..3.0, 0.01f64..3.0), 1..4),
        latency in 0.0f64..0.5,
        decode in 0usize..20,
        sequences in 1usize..5,
        bytes in 20_000u64..200_000,
    ) {
        let (spec, options) = (tiny_spec(layers), options());
        let mut machine = of(&seconds, bytes);
        machine.devices.iter_mut().for_each(|d| d.latency_seconds = figure(latency));
        let plan = plan(&Ask { decode, sequences, prompt: 100, ..ask(&spec, &machine, &options) }).unwrap();
        for p in &plan.ranked {
            prop_assert_eq!(p.misfit.is_some(), p.memory_bytes.iter().any(|b| *b > bytes));
            prop_assert!(p.seconds().is_finite() && p.seconds() > 0.0);
        }
        let fitting: Vec<&Prediction> = plan.ranked.iter().filter(|p| p.misfit.is_none()).collect();
        let Some(chosen) = plan.chosen.map(|i| &plan.ranked[i]) else {
            prop_assert!(fitting.is_empty());
            return Ok(());
        };
        let least = |single: bool| {
            let of = fitting.iter().filter(|p| (p.candidate.devices().len() == 1) == single);
            of.map(|p| p.seconds()).fold(f64::INFINITY, f64::min)
        };
        let (alone, several) = (least(true), least(false));
        let margin = Correction::NONE.error;
        let expected = if alone > several * (1.0 + margin) { several } else { alone };
        prop_assert_eq!(chosen.seconds(), expected);
        prop_assert!(chosen.seconds() <= alone);
    }
}
