//! Machines as files: those that come with the program, and those of people who want to know about one that is not here.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use unicorn_core::{DeviceKind, TensorType};
use unicorn_engine::planner::{Curve, DeviceModel, Figure, Machine, Memory, Origin};

use super::figures::Points;
use crate::exit::usage;

/// Name and content of the machines that come with the program.
const SHIPPED: [(&str, &str); 5] = [
    ("phoenix", include_str!("../../machines/phoenix.json")),
    ("strix-point", include_str!("../../machines/strix-point.json")),
    ("strix-halo", include_str!("../../machines/strix-halo.json")),
    ("7900xtx", include_str!("../../machines/7900xtx.json")),
    ("h100", include_str!("../../machines/h100.json")),
];

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A machine that is not here.
#[derive(Clone, PartialEq, Debug)]
pub struct Simulated {
    /// Its name.
    pub name: String,
    /// What it is, for people.
    pub about: String,
    /// Its figures.
    pub machine: Machine,
}

/// The machine with this name, or the one in this file.
pub fn read(name: &str) -> anyhow::Result<Simulated> {
    if let Some((_, text)) = SHIPPED.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
        return parse(text).with_context(|| format!("--simulate {name}"));
    }
    let path = Path::new(name);
    if !path.exists() {
        let known = SHIPPED.map(|(known, _)| known).join(", ");
        return Err(usage(format!(
            "--simulate {name}: no such file, and no machine that comes with the program: {known}"
        )));
    }
    let named = || format!("--simulate {name}");
    let bytes = std::fs::metadata(path).with_context(named)?.len();
    anyhow::ensure!(bytes <= FILE_BYTES_MAX, "--simulate {name}: {bytes} bytes are too many for a machine");
    let text = std::fs::read_to_string(path).with_context(named)?;
    parse(&text).with_context(named)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineFile {
    name: String,
    about: String,
    memories: Vec<MemoryFile>,
    devices: Vec<DeviceFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryFile {
    name: String,
    /// That models may take.
    bytes: u64,
    /// Of all devices together.
    read_bytes_per_second: FigureFile,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OriginFile {
    Measured,
    Published,
    Estimated,
}

impl From<OriginFile> for Origin {
    fn from(origin: OriginFile) -> Origin {
        match origin {
            OriginFile::Measured => Origin::Measured,
            OriginFile::Published => Origin::Published,
            OriginFile::Estimated => Origin::Estimated,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FigureFile {
    value: f64,
    origin: OriginFile,
    /// Who says so, or what the guess rests on. For people who read the file.
    #[allow(dead_code)]
    source: String,
}

impl FigureFile {
    fn figure(&self) -> Figure {
        Figure { value: self.value, origin: self.origin.into() }
    }

    /// This limit and the share of it that is reached.
    fn times(&self, share: &FigureFile) -> Figure {
        let origin = Origin::from(self.origin).max(share.origin.into());
        Figure { value: self.value * share.value, origin }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PointsFile {
    points: Points,
    origin: OriginFile,
    #[allow(dead_code)]
    source: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindFile {
    Cpu,
    Vulkan,
    Npu,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceFile {
    name: String,
    kind: KindFile,
    description: String,
    /// Name of its memory.
    memory: String,
    read_bytes_per_second: FigureFile,
    /// Share of that which products of few rows reach.
    read_share: FigureFile,
    ops_per_second: FigureFile,
    /// Share of that which products of many rows reach.
    ops_share: FigureFile,
    /// Share of it which attention reaches.
    attention_share: FigureFile,
    /// Up to so many rows take as long as reading the weights.
    vector_rows: usize,
    /// Beside products and attention, for a mixer, an ffn or a head.
    block_seconds: FigureFile,
    latency_seconds: FigureFile,
    crossing_seconds: FigureFile,
    crossing_bytes_per_second: FigureFile,
    /// Streams come in and go out on queues of their own.
    crosses_beside: bool,
    /// By type: seconds per element of a matrix for so many rows, where they are known better than from limits.
    #[serde(default)]
    products: BTreeMap<String, PointsFile>,
}

/// A product of more rows than the vector path takes is as slow as one of a whole tile.
const TILE_ROWS: usize = 32;
/// Rows between which limits make a curve.
const ROWS: [usize; 7] = [1, 4, 8, 32, 128, 512, 2048];

impl DeviceFile {
    /// Reading the weights or multiplying them, whichever takes longer.
    fn product(&self, ty: TensorType) -> Option<(TensorType, Curve)> {
        if let Some(known) = self.products.get(ty.name()) {
            return Some((ty, Curve::new(&known.points, known.origin.into())?));
        }
        let read = self.read_bytes_per_second.times(&self.read_share);
        let ops = self.ops_per_second.times(&self.ops_share);
        let bytes = ty.block_bytes() as f64 / ty.block_len() as f64;
        let seconds = |rows: usize| {
            let reading = bytes / read.value;
            let tile = if rows > self.vector_rows { rows.max(TILE_ROWS) } else { 0 };
            reading.max(2.0 * tile as f64 / ops.value)
        };
        let mut rows: Vec<usize> = ROWS.into_iter().chain([self.vector_rows, self.vector_rows + 1]).collect();
        rows.retain(|r| *r > 0);
        rows.sort_unstable();
        rows.dedup();
        let points: Points = rows.into_iter().map(|rows| (rows, seconds(rows))).collect();
        Some((ty, Curve::new(&points, read.origin.max(ops.origin))?))
    }

    fn model(&self, hardware: usize, memories: &[MemoryFile]) -> anyhow::Result<DeviceModel> {
        let name = &self.name;
        let memory = memories.iter().position(|m| m.name == self.memory);
        let memory = memory.with_context(|| format!("{name}: there is no memory `{}`", self.memory))?;
        if let Some(unknown) =
            self.products.keys().find(|ty| TensorType::parse(ty).is_none_or(|t| t.name() != *ty))
        {
            anyhow::bail!("{name}: products: there is no type `{unknown}`");
        }
        let products = TensorType::ALL.into_iter().map(|ty| self.product(ty)).collect::<Option<Vec<_>>>();
        let products = products.with_context(|| format!("{name}: rates of products make no curve"))?;
        let attention = self.ops_per_second.times(&self.attention_share);
        let curve = |seconds: f64, origin| {
            Curve::constant(seconds, origin).with_context(|| format!("{name}: {seconds} s is no time"))
        };
        let block = || curve(self.block_seconds.value, self.block_seconds.origin.into());
        Ok(DeviceModel {
            name: name.clone(),
            kind: match self.kind {
                KindFile::Cpu => DeviceKind::Cpu,
                KindFile::Vulkan => DeviceKind::Vulkan,
                KindFile::Npu => DeviceKind::Npu,
            },
            description: self.description.clone(),
            memory,
            hardware,
            read_bytes_per_second: self.read_bytes_per_second.times(&self.read_share),
            products,
            attention: curve(1.0 / attention.value, attention.origin)?,
            mixer: block()?,
            ffn: block()?,
            head: block()?,
            logits: Vec::new(),
            latency_seconds: self.latency_seconds.figure(),
            crossing_bytes_per_second: self.crossing_bytes_per_second.figure(),
            crossing_seconds: self.crossing_seconds.figure(),
            crosses_beside: self.crosses_beside,
        })
    }
}

fn parse(text: &str) -> anyhow::Result<Simulated> {
    let file: MachineFile = serde_json::from_str(text)?;
    let devices = file.devices.iter().enumerate().map(|(i, device)| device.model(i, &file.memories));
    let devices = devices.collect::<anyhow::Result<Vec<DeviceModel>>>()?;
    let memory = |m: &MemoryFile| Memory {
        name: m.name.clone(),
        bytes: m.bytes,
        read_bytes_per_second: Some(m.read_bytes_per_second.figure()),
    };
    let machine = Machine { memories: file.memories.iter().map(memory).collect(), devices };
    machine.check().map_err(anyhow::Error::msg)?;
    Ok(Simulated { name: file.name, about: file.about, machine })
}

#[cfg(test)]
mod tests {
    use unicorn_cases::shapes::{self, Shape};
    use unicorn_core::ModelSpec;
    use unicorn_engine::EngineOptions;
    use unicorn_engine::planner::{Ask, Candidate, Correction, plan};

    use super::*;
    use crate::exit::{Exit, of_error};

    /// Predicted tokens a second of a prompt of 512 and of 128 tokens after nothing, on one device alone.
    fn predicted(machine: &str, device: &str, spec: &ModelSpec) -> [f64; 2] {
        let simulated = read(machine).unwrap();
        let options = EngineOptions { context: 1024, ..EngineOptions::default() };
        let none = |_: &Candidate| [Correction::NONE; 2];
        let of = |prompt, decode| {
            let (spec, machine, options) = (spec, &simulated.machine, &options);
            let (budgets, corrections) = (&[][..], &none as &dyn Fn(&Candidate) -> [Correction; 2]);
            let ask = Ask {
                spec,
                machine,
                options,
                past: 0,
                prompt,
                decode,
                sequences: 1,
                budgets,
                check: None,
                corrections,
                only: None,
            };
            let plan = plan(&ask).unwrap();
            let index = machine.devices.iter().position(|d| d.name == device).unwrap();
            plan.ranked.into_iter().find(|p| p.candidate.devices() == [index]).unwrap()
        };
        let (prompt, answer) = (of(512, 0), of(0, 128));
        [prompt.prefill.unwrap().tokens_per_second(), answer.decode.unwrap().tokens_per_second()]
    }

    /// The model that most published runs were made with.
    fn llama_7b() -> ModelSpec {
        let shape = Shape {
            name: "llama-7b",
            width: 4096,
            hidden: 11008,
            layers: 32,
            heads: 32,
            kv_heads: 32,
            vocab: 32_000,
            tied: false,
        };
        shapes::of(&shape, TensorType::Q4_0)
    }

    #[test]
    fn published_figures_are_met_within_thirty_percent() {
        let eight = |ty| shapes::model("llama-8b", ty).unwrap();
        let (q4k, q8, f16) = (eight(TensorType::Q4_K), eight(TensorType::Q8_0), eight(TensorType::F16));
        // llama.cpp's own figures for the AMD GPUs, ours on the H100: prompts of 512, answers of 128 tokens.
        let published = [
            ("phoenix", "vulkan:0", &q4k, [254.0, 16.3]),
            ("phoenix", "vulkan:0", &llama_7b(), [263.0, 19.6]),
            ("strix-halo", "vulkan:0", &llama_7b(), [1338.0, 55.7]),
            ("7900xtx", "vulkan:0", &llama_7b(), [3890.0, 191.0]),
            ("h100", "vulkan:0", &q4k, [15310.0, 382.0]),
            ("h100", "vulkan:0", &q8, [14821.0, 278.0]),
            ("h100", "vulkan:0", &f16, [16712.0, 161.0]),
        ];
        let mut wrong = Vec::new();
        for (machine, device, spec, known) in published {
            let predicted = predicted(machine, device, spec);
            for (what, predicted, known) in
                [("pp512", predicted[0], known[0]), ("tg128", predicted[1], known[1])]
            {
                let line = format!("{machine} {} {what}: predicted {predicted:.1}, known {known}", spec.name);
                println!("{line} ({:+.0} %)", (predicted / known - 1.0) * 100.0);
                if !(0.7..=1.3).contains(&(predicted / known)) {
                    wrong.push(line);
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn every_shipped_machine_reads_and_says_what_it_is() {
        for (name, _) in SHIPPED {
            let simulated = read(name).unwrap();
            assert_eq!(simulated.name, name);
            assert!(!simulated.about.is_empty());
        }
        assert_eq!(read("phoenix").unwrap().machine.devices.len(), 3);
    }

    #[test]
    fn wrong_machines_are_named() {
        let unknown = read("no-such-machine").unwrap_err();
        assert!(unknown.to_string().contains("strix-halo"), "{unknown}");
        assert_eq!(of_error(&unknown), Exit::Usage);
        let text = SHIPPED[0].1;
        let wrong = |from: &str, to: &str| format!("{:#}", parse(&text.replacen(from, to, 1)).unwrap_err());
        assert!(wrong("\"vector_rows\"", "\"vector_row\"").contains("vector_row"));
        assert!(wrong("\"memory\": \"DDR5-5600", "\"memory\": \"DDR6").contains("there is no memory `DDR6"));
        assert!(wrong("\"origin\": \"published\"", "\"origin\": \"heard\"").contains("heard"));
        assert!(wrong("\"value\": 0.82", "\"value\": 0").contains("vulkan:0"));
    }
}
