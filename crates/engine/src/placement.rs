//! Which device runs which block.

use unicorn_core::{BlockKind, ModelSpec};

use crate::PlacementError;

/// What a batch does for its sequences.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// Reads prompts: many tokens of a sequence.
    Prefill,
    /// Generates: one token of each sequence, or a few.
    Decode,
}

/// Where prompts are read and where tokens are generated. Where these differ, a block may be on two devices, and the state of a mixer that
/// is goes from one to the other when a sequence changes phase.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placements {
    /// For [`Phase::Prefill`].
    pub prefill: Placement,
    /// For [`Phase::Decode`].
    pub decode: Placement,
}

impl From<Placement> for Placements {
    fn from(both: Placement) -> Placements {
        Placements { prefill: both.clone(), decode: both }
    }
}

impl Placements {
    /// The different ones: prefill's, then decode's if it is another.
    pub(crate) fn ways(&self) -> Vec<&Placement> {
        if self.prefill == self.decode { vec![&self.prefill] } else { vec![&self.prefill, &self.decode] }
    }

    /// True where residual streams go from one device to another in some phase.
    pub(crate) fn cross(&self) -> bool {
        self.ways().iter().any(|placement| placement.segments().len() > 1)
    }

    /// The model as a device sees it: the blocks placed there in either phase.
    pub(crate) fn part(&self, spec: &ModelSpec, device: usize) -> ModelSpec {
        let here = |block: usize| self.ways().iter().any(|p| p.device(block) == device);
        let blocks = spec.blocks.iter().enumerate().filter(|(i, _)| here(*i)).map(|(_, b)| b.clone());
        ModelSpec { blocks: blocks.collect(), ..spec.clone() }
    }

    /// Bytes of weights that all devices hold; tensors with equal spans count once per device.
    pub(crate) fn weight_bytes(&self, spec: &ModelSpec) -> u64 {
        (0..self.prefill.devices()).map(|device| self.part(spec, device).weight_bytes()).sum()
    }
}

/// A device index for every block of a model. Plain data, checked when made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    devices: usize,
    assignment: Vec<usize>,
}

impl Placement {
    /// Assigns block `i` to device `assignment[i]` out of `devices`.
    ///
    /// Errors when the lengths differ, a device does not exist, or the model is not one embedding, then mixers and
    /// ffns, then one head.
    pub fn new(
        spec: &ModelSpec,
        devices: usize,
        assignment: Vec<usize>,
    ) -> Result<Placement, PlacementError> {
        check_order(spec)?;
        if assignment.len() != spec.blocks.len() {
            return Err(PlacementError::Length { assigned: assignment.len(), blocks: spec.blocks.len() });
        }
        if let Some((block, &device)) = assignment.iter().enumerate().find(|(_, d)| **d >= devices) {
            return Err(PlacementError::Device { block, device, devices });
        }
        Ok(Placement { devices, assignment })
    }

    /// Everything on device 0.
    pub fn single(spec: &ModelSpec) -> Result<Placement, PlacementError> {
        Placement::new(spec, 1, vec![0; spec.blocks.len()])
    }

    /// Embedding and mixers on device 0, ffns and head on device 1. The head goes with the ffns because it is a matrix
    /// product like them and follows the last one: no further crossing.
    #[cfg(test)]
    pub(crate) fn mixers_and_ffns(spec: &ModelSpec) -> Result<Placement, PlacementError> {
        let device = |kind| match kind {
            BlockKind::Embedding | BlockKind::Mixer => 0,
            BlockKind::Ffn | BlockKind::Head => 1,
        };
        Placement::new(spec, 2, spec.blocks.iter().map(|b| device(b.kind())).collect())
    }

    /// The first `layers[0]` layers on device 0, the next `layers[1]` on device 1, and so on. The embedding goes with the
    /// first layer, the head with the last. A layer begins at its mixer.
    #[cfg(test)]
    pub(crate) fn by_layers(spec: &ModelSpec, layers: &[usize]) -> Result<Placement, PlacementError> {
        let split = layers.iter().fold(0usize, |sum, n| sum.saturating_add(*n));
        if split != spec.layers() {
            return Err(PlacementError::Layers { split, layers: spec.layers() });
        }
        let device_of_layer: Vec<usize> =
            layers.iter().enumerate().flat_map(|(device, n)| std::iter::repeat_n(device, *n)).collect();
        let mut mixers = 0usize;
        let mut assignment = Vec::with_capacity(spec.blocks.len());
        for block in &spec.blocks {
            mixers += usize::from(block.kind() == BlockKind::Mixer);
            let layer = mixers.saturating_sub(1);
            assignment.push(device_of_layer.get(layer).copied().unwrap_or(0));
        }
        Placement::new(spec, layers.len().max(1), assignment)
    }

    /// Number of devices, used or not.
    pub fn devices(&self) -> usize {
        self.devices
    }

