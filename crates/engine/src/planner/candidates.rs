//! The placements that are worth a thought.

use unicorn_core::{BatchShape, Block, BlockKind, Crossing, KvType, ModelSpec};

use super::machine::Machine;
use super::predict::piece;
use crate::{Placement, PlacementError, Placements};

/// What a placement is like, for people and for grades.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PlacementKind {
    /// All on one device.
    Single,
    /// Whole layers, some here, some there.
    Layers,
    /// Mixers here, ffns there.
    Parts,
    /// Anything else.
    Other,
}

impl std::fmt::Display for PlacementKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            PlacementKind::Single => "one device",
            PlacementKind::Layers => "split by layers",
            PlacementKind::Parts => "split by parts",
            PlacementKind::Other => "mixed",
        })
    }
}

/// Placements with the rules that make them.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    /// As `--place` takes them.
    pub rules: String,
    /// Over the machine's devices.
    pub placements: Placements,
}

/// What a placement is like.
pub(crate) fn kind(placement: &Placement, spec: &ModelSpec) -> PlacementKind {
    let on = |kind: BlockKind| {
        let here = (0..spec.blocks.len()).filter(|b| spec.blocks[*b].kind() == kind);
        let mut devices: Vec<usize> = here.map(|b| placement.device(b)).collect();
        devices.dedup();
        devices
    };
    let (mixers, ffns) = (on(BlockKind::Mixer), on(BlockKind::Ffn));
    let layers = || {
        let inner = spec.blocks.iter().enumerate().filter(|(_, b)| b.kind() == BlockKind::Ffn);
        inner.map(|(i, _)| i).all(|i| placement.device(i) == placement.device(i - 1))
    };
    match used(placement).len() {
        1 => PlacementKind::Single,
        _ if mixers.len() == 1 && ffns.len() == 1 && mixers != ffns => PlacementKind::Parts,
        _ if layers() => PlacementKind::Layers,
        _ => PlacementKind::Other,
    }
}

/// The devices that hold blocks, ascending.
fn used(placement: &Placement) -> Vec<usize> {
    let mut used = placement.assignment().to_vec();
    used.sort_unstable();
    used.dedup();
    used
}

impl Candidate {
    /// The devices that hold blocks in either phase, ascending.
    pub fn devices(&self) -> Vec<usize> {
        let mut all = [used(&self.placements.prefill), used(&self.placements.decode)].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What the placements of prefill and of decode are like, each with the devices that it uses.
    pub fn kinds(&self, spec: &ModelSpec) -> [(PlacementKind, Vec<usize>); 2] {
        [&self.placements.prefill, &self.placements.decode].map(|p| (kind(p, spec), used(p)))
    }

    /// Prompts as the one has them, answers as the other.
    pub(crate) fn of_phases(prefill: &Candidate, decode: &Candidate) -> Candidate {
        let rules = |phase: &str, candidate: &Candidate| {
            let rules: Vec<String> = candidate.rules.split(',').map(|r| format!("{phase}:{r}")).collect();
            rules.join(",")
        };
        Candidate {
            rules: format!("{},{}", rules("prefill", prefill), rules("decode", decode)),
            placements: Placements {
                prefill: prefill.placements.prefill.clone(),
                decode: decode.placements.decode.clone(),
            },
        }
    }
}

/// How the pieces of a model are made into rules and placements.
struct Maker<'a> {
    spec: &'a ModelSpec,
    machine: &'a Machine,
    found: Vec<Candidate>,
}

/// Every device alone, and for two or more of them splits by layers, by parts, and with the head apart.
///
/// Errors when the model has no order that can be placed.
pub(crate) fn candidates(
    spec: &ModelSpec,
    machine: &Machine,
    chunk: usize,
    kv: KvType,
) -> Result<Vec<Candidate>, PlacementError> {
    let mut maker = Maker { spec, machine, found: Vec::new() };
    let (layers, count) = (spec.layers(), machine.devices.len());
    for device in 0..count {
        maker.layers(&[(device, layers)], None)?;
    }
    let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b);
    for (a, b) in pairs {
        let speed = |device: usize| LayerSeconds::of(spec, machine, device, chunk, kv);
        let (fast, slow) = (speed(a), speed(b));
        for first in splits(layers, &fast, &slow) {
            maker.layers(&[(a, first), (b, layers - first)], None)?;
        }
        maker.layers(&[(a, layers)], Some(b))?;
        let balanced = balance(layers, &fast, &slow);
        if (1..layers).contains(&balanced) {
            maker.layers(&[(a, balanced), (b, layers - balanced)], Some(a))?;
        }
        maker.parts(a, b, layers, None)?;
        maker.parts(a, b, layers, Some(a))?;
        // As many ffns over there as take the time of the rest here.
        let some = layers as f64 * (fast.mixer + fast.ffn) / (fast.ffn + slow.ffn).max(f64::MIN_POSITIVE);
        maker.parts(a, b, some.round() as usize, Some(a))?;
    }
    let seconds: Vec<f64> =
        (0..count).map(|d| LayerSeconds::of(spec, machine, d, chunk, kv).layer()).collect();
    let mut fastest: Vec<usize> = (0..count).collect();
    fastest.sort_by(|a, b| seconds[*a].total_cmp(&seconds[*b]));
    for used in 3..=count {
        // In the order in which people number them.
        let mut together = fastest[..used].to_vec();
        together.sort_unstable();
        let rates: Vec<f64> = together.iter().map(|d| 1.0 / seconds[*d].max(1e-12)).collect();
        let shares = share_out(layers, &rates);
        if shares.iter().all(|s| *s > 0) {
            maker.layers(&together.into_iter().zip(shares).collect::<Vec<_>>(), None)?;
        }
    }
    Ok(maker.found)
}

