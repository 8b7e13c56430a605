//! The gate for the Radeon 780M: every pipeline that the program can build for it is compiled by its real driver, without the device.
//! A spill fails, and so does a matrix or dot product that the driver put together from other instructions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::mesa::{Driver, Mesa};
use crate::sh;
use crate::stats::markdown;

/// The 780M's chip.
const GPU: &str = "phoenix";

/// Names that RADV gives its figures.
const REGISTERS: &str = "VGPRs";
const SPILLS: [&str; 2] = ["Spilled VGPRs", "Spilled SGPRs"];
const SCRATCH: &str = "Scratch size";
const SHARED: &str = "LDS size";
const OCCUPANCY: &str = "Subgroups per SIMD";
const INSTRUCTIONS: &str = "Instructions";

/// One line of `unicorn selftest --kernels`.
#[derive(Deserialize, Clone, Debug)]
struct Pipeline {
    shader: String,
    constants: Vec<u32>,
    subgroup: u32,
    values: BTreeMap<String, f64>,
    instructions: BTreeMap<String, u32>,
}

impl Pipeline {
    fn value(&self, name: &str) -> u64 {
        self.values.get(name).map_or(0, |v| *v as u64)
    }

    fn spills(&self) -> u64 {
        SPILLS.iter().chain([&SCRATCH]).map(|n| self.value(n)).sum()
    }
}

/// Compiles all pipelines, prints the table, and returns the summary.
pub fn run() -> Result<String> {
    let mesa = Mesa::install()?;
    sh::run(&mut sh::cargo("build --locked -p unicorn"))?;
    let list = sh::target("780m-kernels.jsonl");
    let mut command = mesa.command(Driver::Radv(GPU), &sh::target("debug/unicorn"))?;
    command
        .args(["selftest", "--device", "vulkan:0", "--compile-only", "--validate", "--kernels"])
        .arg(&list);
    sh::run(&mut command)?;
    let text = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    let pipelines = parse(&text)?;
    println!("\n{}, {}:\n\n{}", GPU, mesa.version, table(&pipelines));
    let modules = modules()?;
    let built: BTreeSet<&str> = pipelines.iter().map(|p| p.shader.as_str()).collect();
    let unused: Vec<&str> = modules.keys().map(String::as_str).filter(|m| !built.contains(m)).collect();
    if !unused.is_empty() {
        println!("modules that nothing uses on this device: {}\n", unused.join(", "));
    }
    judge(&pipelines, &modules)?;
    summary(&pipelines)
}

fn parse(text: &str) -> Result<Vec<Pipeline>> {
    let pipelines: Vec<Pipeline> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("list of kernels")?;
    ensure!(!pipelines.is_empty(), "no kernel was compiled");
    for p in &pipelines {
        for name in SPILLS.iter().chain(&[REGISTERS, SCRATCH, OCCUPANCY]) {
            ensure!(p.values.contains_key(*name), "{}: the driver does not tell `{name}`", p.shader);
        }
    }
    Ok(pipelines)
}

/// One row per shader: the worst of its pipelines.
fn table(pipelines: &[Pipeline]) -> String {
    let mut shaders: BTreeMap<&str, Vec<&Pipeline>> = BTreeMap::new();
    for p in pipelines {
        shaders.entry(&p.shader).or_default().push(p);
    }
    let row = |(shader, all): (&&str, &Vec<&Pipeline>)| {
        let most = |name: &str| all.iter().map(|p| p.value(name)).max().unwrap_or(0);
        let mut units: BTreeMap<&str, u32> = BTreeMap::new();
        for (name, count) in all.iter().flat_map(|p| &p.instructions) {
            let most = units.entry(name).or_default();
            *most = (*most).max(*count);
        }
        let units: Vec<String> = units.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let subgroups: BTreeSet<u32> = all.iter().map(|p| p.subgroup).collect();
        let subgroups: Vec<String> = subgroups.iter().map(u32::to_string).collect();
        vec![
            shader.to_string(),
            all.len().to_string(),
            subgroups.join(","),
            most(REGISTERS).to_string(),
            all.iter().map(|p| p.spills()).sum::<u64>().to_string(),
            most(SHARED).to_string(),
            all.iter().map(|p| p.value(OCCUPANCY)).min().unwrap_or(0).to_string(),
            most(INSTRUCTIONS).to_string(),
            if units.is_empty() { "-".into() } else { units.join(", ") },
        ]
    };
    let header = [
        "kernel",
        "pipelines",
        "subgroup",
        "registers",
        "spills",
        "shared bytes",
        "subgroups per SIMD",
        "instructions",
        "matrix and dot instructions",
    ];
    markdown(&header, &shaders.iter().map(row).collect::<Vec<_>>())
}

/// What a module asks of the hardware.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Units {
    matrix: bool,
    dot: bool,
}

