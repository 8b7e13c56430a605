//! The order in which batch parts pass through the blocks: a pure function of placement and parts.

use std::ops::Range;
use std::sync::Arc;

use unicorn_core::{Batch, BlockKind, ModelSpec, Slice};

use crate::Placement;

/// What an item does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Run consecutive blocks on a device.
    Run {
        /// Indices of the blocks.
        blocks: Range<usize>,
        /// Index of the device.
        device: usize,
    },
    /// Copy the residual stream from one device to another, through the host.
    Cross {
        /// Index of the device that has it.
        from: usize,
        /// Index of the device that needs it.
        to: usize,
        /// Size of the residual stream.
        bytes: u64,
    },
}

/// One step of a batch part. Its residual stream has the part's index on every device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// Index of the batch part.
    pub part: usize,
    /// What to do.
    pub kind: Kind,
    /// Earlier items that must be done before this one starts.
    pub after: Vec<usize>,
}

/// Items in an order that respects their dependencies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// The items.
    pub items: Vec<Item>,
}

impl Schedule {
    /// Orders the parts as a wavefront: while part `p` is in segment `s` (a run of blocks on one device), part `p + 1` is
    /// in segment `s - 1`. With segments that alternate between two devices both work at once. A part whose tokens no one reads
    /// stops after the last mixer, which is the last block that leaves anything behind.
    ///
    /// A part depends on an earlier part with tokens of the same sequence in every segment that has a mixer.
    pub fn new(spec: &ModelSpec, placement: &Placement, parts: &[Arc<Batch>]) -> Schedule {
        let segments = placement.segments();
        let last_mixer = spec.blocks.iter().rposition(|b| b.kind() == BlockKind::Mixer);
        let ends: Vec<usize> = parts
            .iter()
            .map(|p| if p.outputs.is_empty() { last_mixer.map_or(0, |m| m + 1) } else { spec.blocks.len() })
            .collect();
        let mut items: Vec<Item> = Vec::new();
        // Item that ran segment `s` of part `p`.
        let mut ran = vec![vec![None; segments.len()]; parts.len()];
        for wave in 0..segments.len() + parts.len().saturating_sub(1) {
            for part in 0..parts.len().min(wave + 1) {
                let s = wave - part;
                let Some((range, device)) = segments.get(s) else { continue };
                let blocks = range.start..range.end.min(ends[part]);
                if blocks.is_empty() {
                    continue;
                }
                let mut after: Vec<usize> = Vec::new();
                if let Some(previous) = s.checked_sub(1).and_then(|s| ran[part][s]) {
                    let bytes = (parts[part].rows() * spec.width * size_of::<f32>()) as u64;
                    let kind = Kind::Cross { from: segments[s - 1].1, to: *device, bytes };
                    items.push(Item { part, kind, after: vec![previous] });
                    after.push(items.len() - 1);
                }
                if spec.blocks[blocks.clone()].iter().any(|b| b.kind() == BlockKind::Mixer) {
                    let earlier = (0..part).filter(|q| share_sequence(&parts[*q], &parts[part]));
                    after.extend(earlier.filter_map(|q| ran[q][s]));
                }
                items.push(Item { part, kind: Kind::Run { blocks, device: *device }, after });
                ran[part][s] = Some(items.len() - 1);
            }
        }
        Schedule { items }
    }

    /// Bytes of residual streams that cross between devices.
    pub fn crossing_bytes(&self) -> u64 {
        self.items.iter().map(|i| if let Kind::Cross { bytes, .. } = i.kind { bytes } else { 0 }).sum()
    }
}

/// True when both parts have tokens of one sequence: the later part then reads K and V of the earlier one.
pub(crate) fn share_sequence(a: &Batch, b: &Batch) -> bool {
    a.slices.iter().any(|x| b.slices.iter().any(|y| x.sequence == y.sequence))
}

