//! `cargo xtask golden`: reference data made by the reference implementations themselves.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{data, peers, sh};

/// Options of `cargo xtask golden`.
#[derive(clap::Args)]
pub struct Args {
    /// Run only the script of this name
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// A script of `xtask/golden`.
struct Script {
    name: &'static str,
    /// What it imports, pinned.
    packages: &'static [&'static str],
    /// What it reads.
    needs: Needs,
    /// Paths from the root of the workspace, after the one that `needs` adds.
    arguments: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq)]
enum Needs {
    Nothing,
    /// The folder of llama.cpp's chat templates.
    Templates,
    /// llama.cpp's source tree.
    LlamaCpp,
    /// The folder of all-MiniLM-L6-v2.
    MiniLm,
}

const SCRIPTS: &[Script] = &[
    Script {
        name: "quant",
        packages: &["numpy==2.4.6", "gguf==0.19.0"],
        needs: Needs::Nothing,
        arguments: &["tests/data/quant"],
    },
    Script {
        name: "chat_templates",
        packages: &["jinja2==3.1.6"],
        needs: Needs::Templates,
        arguments: &["tests/data/templates/golden.json"],
    },
    Script {
        name: "tiny_models",
        packages: &[
            "torch==2.15.0",
            "transformers==5.23.0",
            "safetensors==0.8.0",
            "tokenizers==0.23.3",
            "numpy==2.4.6",
            "gguf==0.19.0",
            "sentencepiece==0.2.3",
        ],
        needs: Needs::LlamaCpp,
        arguments: &["tests/data/tiny"],
    },
    Script {
        name: "encoders",
        packages: &[
            "torch==2.15.0",
            "transformers==5.23.0",
            "safetensors==0.8.0",
            "tokenizers==0.23.3",
            "numpy==2.4.6",
            "gguf==0.19.0",
        ],
        needs: Needs::MiniLm,
        arguments: &["tests/data/tiny", "tests/data/embeddings/minilm.json"],
    },
];

/// Runs the scripts in an environment of their own under `target/`.
pub fn run(args: &Args) -> Result<()> {
    let wanted: Vec<&Script> = match &args.only {
        Some(name) => SCRIPTS.iter().filter(|s| s.name == name).collect(),
        None => SCRIPTS.iter().collect(),
    };
    if wanted.is_empty() {
        let names: Vec<&str> = SCRIPTS.iter().map(|s| s.name).collect();
        bail!("no script of this name; there are {}", names.join(", "));
    }
    let venv = sh::target("golden-venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        sh::run(sh::command("python3").args(["-m", "venv"]).arg(&venv))
            .context("the venv module is needed (python3-venv)")?;
    }
    for script in wanted {
        sh::step(script.name, || run_script(script, &python))?;
    }
    Ok(())
}

fn run_script(script: &Script, python: &Path) -> Result<()> {
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
    sh::run(sh::command(python).args(pip).args(script.packages))?;
    let mut command = sh::command(python);
    command.arg(format!("xtask/golden/{}.py", script.name));
    match script.needs {
        Needs::Nothing => {}
        Needs::Templates => {
            data::install()?;
            command.arg("target/test-data/llama.cpp-models/templates");
        }
        Needs::LlamaCpp => {
            command.arg(peers::source()?);
        }
        Needs::MiniLm => {
            data::install()?;
            command.arg("target/test-data/minilm");
        }
    }
    sh::run(command.args(script.arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_is_in_the_table() {
        let mut found: Vec<String> = std::fs::read_dir(sh::root().join("xtask/golden"))
            .unwrap()
            .flatten()
            .filter(|e| e.path().extension().is_some_and(|e| e == "py"))
            .map(|e| e.path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        let mut listed: Vec<String> = SCRIPTS.iter().map(|s| s.name.to_string()).collect();
        found.sort();
        listed.sort();
        assert_eq!(found, listed);
        assert!(SCRIPTS.iter().flat_map(|s| s.packages).all(|p| p.contains("==")), "packages are pinned");
    }
}
