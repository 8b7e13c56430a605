//! `unicorn inspect`.

use std::io::Write;

use unicorn_core::ModelSpec;
use unicorn_engine::{EngineOptions, Need};
use unicorn_model::Inspection;

use crate::args::InspectArgs;
use crate::config::Config;
use crate::exit::Exit;
use crate::model_spec::look;
use crate::output::{Out, say};
use crate::table::{Align, Table, clip};
use crate::units;

/// Characters of a metadata value shown.
const VALUE_WIDTH: usize = 100;

/// The context that memory is told for, or the model's where that is shorter.
const CONTEXT: usize = 8192;

/// Prints what a model's files hold. Of a model on a hub, only the beginnings of its files are fetched.
pub fn run(args: &InspectArgs, config: &Config) -> anyhow::Result<Exit> {
    let looked = look(&args.file, config)?;
    let inspection = looked.inspect()?;
    if let Some(origin) = looked.origin(config).filter(|_| config.talks()) {
        say!("{origin}");
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&inspection)? + "\n",
        // A model that this program cannot run needs no memory.
        false => render(&inspection, looked.spec().ok().map(|spec| memory_of(&spec))),
    };
    let mut out = Out::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// `about 1.2 GB at a context of 8192 tokens: weights 1.1 GB, KV cache 90 MB, scratch 10 MB`.
fn memory_of(spec: &ModelSpec) -> String {
    let context = spec.context_max.min(CONTEXT);
    let need = Need::of(spec, &EngineOptions { context, ..EngineOptions::default() });
    let parts = [("weights", need.weights), ("KV cache", need.kv), ("scratch", need.scratch)];
    let parts = parts.map(|(name, bytes)| format!("{name} {}", units::bytes(bytes))).join(", ");
    format!("about {} at a context of {context} tokens: {parts}", units::bytes(need.total()))
}

fn render(inspection: &Inspection, memory: Option<String>) -> String {
    let sections =
        [summary(inspection, memory), metadata(inspection), tensors(inspection), totals(inspection)];
    sections.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("\n")
}

fn summary(i: &Inspection, memory: Option<String>) -> String {
    let version = i.version.map(|v| format!(" version {v}")).unwrap_or_default();
    let files: Vec<String> = i.files.iter().map(|f| f.display().to_string()).collect();
    let lines = [
        ("format", format!("{}{version}", i.format)),
        ("architecture", i.architecture.as_deref().map_or("not named".into(), |a| clip(a, VALUE_WIDTH))),
        ("parameters", format!("{} ({})", units::parameters(i.parameters), i.parameters)),
        ("size", format!("{} ({} bytes)", units::bytes(i.file_bytes), i.file_bytes)),
        ("file", files.join(", ")),
    ];
    let memory = memory.map(|memory| ("memory", memory));
    lines.iter().chain(&memory).map(|(name, value)| format!("{name:<13} {value}\n")).collect()
}

fn metadata(i: &Inspection) -> String {
    if i.metadata.is_empty() {
        return String::new();
    }
    let mut table = Table::new([("metadata", Align::Left), ("type", Align::Left), ("value", Align::Left)]);
    for entry in &i.metadata {
        table.row([entry.key.clone(), entry.ty.clone(), clip(&entry.value, VALUE_WIDTH)]);
    }
    table.text()
}

fn tensors(i: &Inspection) -> String {
    if i.tensors.is_empty() {
        return String::new();
    }
    let columns =
        [("tensor", Align::Left), ("type", Align::Left), ("shape", Align::Right), ("size", Align::Right)];
    let mut table = Table::new(columns);
    for tensor in &i.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        table.row([tensor.name.clone(), tensor.ty.clone(), shape.join(" x "), units::bytes(tensor.bytes)]);
    }
    table.text()
}

fn totals(i: &Inspection) -> String {
    let mut table = Table::new([
        ("type", Align::Left),
        ("tensors", Align::Right),
        ("elements", Align::Right),
        ("size", Align::Right),
        ("share", Align::Right),
        ("bits/weight", Align::Right),
    ]);
    let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let sum = (i.tensors.len() as u64, i.parameters, i.tensor_bytes);
    let each = i.totals.iter().map(|t| (t.ty.as_str(), (t.tensors, t.elements, t.bytes)));
    for (name, (tensors, elements, bytes)) in each.chain([("all", sum)]) {
        table.row([
            name.to_owned(),
            tensors.to_string(),
            units::parameters(elements),
            units::bytes(bytes),
            units::percent(ratio(bytes, i.tensor_bytes)),
            format!("{:.2}", 8.0 * ratio(bytes, elements)),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use unicorn_model::{MetadataEntry, TensorEntry, TypeTotal};

    use super::*;

    #[test]
    fn everything_is_shown() {
        let inspection = Inspection {
            format: "GGUF".into(),
            version: Some(3),
            architecture: Some("llama".into()),
            files: vec!["/m.gguf".into()],
            file_bytes: 2048,
            metadata: vec![MetadataEntry {
                key: "general.name".into(),
                ty: "string".into(),
                value: "N".into(),
            }],
            tensors: vec![TensorEntry {
                name: "w".into(),
                ty: "F16".into(),
                shape: vec![2, 256],
                bytes: 1024,
            }],
            totals: vec![TypeTotal { ty: "F16".into(), tensors: 1, elements: 512, bytes: 1024 }],
            parameters: 512,
            tensor_bytes: 1024,
        };
        let text = render(&inspection, Some("about 1 kB".into()));
        for part in [
            "GGUF version 3",
            "memory        about 1 kB",
            "llama",
            "general.name  string  N",
            "2 x 256",
            "1.02 kB  100.0 %        16.00",
        ] {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
    }
}
