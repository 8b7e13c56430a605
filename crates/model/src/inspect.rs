//! A model file as plain data for people: also for architectures and types that the engine cannot run.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value as Json;

use crate::gguf::{Value, ValueType};
use crate::locate::Located;
use crate::tensors::{TensorInfo, TensorTable};

/// Elements of an array and characters of a string that are shown.
const ARRAY_SHOWN: usize = 8;
const TEXT_SHOWN: usize = 200;

/// What a model's files hold.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Inspection {
    /// `GGUF` or `safetensors`.
    pub format: String,
    /// Format version, where the format has one.
    pub version: Option<u32>,
    /// As the file names it; the engine may not know it.
    pub architecture: Option<String>,
    /// Files in shard order.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Metadata in file order.
    pub metadata: Vec<MetadataEntry>,
    /// Tensors in file order.
    pub tensors: Vec<TensorEntry>,
    /// Sums by element type, largest first.
    pub totals: Vec<TypeTotal>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

/// One metadata key.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct MetadataEntry {
    /// Key.
    pub key: String,
    /// Type, for example `u32` or `array of string`.
    pub ty: String,
    /// Value for people: control characters escaped, long strings and arrays shortened.
    pub value: String,
}

/// One tensor.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TensorEntry {
    /// Name.
    pub name: String,
    /// Element type.
    pub ty: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// Length in bytes.
    pub bytes: u64,
}

/// Sums over the tensors of one element type.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TypeTotal {
    /// Element type.
    pub ty: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of elements.
    pub elements: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Describes an opened model.
pub(crate) fn describe(located: &Located) -> Inspection {
    let (format, version, metadata) = match located {
        Located::Gguf(model) => {
            let metadata = model.head.metadata().map(|(key, value)| MetadataEntry {
                key: show_text(key),
                ty: value.type_name(),
                value: show_value(&value),
            });
            ("GGUF", Some(model.head.version()), metadata.collect())
        }
        Located::HuggingFace(model) => {
            let mut metadata = Vec::new();
            flatten("", &Json::Object(model.config.clone()), &mut metadata);
            metadata.extend(model.weights.metadata.iter().map(|(key, value)| MetadataEntry {
                key: format!("__metadata__.{}", show_text(key)),
                ty: "string".to_owned(),
                value: show_text(value),
            }));
            ("safetensors", None, metadata)
        }
    };
    let tensors = entries(located.tensors());
    Inspection {
        format: format.to_owned(),
        version,
        architecture: located.architecture(),
        files: located.files().paths().map(PathBuf::from).collect(),
        file_bytes: located.files().bytes(),
        metadata,
        parameters: located.tensors().iter().map(|t| t.elements()).fold(0, u64::saturating_add),
        tensor_bytes: tensors.iter().map(|t| t.bytes).sum(),
        totals: totals(located.tensors()),
        tensors,
    }
}

fn entries(tensors: &TensorTable) -> Vec<TensorEntry> {
    let entry = |t: &TensorInfo| TensorEntry {
        name: show_text(&t.name),
        ty: t.ty.name().to_owned(),
        shape: t.shape.clone(),
        bytes: t.span.bytes,
    };
    tensors.iter().map(entry).collect()
}

fn totals(tensors: &TensorTable) -> Vec<TypeTotal> {
    let mut totals: Vec<TypeTotal> = Vec::new();
    for t in tensors.iter() {
        let ty = t.ty.name();
        let index = totals.iter().position(|total| total.ty == ty).unwrap_or_else(|| {
            totals.push(TypeTotal { ty: ty.to_owned(), tensors: 0, elements: 0, bytes: 0 });
            totals.len() - 1
        });
        let total = &mut totals[index];
        total.tensors += 1;
        total.elements = total.elements.saturating_add(t.elements());
        total.bytes += t.span.bytes;
    }
    totals.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    totals
}

/// One object level per dot in the key; arrays stay whole.
fn flatten(key: &str, value: &Json, out: &mut Vec<MetadataEntry>) {
    if let Json::Object(map) = value {
        for (name, value) in map {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            flatten(&key, value, out);
        }
        return;
    }
    let (ty, text) = match value {
        Json::Null => ("null", "null".to_owned()),
        Json::Bool(b) => ("bool", b.to_string()),
        Json::Number(n) => ("number", n.to_string()),
        Json::String(s) => ("string", show_text(s)),
        Json::Array(a) => {
            let items = a.iter().take(ARRAY_SHOWN).map(|v| show_text(&v.to_string()));
            ("array", show_list(items, a.len()))
        }
        Json::Object(_) => ("object", String::new()),
    };
    out.push(MetadataEntry { key: show_text(key), ty: ty.to_owned(), value: text });
}

fn show_value(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => show_text(text),
        Value::Array(array) => {
            let quoted = array.element_type() == ValueType::String;
            let items = array.iter().take(ARRAY_SHOWN).map(|v| match v {
                Value::String(s) if quoted => format!("\"{}\"", show_text(&s)),
                other => other.to_string(),
            });
            show_list(items, array.len())
        }
        other => other.to_string(),
    }
}

fn show_list(items: impl Iterator<Item = String>, len: usize) -> String {
    let shown = items.collect::<Vec<_>>().join(", ");
    if len > ARRAY_SHOWN { format!("[{shown}, ... {len} in all]") } else { format!("[{shown}]") }
}

/// Escapes what would move the cursor of a terminal, and shortens.
fn show_text(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(TEXT_SHOWN) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    let rest = text.chars().skip(TEXT_SHOWN).count();
    if rest > 0 {
        out.push_str(&format!("... ({rest} more characters)"));
    }
    out
}