/// Seconds that a device takes for the parts of a layer, and for the head, in a batch of a prompt.
struct LayerSeconds {
    mixer: f64,
    ffn: f64,
    head: f64,
}

impl LayerSeconds {
    fn of(spec: &ModelSpec, machine: &Machine, device: usize, chunk: usize, kv: KvType) -> LayerSeconds {
        let shape = BatchShape::one(0, chunk, 1);
        let seconds = |kind: BlockKind| {
            let all: Vec<&Block> = spec.blocks.iter().filter(|b| b.kind() == kind).collect();
            let each = all.iter().map(|block| {
                let block = std::slice::from_ref(*block);
                piece(&machine.devices[device], block, &shape, kv, Crossing::default(), spec.width).seconds
            });
            each.sum::<f64>() / all.len().max(1) as f64
        };
        LayerSeconds {
            mixer: seconds(BlockKind::Mixer),
            ffn: seconds(BlockKind::Ffn),
            head: seconds(BlockKind::Head),
        }
    }

    fn layer(&self) -> f64 {
        self.mixer + self.ffn
    }
}

/// Layers on the first device with which both take equally long for a batch, the head going to the second.
fn balance(layers: usize, first: &LayerSeconds, second: &LayerSeconds) -> usize {
    let both = (first.layer() + second.layer()).max(f64::MIN_POSITIVE);
    ((layers as f64 * second.layer() + second.head) / both).round() as usize
}

/// Numbers of layers for the first of two devices.
fn splits(layers: usize, first: &LayerSeconds, second: &LayerSeconds) -> Vec<usize> {
    let balanced = balance(layers, first, second);
    let parts = (1..8).map(|eighths| layers * eighths / 8);
    let mut all: Vec<usize> = parts
        .chain([1, balanced.saturating_sub(1), balanced, balanced + 1, layers.saturating_sub(1)])
        .collect();
    all.sort_unstable();
    all.dedup();
    all.retain(|n| (1..layers).contains(n));
    all
}

/// Layers by weight, in all as many as there are.
fn share_out(layers: usize, weights: &[f64]) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let mut out = Vec::with_capacity(weights.len());
    let (mut before, mut sum) = (0, 0.0);
    for weight in weights {
        sum += weight;
        let until = (layers as f64 * sum / total).round() as usize;
        out.push(until - before);
        before = until;
    }
    out
}

