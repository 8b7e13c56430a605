//! `unicorn models`.

use std::io::Write;

use serde::Serialize;
use unicorn_hub::{CachedModel, Reference};

use crate::args::ModelsArgs;
use crate::config::{Config, DEFAULT_MODEL};
use crate::exit::Exit;
use crate::output::Out;
use crate::table::{Align, Table, clip};
use crate::units;

/// Characters of a reason shown; JSON has all of it.
const PROBLEM_WIDTH: usize = 100;

/// A model by the name that `--model` takes.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Line {
    name: String,
    quant: Option<String>,
    bytes: Option<u64>,
    path: Option<String>,
    /// Why it cannot run, where that is so.
    problem: Option<String>,
    default: bool,
}

/// Prints the models in the cache, then the known ones that are not there.
pub fn run(args: &ModelsArgs, config: &Config) -> anyhow::Result<Exit> {
    let cached = unicorn_hub::list(&config.hub)?;
    let known: Vec<(&str, bool)> = unicorn_hub::known_names()
        .into_iter()
        .map(|name| (name, unicorn_hub::cached(&Reference::Known(name), &config.hub).is_some()))
        .collect();
    let lines = lines(&cached, &known, &problem);
    let text = if args.json { serde_json::to_string_pretty(&lines)? + "\n" } else { render(&lines) };
    let mut out = Out::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// Why a model cannot run, told by its own files: reading their headers takes milliseconds.
fn problem(model: &CachedModel) -> Option<String> {
    let text = unicorn_model::open(&model.path).err()?.to_string();
    // The path is the model's own, or that of a file in its folder.
    let path = model.path.display().to_string();
    Some(
        text.strip_prefix(&path)
            .map_or(text.as_str(), |rest| rest.trim_start_matches([':', '/', ' ']))
            .to_owned(),
    )
}

/// `known` says for each name whether the cache has it: it may be there under its repository's name.
fn lines(
    cached: &[CachedModel],
    known: &[(&str, bool)],
    problem: &dyn Fn(&CachedModel) -> Option<String>,
) -> Vec<Line> {
    let here = cached.iter().map(|model| Line {
        name: model.name.clone(),
        quant: Some(model.quant.clone()),
        bytes: Some(model.bytes),
        path: Some(model.path.display().to_string()),
        problem: problem(model),
        default: model.name == DEFAULT_MODEL,
    });
    let missing = known.iter().filter(|(_, is_cached)| !is_cached).map(|(name, _)| Line {
        name: (*name).to_owned(),
        quant: None,
        bytes: None,
        path: None,
        problem: None,
        default: *name == DEFAULT_MODEL,
    });
    here.chain(missing).collect()
}

fn render(lines: &[Line]) -> String {
    let mut table = Table::new([
        ("model", Align::Left),
        ("type", Align::Left),
        ("size", Align::Right),
        ("", Align::Left),
    ]);
    for line in lines {
        let state = match (&line.path, &line.problem) {
            (Some(_), Some(problem)) => format!("cannot run: {}", clip(problem, PROBLEM_WIDTH)),
            (Some(_), None) => "here".to_owned(),
            (None, _) => "to be fetched".to_owned(),
        };
        let state = if line.default { format!("{state}, default") } else { state };
        let size = line.bytes.map(units::bytes).unwrap_or_default();
        table.row([line.name.clone(), line.quant.clone().unwrap_or_default(), size, state]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_models_come_first_and_known_ones_once() {
        let cached = [CachedModel {
            name: DEFAULT_MODEL.into(),
            quant: "Q4_1".into(),
            file: "f.gguf".into(),
            bytes: 98_000_000,
            path: "/c/f.gguf".into(),
        }];
        let known = [(DEFAULT_MODEL, true), ("other", false)];
        let lines = lines(&cached, &known, &|_| None);
        let names: Vec<&str> = lines.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, [DEFAULT_MODEL, "other"]);
        let text = render(&lines);
        assert!(text.contains("smollm2-135m  Q4_1  98.0 MB  here, default"), "{text}");
        assert!(text.contains("to be fetched"), "{text}");
    }

    #[test]
    fn what_cannot_run_is_not_listed_as_ready() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        std::fs::write(&path, b"GGUF and nothing more").unwrap();
        let cached = [CachedModel {
            name: "a/b:Q4_0".into(),
            quant: "Q4_0".into(),
            file: "x.gguf".into(),
            bytes: 21,
            path: path.clone(),
        }];
        let lines = lines(&cached, &[], &problem);
        let told = lines[0].problem.as_deref().unwrap();
        assert!(!told.contains(&path.display().to_string()), "{told}");
        let text = render(&lines);
        assert!(text.contains("cannot run: ") && !text.contains("here"), "{text}");
    }
}