/// Cuts a batch into at most `parts` batches of about equal rows, in order. A slice that is cut gives a part the tokens up to the cut,
/// and the next part the rest at later positions.
pub fn split_batch(batch: Batch, parts: usize, page_tokens: usize) -> Vec<Batch> {
    let rows = batch.rows();
    let parts = parts.clamp(1, rows.max(1));
    if parts == 1 {
        return vec![batch];
    }
    let bounds: Vec<usize> = (0..=parts).map(|p| p * rows / parts).collect();
    let mut out: Vec<Batch> = (0..parts)
        .map(|p| {
            let here = batch.outputs.iter().filter(|o| (bounds[p]..bounds[p + 1]).contains(&(**o as usize)));
            let outputs = here.map(|o| o - bounds[p] as u32).collect();
            Batch { slices: Vec::new(), outputs, select: batch.select }
        })
        .collect();
    let mut first = 0;
    for slice in &batch.slices {
        let end = first + slice.tokens.len();
        for (part, bound) in out.iter_mut().zip(bounds.windows(2)) {
            let (from, to) = (first.max(bound[0]), end.min(bound[1]));
            if from < to {
                let start = slice.start as usize + from - first;
                let pages = (start + to - from).div_ceil(page_tokens).min(slice.pages.len());
                part.slices.push(Slice {
                    sequence: slice.sequence,
                    tokens: slice.tokens[from - first..to - first].to_vec(),
                    start: start as u32,
                    pages: slice.pages[..pages].to_vec(),
                });
            }
        }
        first = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicorn_core::{Select, SequenceId};

    use super::*;
    use crate::testing::tiny_spec;

    fn part(sequence: u64, start: u32, tokens: usize, outputs: &[u32]) -> Arc<Batch> {
        let pages = (0..(start as usize + tokens).div_ceil(32) as u32).collect();
        let slice = Slice { sequence: SequenceId(sequence), tokens: vec![1; tokens], start, pages };
        Arc::new(Batch { slices: vec![slice], outputs: outputs.to_vec(), select: Select::Logits })
    }

    #[test]
    fn one_device_is_one_item_per_part() {
        let spec = tiny_spec(2);
        let placement = Placement::single(&spec).unwrap();
        let schedule = Schedule::new(&spec, &placement, &[part(0, 0, 3, &[2])]);
        let run = Kind::Run { blocks: 0..6, device: 0 };
        assert_eq!(schedule.items, [Item { part: 0, kind: run, after: vec![] }]);
        assert_eq!(schedule.crossing_bytes(), 0);
        // Nothing is read: the last ffn and the head are not run.
        let unread = Schedule::new(&spec, &placement, &[part(0, 0, 3, &[])]);
        assert_eq!(unread.items[0].kind, Kind::Run { blocks: 0..4, device: 0 });
    }

    #[test]
    fn two_chunks_overlap_on_two_devices() {
        let spec = tiny_spec(1);
        let placement = Placement::mixers_and_ffns(&spec).unwrap();
        let schedule = Schedule::new(&spec, &placement, &[part(0, 0, 4, &[]), part(0, 4, 4, &[3])]);
        let bytes = (4 * spec.width * 4) as u64;
        let item = |part, kind, after: &[usize]| Item { part, kind, after: after.to_vec() };
        assert_eq!(
            schedule.items,
            [
                item(0, Kind::Run { blocks: 0..2, device: 0 }, &[]),
                item(1, Kind::Run { blocks: 0..2, device: 0 }, &[0]),
                item(1, Kind::Cross { from: 0, to: 1, bytes }, &[1]),
                item(1, Kind::Run { blocks: 2..4, device: 1 }, &[2]),
            ]
        );
        assert_eq!(schedule.crossing_bytes(), bytes);
        // With both parts read, part 0 is in its ffn on device 1 while part 1 is in its mixer on device 0.
        let both = Schedule::new(&spec, &placement, &[part(0, 0, 4, &[3]), part(0, 4, 4, &[3])]);
        let order: Vec<(usize, &Kind)> = both.items.iter().map(|i| (i.part, &i.kind)).collect();
        assert_eq!(order[2], (0, &Kind::Run { blocks: 2..4, device: 1 }));
        assert_eq!(order[3], (1, &Kind::Run { blocks: 0..2, device: 0 }));
        assert_eq!(both.items[3].after, [0]);
    }

    #[test]
    fn groups_of_different_sequences_do_not_wait_for_each_other() {
        let spec = tiny_spec(2);
        let placement = Placement::mixers_and_ffns(&spec).unwrap();
        let schedule = Schedule::new(&spec, &placement, &[part(0, 9, 1, &[0]), part(1, 5, 1, &[0])]);
        for item in &schedule.items {
            assert!(item.after.iter().all(|a| schedule.items[*a].part == item.part));
        }
    }

    proptest! {
        #[test]
        fn schedules_are_complete_and_ordered(
            layers in 1usize..5, seed in any::<u64>(), devices in 1usize..4, parts in 1usize..5, same in any::<bool>(),
        ) {
            let spec = tiny_spec(layers);
            let assignment = (0..spec.blocks.len()).map(|i| (seed.rotate_left(i as u32 * 5) as usize) % devices).collect();
            let placement = Placement::new(&spec, devices, assignment).unwrap();
            let batch = |p: usize| part(if same { 0 } else { p as u64 }, p as u32 * 4, 4, &[3]);
            let parts: Vec<_> = (0..parts).map(batch).collect();
            let schedule = Schedule::new(&spec, &placement, &parts);
            let mut next = vec![0; parts.len()];
            let mut at = vec![None; parts.len()];
            let mut done = std::collections::HashMap::new();
            for (i, item) in schedule.items.iter().enumerate() {
                prop_assert!(item.after.iter().all(|a| *a < i));
                match &item.kind {
                    Kind::Cross { from, to, .. } => {
                        prop_assert_eq!(at[item.part], Some(*from));
                        at[item.part] = Some(*to);
                    }
                    Kind::Run { blocks, device } => {
                        prop_assert_eq!(blocks.start, next[item.part]);
                        next[item.part] = blocks.end;
                        prop_assert!(at[item.part].is_none_or(|d| d == *device));
                        at[item.part] = Some(*device);
                        for block in blocks.clone() {
                            prop_assert_eq!(placement.device(block), *device);
                            if same && item.part > 0 && spec.blocks[block].kind() == BlockKind::Mixer {
                                prop_assert!(item.after.contains(&done[&(item.part - 1, block)]));
                            }
                            done.insert((item.part, block), i);
                        }
                    }
                }
            }
            prop_assert!(next.iter().all(|n| *n == spec.blocks.len()));
        }

        #[test]
        fn parts_add_up_to_the_batch(
            lens in prop::collection::vec((1usize..50, 0u32..90), 1..6), parts in 1usize..6, read in any::<u64>(),
        ) {
            let slice = |(i, (n, start)): (usize, &(usize, u32))| Slice {
                sequence: SequenceId(i as u64),
                tokens: (0..*n as u32).map(|t| t + 100 * i as u32).collect(),
                start: *start,
                pages: (0..(*start as usize + n).div_ceil(32) as u32).map(|p| p + 100 * i as u32).collect(),
            };
            let slices: Vec<Slice> = lens.iter().enumerate().map(slice).collect();
            let rows: u32 = slices.iter().map(|s| s.tokens.len() as u32).sum();
            let outputs: Vec<u32> = (0..rows).filter(|r| read.rotate_left(*r) & 1 == 1).collect();
            let batch = Batch { slices, outputs: outputs.clone(), select: Select::Logits };
            let split = split_batch(batch.clone(), parts, 32);
            let sizes: Vec<usize> = split.iter().map(Batch::rows).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            let flat = |b: &Batch| b.slices.iter().flat_map(|s| s.tokens.iter().enumerate().map(|(i, t)| {
                let position = s.start as usize + i;
                (s.sequence, *t, position, s.pages[position / 32])
            }).collect::<Vec<_>>()).collect::<Vec<_>>();
            prop_assert_eq!(split.iter().flat_map(flat).collect::<Vec<_>>(), flat(&batch));
            let mut first = 0;
            let mut seen = Vec::new();
            for part in &split {
                seen.extend(part.outputs.iter().map(|o| o + first));
                first += part.rows() as u32;
                for s in &part.slices {
                    prop_assert_eq!(s.pages.len(), (s.start as usize + s.tokens.len()).div_ceil(32));
                }
            }
            prop_assert_eq!(seen, outputs);
        }
    }
}
