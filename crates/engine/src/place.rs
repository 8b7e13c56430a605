//! Placement as people write it: `mixer=cpu,ffn=vulkan`, `0-15=vulkan:0,16-31=vulkan:1`, or any mix of these, for both phases or, as in
//! `decode:ffn=cpu`, for one.

use std::ops::RangeInclusive;
use std::str::FromStr;

use unicorn_core::{BlockKind, ModelSpec};

use crate::placement::{Phase, Placements};
use crate::{Placement, PlacementError};

/// Which blocks a rule is for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Which {
    /// Layers from 0 on; `None` is all of them, embedding and head included.
    layers: Option<RangeInclusive<usize>>,
    /// `None` is every kind.
    kind: Option<BlockKind>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    /// `None` is both.
    phase: Option<Phase>,
    which: Which,
    text: String,
    device: usize,
}

/// Rules that put blocks on devices by name. Plain data: a name is opened by whoever knows devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlaceRules {
    rules: Vec<Rule>,
    devices: Vec<String>,
}

/// What is wrong with a placement as it was written.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum PlaceError {
    /// A part is not of the form `BLOCKS=DEVICE`.
    #[error("`{0}` is not BLOCKS=DEVICE")]
    Form(String),
    /// The blocks are not understood.
    #[error(
        "`{0}`: blocks are mixer, ffn, embedding, head, or layers such as 0-15 or 3, or both as in 0-15.ffn; before them prefill: or decode: may stand"
    )]
    Blocks(String),
    /// A rule is for layers that the model has not.
    #[error("`{rule}`: the model has {layers} layers, numbered from 0")]
    Layers {
        /// As it was written.
        rule: String,
        /// Layers of the model.
        layers: usize,
    },
    /// No rule says where a block goes.
    #[error("no rule says where the {kind} of layer {layer} goes{}", .phase.map_or("", in_phase))]
    Unplaced {
        /// The phase, where rules differ between phases.
        phase: Option<Phase>,
        /// Kind of the block.
        kind: &'static str,
        /// Its layer.
        layer: usize,
    },
    /// The placement does not fit the model.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

fn in_phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => " in prefill",
        Phase::Decode => " in decode",
    }
}

fn kind_name(kind: BlockKind) -> &'static str {
    match kind {
        BlockKind::Embedding => "embedding",
        BlockKind::Mixer => "mixer",
        BlockKind::Ffn => "ffn",
        BlockKind::Head => "head",
    }
}

impl FromStr for Which {
    type Err = ();

    fn from_str(text: &str) -> Result<Which, ()> {
        let kinds = [BlockKind::Embedding, BlockKind::Mixer, BlockKind::Ffn, BlockKind::Head];
        let kind = |name: &str| kinds.into_iter().find(|k| kind_name(*k) == name).ok_or(());
        let number = |text: &str| text.parse::<usize>().map_err(|_| ());
        let layers = |text: &str| match text.split_once('-') {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first <= last { Ok(first..=last) } else { Err(()) }
            }
            None => number(text).map(|n| n..=n),
        };
        if let Some((range, name)) = text.split_once('.') {
            let kind = kind(name).and_then(|k| match k {
                BlockKind::Mixer | BlockKind::Ffn => Ok(k),
                _ => Err(()),
            })?;
            return Ok(Which { layers: Some(layers(range)?), kind: Some(kind) });
        }
        match kind(text) {
            Ok(kind) => Ok(Which { layers: None, kind: Some(kind) }),
            Err(()) => Ok(Which { layers: Some(layers(text)?), kind: None }),
        }
    }
}

impl FromStr for PlaceRules {
    type Err = PlaceError;