/// The committed modules with what each asks for.
fn modules() -> Result<BTreeMap<String, Units>> {
    let dir = sh::root().join("crates/vulkan/spirv");
    let mut modules = BTreeMap::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if let (Some("spv"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_stem()) {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            modules.insert(name.to_string_lossy().into_owned(), units(&bytes));
        }
    }
    Ok(modules)
}

/// Walks the instructions of a SPIR-V module.
fn units(module: &[u8]) -> Units {
    const HEADER_WORDS: usize = 5;
    /// `OpSDot` to `OpSUDotAccSat`.
    const DOT: std::ops::RangeInclusive<u32> = 4450..=4455;
    /// `OpCooperativeMatrixMulAddKHR`.
    const MATRIX: u32 = 4459;
    let words: Vec<u32> =
        module.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let (mut units, mut at) = (Units::default(), HEADER_WORDS);
    while let Some(word) = words.get(at) {
        units.dot |= DOT.contains(&(word & 0xffff));
        units.matrix |= word & 0xffff == MATRIX;
        at += (word >> 16).max(1) as usize;
    }
    units
}

/// No spills; a module that multiplies matrices or takes dot products does so in the hardware's own instructions.
fn judge(pipelines: &[Pipeline], modules: &BTreeMap<String, Units>) -> Result<()> {
    let mut wrong = Vec::new();
    for p in pipelines.iter().filter(|p| p.spills() > 0) {
        wrong.push(format!("{} {:?} spills registers or uses scratch memory", p.shader, p.constants));
    }
    let shaders: BTreeSet<&str> = pipelines.iter().map(|p| p.shader.as_str()).collect();
    for shader in shaders {
        let asked = modules.get(shader).copied().with_context(|| format!("no module {shader}"))?;
        // One pipeline is enough: constants may switch the unit off.
        let has = |prefix: &str| {
            let mut of_shader = pipelines.iter().filter(|p| p.shader == shader);
            of_shader.any(|p| p.instructions.keys().any(|i| i.starts_with(prefix)))
        };
        for (asked, prefix) in [(asked.matrix, "v_wmma"), (asked.dot, "v_dot4")] {
            if asked && !has(prefix) {
                wrong.push(format!("{shader} has no {prefix} instruction"));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{} pipelines are not fit for the 780M:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    Ok(())
}

fn summary(pipelines: &[Pipeline]) -> Result<String> {
    let most = pipelines.iter().max_by_key(|p| p.value(REGISTERS)).context("no kernel was compiled")?;
    let least = pipelines.iter().min_by_key(|p| p.value(OCCUPANCY)).context("no kernel was compiled")?;
    Ok(format!(
        "{} pipelines compiled for the 780M, {} spills, most registers {} ({}), lowest occupancy {} subgroups per SIMD ({})",
        pipelines.len(),
        pipelines.iter().map(Pipeline::spills).sum::<u64>(),
        most.value(REGISTERS),
        most.shader,
        least.value(OCCUPANCY),
        least.shader
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(shader: &str, spilled: u32, instruction: &str) -> String {
        format!(
            r#"{{"shader": "{shader}", "constants": [64], "subgroup": 32, "values": {{"VGPRs": 96.0, "Spilled VGPRs": {spilled},
            "Spilled SGPRs": 0, "Scratch size": 0, "Subgroups per SIMD": 10, "Instructions": 700}}, "instructions": {{{instruction}}}}}"#
        )
        .replace('\n', " ")
    }

    fn pipelines(lines: &[String]) -> Vec<Pipeline> {
        parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn a_spill_fails() {
        let modules = BTreeMap::from([("a".to_string(), Units::default())]);
        let fine = pipelines(&[line("a", 0, "")]);
        assert!(judge(&fine, &modules).is_ok());
        assert!(
            summary(&fine)
                .unwrap()
                .starts_with("1 pipelines compiled for the 780M, 0 spills, most registers 96 (a)")
        );
        let bad = pipelines(&[line("a", 0, ""), line("a", 3, "")]);
        assert!(judge(&bad, &modules).unwrap_err().to_string().contains("a [64] spills"));
        assert!(parse("").is_err());
        assert!(
            parse(r#"{"shader": "a", "constants": [], "subgroup": 32, "values": {}, "instructions": {}}"#)
                .is_err()
        );
    }

    #[test]
    fn an_emulated_unit_fails() {
        let modules = BTreeMap::from([("a".to_string(), Units { matrix: false, dot: true })]);
        let with = line("a", 0, r#""v_dot4_i32_iu8": 8"#);
        assert!(judge(&pipelines(&[line("a", 0, ""), with]), &modules).is_ok());
        let error = judge(&pipelines(&[line("a", 0, "")]), &modules).unwrap_err().to_string();
        assert!(error.contains("a has no v_dot4"), "{error}");
    }

    #[test]
    fn modules_tell_their_units() {
        let modules = modules().unwrap();
        assert!(modules["linear_q4_0"].dot && !modules["linear_f32"].dot);
        assert_eq!(modules["glu"], Units::default());
    }
}
