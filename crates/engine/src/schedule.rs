//! The way of a batch through the blocks: a pure function of model and placement.

use std::ops::Range;

use unicorn_core::{Crossing, ModelSpec};

use crate::Placement;

/// Consecutive blocks that one device runs for a batch: one submission.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    /// Indices of the blocks.
    pub blocks: Range<usize>,
    /// Index of the device.
    pub device: usize,
    /// Whether the residual stream comes from another device, and whether another goes on with it.
    pub crossing: Crossing,
    /// True where a mixer is among the blocks. Then a batch that continues a sequence has to come after the batch before it.
    pub mixes: bool,
}

/// The steps of a batch, each after the one before. Batches on their way at the same time overlap wherever they are in steps on
/// different devices and the later one does not continue a sequence of the earlier one in a step that mixes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Schedule {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Schedule {
    /// The way of a batch that reads `outputs` rows. One that reads none stops after the last mixer, which is the last block that leaves
    /// anything behind.
    pub fn new(spec: &ModelSpec, placement: &Placement, outputs: usize) -> Schedule {
        let needed = spec.needed_blocks(outputs);
        let cut = |(range, device): (Range<usize>, usize)| (range.start..range.end.min(needed), device);
        let segments = placement.segments().into_iter().map(cut).filter(|(range, _)| !range.is_empty());
        let segments: Vec<(Range<usize>, usize)> = segments.collect();
        let last = segments.len().saturating_sub(1);
        let step = |(i, (blocks, device)): (usize, (Range<usize>, usize))| Step {
            crossing: Crossing { import: i > 0, export: i < last },
            mixes: spec.blocks[blocks.clone()].iter().any(|b| b.state().is_some()),
            blocks,
            device,
        };
        Schedule { steps: segments.into_iter().enumerate().map(step).collect() }
    }

    /// Times that the residual stream crosses from one device to another.
    #[cfg(test)]
    pub fn crossings(&self) -> usize {
        self.steps.iter().filter(|s| s.crossing.import).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::tiny_spec;

    #[test]
    fn one_device_is_one_step() {
        let spec = tiny_spec(2);
        let placement = Placement::single(&spec).unwrap();
        let step = |blocks| Step { blocks, device: 0, crossing: Crossing::default(), mixes: true };
        assert_eq!(Schedule::new(&spec, &placement, 1).steps, [step(0..6)]);
        // Nothing is read: the last ffn and the head are not run.
        assert_eq!(Schedule::new(&spec, &placement, 0).steps, [step(0..4)]);
    }

    #[test]
    fn mixers_and_ffns_alternate() {
        let spec = tiny_spec(2);
        let placement = Placement::mixers_and_ffns(&spec).unwrap();
        let step = |blocks, device, import, export| {
            let crossing = Crossing { import, export };
            Step { blocks, device, crossing, mixes: device == 0 }
        };
        let all = Schedule::new(&spec, &placement, 3);
        let expected = [
            step(0..2, 0, false, true),
            step(2..3, 1, true, true),
            step(3..4, 0, true, true),
            step(4..6, 1, true, false),
        ];
        assert_eq!(all.steps, expected);
        assert_eq!(all.crossings(), 3);
        let unread = Schedule::new(&spec, &placement, 0);
        assert_eq!(unread.steps[..2], expected[..2]);
        assert_eq!(unread.steps[2], step(3..4, 0, true, false));
    }

    proptest! {
        #[test]
        fn schedules_are_complete_and_ordered(
            layers in 1usize..5, seed in any::<u64>(), devices in 1usize..4, outputs in 0usize..2,
        ) {
            let spec = tiny_spec(layers);
            let assignment = (0..spec.blocks.len()).map(|i| (seed.rotate_left(i as u32 * 5) as usize) % devices).collect();
            let placement = Placement::new(&spec, devices, assignment).unwrap();
            let schedule = Schedule::new(&spec, &placement, outputs);
            let mut next = 0;
            let mut at = None;
            for step in &schedule.steps {
                prop_assert_eq!(step.blocks.start, next);
                prop_assert!(!step.blocks.is_empty());
                prop_assert_eq!(step.crossing.import, at.is_some());
                prop_assert!(at != Some(step.device));
                prop_assert!(step.blocks.clone().all(|b| placement.device(b) == step.device));
                prop_assert_eq!(step.mixes, step.blocks.clone().any(|b| spec.blocks[b].state().is_some()));
                prop_assert_eq!(step.crossing.export, step.blocks.end < spec.needed_blocks(outputs));
                (next, at) = (step.blocks.end, Some(step.device));
            }
            prop_assert_eq!(next, spec.needed_blocks(outputs));
        }
    }
}