    /// Reads rules parted by commas.
    fn from_str(text: &str) -> Result<PlaceRules, PlaceError> {
        let (mut rules, mut devices) = (Vec::new(), Vec::<String>::new());
        for part in text.split(',') {
            let part = part.trim();
            let (blocks, device) = part.split_once('=').ok_or_else(|| PlaceError::Form(part.into()))?;
            let (blocks, device) = (blocks.trim(), device.trim());
            if device.is_empty() {
                return Err(PlaceError::Form(part.into()));
            }
            let (phase, blocks) = match blocks.split_once(':') {
                None => (None, blocks),
                Some(("prefill", blocks)) => (Some(Phase::Prefill), blocks.trim()),
                Some(("decode", blocks)) => (Some(Phase::Decode), blocks.trim()),
                Some(_) => return Err(PlaceError::Blocks(part.into())),
            };
            let which = blocks.parse().map_err(|()| PlaceError::Blocks(part.into()))?;
            let index = devices.iter().position(|d| d == device).unwrap_or_else(|| {
                devices.push(device.into());
                devices.len() - 1
            });
            rules.push(Rule { phase, which, text: part.into(), device: index });
        }
        Ok(PlaceRules { rules, devices })
    }
}

impl std::fmt::Display for PlaceRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rules: Vec<&str> = self.rules.iter().map(|r| r.text.as_str()).collect();
        f.write_str(&rules.join(","))
    }
}

impl PlaceRules {
    /// The devices' names, each once, in the order in which they were first named: what a placement's numbers stand for.
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// Where the blocks of a model go in either phase. Of several rules for a block the last one counts. Without a rule the head goes
    /// with the last ffn and the embedding with the first mixer, where the residual stream is anyway; where they share a table, the embedding
    /// goes with the head, so that no two devices hold it.
    ///
    /// Errors when a layer does not exist or a mixer or ffn is left over.
    pub fn resolve(&self, spec: &ModelSpec) -> Result<Placements, PlaceError> {
        let [prefill, decode] = [Phase::Prefill, Phase::Decode].map(|phase| self.resolve_phase(spec, phase));
        Ok(Placements { prefill: prefill?, decode: decode? })
    }

