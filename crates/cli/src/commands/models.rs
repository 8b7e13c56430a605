//! `unicorn models`.

use std::io::Write;

use serde::Serialize;
use unicorn_hub::{CachedModel, Reference};

use crate::args::ModelsArgs;
use crate::config::{Config, DEFAULT_MODEL};
use crate::exit::Exit;
use crate::output::Out;
use crate::table::{Align, Table};
use crate::units;

/// A model by the name that `--model` takes.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Line {
    name: String,
    quant: Option<String>,
    bytes: Option<u64>,
    path: Option<String>,
    default: bool,
}

/// Prints the models in the cache, then the known ones that are not there.
pub fn run(args: &ModelsArgs, config: &Config) -> anyhow::Result<Exit> {
    let cached = unicorn_hub::list(&config.hub)?;
    let known: Vec<(&str, bool)> = unicorn_hub::known_names()
        .into_iter()
        .map(|name| (name, unicorn_hub::cached(&Reference::Known(name), &config.hub).is_some()))
        .collect();
    let lines = lines(&cached, &known);
    let text = if args.json { serde_json::to_string_pretty(&lines)? + "\n" } else { render(&lines) };
    let mut out = Out::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// `known` says for each name whether the cache has it: it may be there under its repository's name.
fn lines(cached: &[CachedModel], known: &[(&str, bool)]) -> Vec<Line> {
    let here = cached.iter().map(|model| Line {
        name: model.name.clone(),
        quant: Some(model.quant.clone()),
        bytes: Some(model.bytes),
        path: Some(model.path.display().to_string()),
        default: model.name == DEFAULT_MODEL,
    });
    let missing = known.iter().filter(|(_, is_cached)| !is_cached).map(|(name, _)| Line {
        name: (*name).to_owned(),
        quant: None,
        bytes: None,
        path: None,
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
        let state = match (&line.path, line.default) {
            (Some(_), true) => "here, default",
            (Some(_), false) => "here",
            (None, true) => "to be fetched, default",
            (None, false) => "to be fetched",
        };
        let size = line.bytes.map(units::bytes).unwrap_or_default();
        table.row([line.name.clone(), line.quant.clone().unwrap_or_default(), size, state.to_owned()]);
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
        let lines = lines(&cached, &[(DEFAULT_MODEL, true), ("other", false)]);
        let names: Vec<&str> = lines.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, [DEFAULT_MODEL, "other"]);
        let text = render(&lines);
        assert!(text.contains("smollm2-135m  Q4_1  98.0 MB  here, default"), "{text}");
        assert!(text.contains("to be fetched"), "{text}");
    }
}
