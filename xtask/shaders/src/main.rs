//! Compiles the compute shaders to the committed SPIR-V, or checks that the committed modules are what the sources give.
//!
//! usage: shader-compiler SHADERS SPIRV [--check]
//!
//! `SHADERS/variants.txt` lists one module a line: name, source, defines. `*` stands for every quantized weight type, `%` for every float
//! type. `SPIRV` receives `NAME.spv` and `table.rs`, which the Vulkan crate includes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use glslang::{
    Compiler, CompilerOptions, ShaderInput, ShaderMessage, ShaderSource, ShaderStage, SourceLanguage, SpirvVersion, Target,
    VulkanVersion,
};

const QUANTIZED: [&str; 13] =
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"];
const FLOATS: [&str; 3] = ["F32", "F16", "BF16"];

/// One SPIR-V module.
struct Variant {
    module: String,
    source: String,
    defines: Vec<(String, String)>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (shaders, spirv, check) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [a, b] => (PathBuf::from(a), PathBuf::from(b), false),
        [a, b, "--check"] => (PathBuf::from(a), PathBuf::from(b), true),
        _ => bail!("usage: shader-compiler SHADERS SPIRV [--check]"),
    };
    let list = shaders.join("variants.txt");
    let text = std::fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    let mut files = Vec::new();
    let mut table = String::from("&[\n");
    for variant in variants(&text)? {
        files.push((format!("{}.spv", variant.module), compile(&shaders, &variant)?));
        table += &format!("    (\"{0}\", include_bytes!(\"../spirv/{0}.spv\")),\n", variant.module);
    }
    files.push(("table.rs".into(), (table + "]\n").into_bytes()));
    if check { compare(&spirv, &files) } else { write(&spirv, &files) }
}

/// Reads the list of variants.
fn variants(text: &str) -> Result<Vec<Variant>> {
    let mut out = Vec::new();
    for line in text.lines().map(|l| l.split('#').next().unwrap_or_default().trim()).filter(|l| !l.is_empty()) {
        let types: &[&str] = match line {
            l if l.contains('*') => &QUANTIZED,
            l if l.contains('%') => &FLOATS,
            _ => &[""],
        };
        for ty in types {
            let mut words = line.split_whitespace();
            let (Some(module), Some(source)) = (words.next(), words.next()) else { bail!("no source in `{line}`") };
            let define = |word: &str| {
                let (name, value) = word.split_once('=').unwrap_or((word, "1"));
                (name.replace(['*', '%'], ty), value.to_string())
            };
            out.push(Variant {
                module: module.replace(['*', '%'], &ty.to_lowercase()),
                source: source.to_string(),
                defines: words.map(define).collect(),
            });
        }
    }
    Ok(out)
}

/// Replaces `#include "file"` lines, relative to the shader folder.
fn expand(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut out = String::new();
    for (i, line) in text.lines().enumerate() {
        match line.trim().strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(file) => out += &format!("{}#line {}\n", expand(dir, file)?, i + 2),
            None => out += &format!("{line}\n"),
        }
    }
    Ok(out)
}

fn compile(dir: &Path, variant: &Variant) -> Result<Vec<u8>> {
    let compiler = Compiler::acquire().ok_or_else(|| anyhow!("glslang does not start"))?;
    let options = CompilerOptions {
        source_language: SourceLanguage::GLSL,
        target: Target::Vulkan { version: VulkanVersion::Vulkan1_3, spirv_version: SpirvVersion::SPIRV1_6 },
        version_profile: None,
        messages: ShaderMessage::DEFAULT,
    };
    let text = expand(dir, &variant.source)?;
    let source = ShaderSource::from(text.as_str());
    let defines: Vec<(&str, Option<&str>)> =
        variant.defines.iter().map(|(name, value)| (name.as_str(), Some(value.as_str()))).collect();
    let fail = |e: glslang::error::GlslangError| anyhow!("{} ({}): {e}", variant.module, variant.source);
    let input =
        ShaderInput::new(&source, ShaderStage::Compute, &options, Some(&defines[..]), None).map_err(fail)?;
    let shader = compiler.create_shader(input).map_err(fail)?;
    let mut program = compiler.create_program();
    program.add_shader(&shader);
    let words = program.compile(ShaderStage::Compute).map_err(fail)?;
    Ok(words.iter().flat_map(|w| w.to_le_bytes()).collect())
}

fn write(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    }
    println!("{} modules written", files.len() - 1);
    Ok(())
}

/// Every file must be there with these bytes, and no other.
fn compare(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    let differing: Vec<&str> = files
        .iter()
        .filter(|(name, bytes)| std::fs::read(dir.join(name)).ok().as_ref() != Some(bytes))
        .map(|(name, _)| name.as_str())
        .collect();
    ensure!(differing.is_empty(), "not what the sources give: {}", differing.join(", "));
    let known: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let name = entry?.file_name();
        ensure!(name.to_str().is_some_and(|n| known.contains(n)), "left over: {}", name.display());
    }
    println!("{} modules are what their sources give", files.len() - 1);
    Ok(())
}