    fn resolve_phase(&self, spec: &ModelSpec, phase: Phase) -> Result<Placement, PlaceError> {
        let layers = spec.layers();
        let beyond = |r: &&Rule| r.which.layers.as_ref().is_some_and(|l| *l.end() >= layers);
        if let Some(rule) = self.rules.iter().find(beyond) {
            return Err(PlaceError::Layers { rule: rule.text.clone(), layers });
        }
        let mut mixers = 0usize;
        let mut found: Vec<Option<usize>> = Vec::with_capacity(spec.blocks.len());
        for block in &spec.blocks {
            let kind = block.kind();
            mixers += usize::from(kind == BlockKind::Mixer);
            let layer = mixers.saturating_sub(1);
            let inner = matches!(kind, BlockKind::Mixer | BlockKind::Ffn);
            let meant = |r: &&Rule| {
                let here = r.which.layers.as_ref().is_none_or(|l| inner && l.contains(&layer));
                here && r.which.kind.is_none_or(|k| k == kind) && r.phase.is_none_or(|p| p == phase)
            };
            let device = self.rules.iter().rev().find(meant).map(|r| r.device);
            if device.is_none() && inner {
                let phase = self.rules.iter().any(|r| r.phase.is_some()).then_some(phase);
                return Err(PlaceError::Unplaced { phase, kind: kind_name(kind), layer });
            }
            found.push(device);
        }
        let of = |kind: BlockKind, from_end: bool| {
            let mut blocks: Vec<usize> =
                (0..found.len()).filter(|b| spec.blocks[*b].kind() == kind).collect();
            if from_end {
                blocks.reverse();
            }
            blocks.first().and_then(|b| found[*b])
        };
        let (first, last) = (of(BlockKind::Mixer, false), of(BlockKind::Ffn, true));
        let head = of(BlockKind::Head, false).or(last).or(first);
        // A table that both use is held once.
        let embedding = if spec.is_tied() { head } else { first.or(last) };
        let fill = |(device, block): (&Option<usize>, &unicorn_core::Block)| {
            let neighbour = if block.kind() == BlockKind::Embedding { embedding } else { head };
            device.or(neighbour).unwrap_or(0)
        };
        let assignment = found.iter().zip(&spec.blocks).map(fill).collect();
        Ok(Placement::new(spec, self.devices.len(), assignment)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny_spec;

    fn place(text: &str, layers: usize) -> Result<(Vec<usize>, Vec<String>), PlaceError> {
        let rules: PlaceRules = text.parse()?;
        let placements = rules.resolve(&tiny_spec(layers))?;
        assert_eq!(placements.prefill, placements.decode);
        Ok((placements.prefill.assignment().to_vec(), rules.devices().to_vec()))
    }

    #[test]
    fn rules_place_blocks() {
        let (mixed, devices) = place("mixer=cpu,ffn=vulkan:0", 2).unwrap();
        assert_eq!((mixed, devices), (vec![0, 0, 1, 0, 1, 1], vec!["cpu".into(), "vulkan:0".into()]));
        assert_eq!(place("0=a, 1-2=b", 3).unwrap().0, [0, 0, 0, 1, 1, 1, 1, 1]);
        // The last rule counts; embedding and head can be said.
        assert_eq!(place("0-1=a,1.ffn=b,head=a,embedding=b", 2).unwrap().0, [1, 0, 0, 0, 1, 0]);
        assert_eq!(place("mixer=a,ffn=a,0.mixer=b", 2).unwrap().0, [1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_table_that_embedding_and_head_share_is_held_once() {
        let spec = crate::testing::tied_spec(2);
        let of = |text: &str| text.parse::<PlaceRules>().unwrap().resolve(&spec).unwrap().prefill;
        assert_eq!(of("mixer=a,ffn=b").assignment(), [1, 0, 1, 0, 1, 1]);
        assert_eq!(of("0=a,1=b").assignment(), [1, 0, 0, 1, 1, 1]);
        assert_eq!(of("mixer=a,ffn=b,head=a").assignment(), [0, 0, 1, 0, 1, 0]);
        assert_eq!(of("mixer=a,ffn=b,embedding=a").assignment(), [0, 0, 1, 0, 1, 1]);
        let held = Placements::from(of("mixer=a,ffn=b")).weight_bytes(&spec);
        assert_eq!(held, spec.weight_bytes());
    }

    #[test]
    fn a_rule_may_hold_for_one_phase() {
        let rules: PlaceRules = "mixer=a,ffn=a,decode:ffn=b, prefill:head=c".parse().unwrap();
        let placements = rules.resolve(&tiny_spec(2)).unwrap();
        assert_eq!(placements.prefill.assignment(), [0, 0, 0, 0, 0, 2]);
        assert_eq!(placements.decode.assignment(), [0, 0, 1, 0, 1, 1]);
        let half: PlaceRules = "prefill:0-1=a,decode:mixer=b".parse().unwrap();
        assert_eq!(
            half.resolve(&tiny_spec(2)),
            Err(PlaceError::Unplaced { phase: Some(Phase::Decode), kind: "ffn", layer: 0 })
        );
    }

    #[test]
    fn wrong_rules_are_named() {
        let error = |text: &str| place(text, 2).unwrap_err();
        assert_eq!(error("mixer"), PlaceError::Form("mixer".into()));
        assert_eq!(error("mixer="), PlaceError::Form("mixer=".into()));
        assert_eq!(error(""), PlaceError::Form(String::new()));
        for text in [
            "attn=cpu",
            "3-1=cpu",
            "1.head=cpu",
            "x.ffn=cpu",
            "-1=cpu",
            "99999999999999999999=cpu",
            "x:mixer=cpu",
        ] {
            assert!(matches!(error(text), PlaceError::Blocks(_)), "{text}");
        }
        assert_eq!(error("0-2=cpu"), PlaceError::Layers { rule: "0-2=cpu".into(), layers: 2 });
        assert_eq!(error("mixer=cpu"), PlaceError::Unplaced { phase: None, kind: "ffn", layer: 0 });
        assert_eq!(error("0=cpu"), PlaceError::Unplaced { phase: None, kind: "mixer", layer: 1 });
        assert!(error("0=cpu").to_string().contains("mixer of layer 1"));
    }
}