    /// Device of a block.
    pub fn device(&self, block: usize) -> usize {
        self.assignment[block]
    }

    /// Device of every block.
    pub(crate) fn assignment(&self) -> &[usize] {
        &self.assignment
    }

    /// Maximal runs of consecutive blocks on one device: `(blocks, device)`.
    pub(crate) fn segments(&self) -> Vec<(std::ops::Range<usize>, usize)> {
        let mut segments: Vec<(std::ops::Range<usize>, usize)> = Vec::new();
        for (block, &device) in self.assignment.iter().enumerate() {
            match segments.last_mut() {
                Some((range, last)) if *last == device => range.end = block + 1,
                _ => segments.push((block..block + 1, device)),
            }
        }
        segments
    }

    /// One line per segment, for people; `names[d]` is the name of device `d`.
    pub fn describe(&self, names: &[String]) -> Vec<String> {
        let name = |d: usize| names.get(d).cloned().unwrap_or_else(|| format!("device {d}"));
        let segments = self.segments();
        let line = |(r, d): &(std::ops::Range<usize>, usize)| {
            format!("blocks {}..={}: {}", r.start, r.end - 1, name(*d))
        };
        segments.iter().map(line).collect()
    }
}

fn check_order(spec: &ModelSpec) -> Result<(), PlacementError> {
    let kinds: Vec<BlockKind> = spec.blocks.iter().map(|b| b.kind()).collect();
    let order = |what: String| Err(PlacementError::Order(what));
    match kinds.as_slice() {
        [BlockKind::Embedding, middle @ .., BlockKind::Head] => {
            match middle.iter().position(|k| !matches!(k, BlockKind::Mixer | BlockKind::Ffn)) {
                Some(i) => order(format!("block {} is {:?} between mixers and ffns", i + 1, middle[i])),
                None => Ok(()),
            }
        }
        [] => order("it has no blocks".into()),
        [BlockKind::Embedding, ..] => order("the last block is no head".into()),
        _ => order("the first block is no embedding".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::tiny_spec;

    #[test]
    fn constructors_place_as_named() {
        let spec = tiny_spec(3);
        assert_eq!(Placement::single(&spec).unwrap().segments(), vec![(0..8, 0)]);
        let mixed = Placement::mixers_and_ffns(&spec).unwrap();
        assert_eq!(mixed.assignment(), [0, 0, 1, 0, 1, 0, 1, 1]);
        let split = Placement::by_layers(&spec, &[2, 1]).unwrap();
        assert_eq!(split.assignment(), [0, 0, 0, 0, 0, 1, 1, 1]);
        let empty_first = Placement::by_layers(&spec, &[0, 3]).unwrap();
        assert_eq!(empty_first.assignment(), [1; 8]);
        assert_eq!(split.describe(&["a".into(), "b".into()]), ["blocks 0..=4: a", "blocks 5..=7: b"]);
    }

    #[test]
    fn wrong_placements_are_named() {
        let spec = tiny_spec(2);
        assert_eq!(
            Placement::new(&spec, 1, vec![0; 5]),
            Err(PlacementError::Length { assigned: 5, blocks: 6 })
        );
        assert_eq!(
            Placement::new(&spec, 2, vec![0, 0, 2, 0, 0, 0]),
            Err(PlacementError::Device { block: 2, device: 2, devices: 2 })
        );
        assert_eq!(Placement::by_layers(&spec, &[1, 2]), Err(PlacementError::Layers { split: 3, layers: 2 }));
        let mut headless = tiny_spec(2);
        headless.blocks.pop();
        assert!(matches!(Placement::single(&headless), Err(PlacementError::Order(_))));
        let mut twice = tiny_spec(2);
        let embedding = twice.blocks[0].clone();
        twice.blocks.insert(3, embedding);
        assert!(matches!(Placement::single(&twice), Err(PlacementError::Order(_))));
    }

    proptest! {
        #[test]
        fn segments_partition_the_blocks(layers in 1usize..6, seed in any::<u64>(), devices in 1usize..4) {
            let spec = tiny_spec(layers);
            let pick = |i: usize| (seed.rotate_left(i as u32 * 7) as usize) % devices;
            let assignment: Vec<usize> = (0..spec.blocks.len()).map(pick).collect();
            let placement = Placement::new(&spec, devices, assignment.clone()).unwrap();
            let mut next = 0;
            let mut last = usize::MAX;
            for (range, device) in placement.segments() {
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end > range.start);
                prop_assert_ne!(device, last);
                prop_assert!(range.clone().all(|b| assignment[b] == device));
                (next, last) = (range.end, device);
            }
            prop_assert_eq!(next, spec.blocks.len());
            prop_assert!(Placements::from(placement).weight_bytes(&spec) >= spec.weight_bytes());
        }
    }
}