impl Maker<'_> {
    fn name(&self, device: usize) -> &str {
        &self.machine.devices[device].name
    }

    /// So many layers on each device in turn, the embedding with the first, the head with the last or where it is said.
    fn layers(&mut self, split: &[(usize, usize)], head: Option<usize>) -> Result<(), PlacementError> {
        let mut rules = Vec::new();
        let mut next = 0;
        for (device, layers) in split {
            let (first, last) = (next, next + layers - 1);
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            rules.push(format!("{range}={}", self.name(*device)));
            next += layers;
        }
        rules.extend(head.map(|h| format!("head={}", self.name(h))));
        let of_layer: Vec<usize> = split.iter().flat_map(|(d, n)| std::iter::repeat_n(*d, *n)).collect();
        let last = of_layer.last().copied().unwrap_or(0);
        self.add(rules.join(","), |_, layer| of_layer[layer], head.unwrap_or(last))
    }

    /// Mixers on one device, the ffns of the first layers on the other, and the rest of them with the mixers.
    fn parts(
        &mut self,
        mixers: usize,
        ffns: usize,
        layers: usize,
        head: Option<usize>,
    ) -> Result<(), PlacementError> {
        let all = self.spec.layers();
        if layers == 0 {
            return Ok(());
        }
        let (a, b) = (self.name(mixers).to_owned(), self.name(ffns).to_owned());
        let (mut rules, apart) = match layers < all {
            true => (format!("mixer={a},ffn={a},0-{}.ffn={b}", layers - 1), layers),
            false => (format!("mixer={a},ffn={b}"), all),
        };
        let natural = if apart < all { mixers } else { ffns };
        let head = head.unwrap_or(natural);
        if head != natural {
            rules += &format!(",head={}", self.name(head));
        }
        self.add(
            rules,
            |kind, layer| if kind == BlockKind::Ffn && layer < apart { ffns } else { mixers },
            head,
        )
    }

    fn add(
        &mut self,
        rules: String,
        device: impl Fn(BlockKind, usize) -> usize,
        head: usize,
    ) -> Result<(), PlacementError> {
        let mut mixers = 0usize;
        let mut assignment = Vec::with_capacity(self.spec.blocks.len());
        for block in &self.spec.blocks {
            mixers += usize::from(block.kind() == BlockKind::Mixer);
            let layer = mixers.saturating_sub(1);
            assignment.push(match block.kind() {
                BlockKind::Head => head,
                // As rules have it.
                BlockKind::Embedding if self.spec.is_tied() => head,
                kind if self.spec.layers() > 0 => device(kind, layer),
                _ => head,
            });
        }
        let placement = Placement::new(self.spec, self.machine.devices.len(), assignment)?;
        let placements = Placements::from(placement);
        if !self.found.iter().any(|c| c.placements == placements) {
            self.found.push(Candidate { rules, placements });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::PlaceRules;
    use crate::planner::machine::{Curve, Origin};
    use crate::planner::testing::{device, machine};
    use crate::testing::{tied_spec, tiny_spec};

    /// Devices whose ffns take this long.
    fn machine_of(seconds: &[f64]) -> Machine {
        let named = |(i, seconds): (usize, &f64)| {
            let mut device = device(&format!("d{i}"), i);
            device.ffn = Curve::constant(*seconds, Origin::Measured).unwrap();
            device
        };
        machine(seconds.iter().enumerate().map(named).collect(), 1 << 40)
    }

    fn all(layers: usize, seconds: &[f64]) -> Vec<Candidate> {
        candidates(&tiny_spec(layers), &machine_of(seconds), 64, KvType::F16).unwrap()
    }

    #[test]
    fn one_device_is_one_candidate() {
        let found = all(3, &[1.0]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].rules.as_str(), found[0].devices()), ("0-2=d0", vec![0]));
        assert_eq!(found[0].kinds(&tiny_spec(3))[0].0, PlacementKind::Single);
    }

    #[test]
    fn two_devices_have_splits_in_proportion_and_by_parts() {
        let spec = tiny_spec(12);
        let found = all(12, &[1.0, 3.0]);
        let kind = |rules: &str| found.iter().find(|c| c.rules == rules).map(|c| c.kinds(&spec)[1].0);
        assert_eq!(kind("0-11=d0"), Some(PlacementKind::Single));
        assert_eq!(kind("0-8=d0,9-11=d1"), Some(PlacementKind::Layers));
        assert_eq!(kind("0-2=d1,3-11=d0"), Some(PlacementKind::Layers));
        assert_eq!(kind("mixer=d0,ffn=d1"), Some(PlacementKind::Parts));
        assert_eq!(kind("mixer=d1,ffn=d0,head=d1"), Some(PlacementKind::Parts));
        assert_eq!(kind("0-11=d0,head=d1"), Some(PlacementKind::Layers));
        // Three of twelve ffns there take as long as nine here.
        assert_eq!(kind("mixer=d0,ffn=d0,0-2.ffn=d1"), Some(PlacementKind::Other));
    }

    #[test]
    fn of_many_devices_the_fastest_work_together() {
        // A slow processor first, as it may be numbered.
        let rules: Vec<String> = all(12, &[9.0, 1.0, 1.0, 1.0]).into_iter().map(|c| c.rules).collect();
        assert!(rules.contains(&"0-3=d1,4-7=d2,8-11=d3".to_owned()), "{rules:?}");
    }

    proptest! {
        #[test]
        fn rules_make_the_placement_that_stands_beside_them(
            layers in 1usize..9, seconds in prop::collection::vec(0.01f64..9.0, 1..5), tied in any::<bool>(),
        ) {
            let spec = if tied { tied_spec(layers) } else { tiny_spec(layers) };
            let all = candidates(&spec, &machine_of(&seconds), 64, KvType::F16).unwrap();
            let apart = all.iter().map(|c| Candidate::of_phases(c, &all[0])).collect::<Vec<_>>();
            for candidate in all.into_iter().chain(apart) {
                let rules: PlaceRules = candidate.rules.parse().unwrap();
                let resolved = rules.resolve(&spec).unwrap();
                for block in 0..spec.blocks.len() {
                    let ways = [
                        (&resolved.prefill, &candidate.placements.prefill),
                        (&resolved.decode, &candidate.placements.decode),
                    ];
                    for (resolved, made) in ways {
                        let name = &rules.devices()[resolved.device(block)];
                        let expected = format!("d{}", made.device(block));
                        prop_assert_eq!(name, &expected, "{} {}", &candidate.rules, block);
                    }
                }
            }
        }
    }
}
