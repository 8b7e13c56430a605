//! How a model's files say that texts become vectors: those of sentence-transformers beside `config.json`, or keys of a GGUF.

use std::path::Path;

use serde_json::{Map, Value};
use unicorn_core::Pooling;

use crate::error::ModelError;
use crate::files::read_small;
use crate::gguf::Gguf;
use crate::json::{CONFIG_BYTES_MAX, not_json, read_json};
use crate::locate::Located;

/// What the files say of embeddings. `None` where they say nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EmbeddingDefaults {
    /// How the hidden states of a text become one vector.
    pub pooling: Option<Pooling>,
    /// Whether vectors are divided by their length.
    pub normalize: Option<bool>,
    /// Tokens of a text at most, special ones included, where that is less than the context.
    pub tokens_max: Option<usize>,
}

/// Reads what the files say.
///
/// Errors where they ask for something that is not done here, such as a reranker or a further layer, since vectors would be others.
pub(crate) fn defaults(located: &Located) -> Result<EmbeddingDefaults, ModelError> {
    match located {
        Located::Gguf(model) => from_gguf(&model.head),
        Located::HuggingFace(model) => from_folder(&model.directory),
    }
}

fn from_gguf(file: &Gguf) -> Result<EmbeddingDefaults, ModelError> {
    let Some(architecture) = file.string("general.architecture")? else {
        return Ok(EmbeddingDefaults::default());
    };
    let key = format!("{architecture}.pooling_type");
    let pooling = match file.int(&key)? {
        None | Some(0) => None,
        Some(1) => Some(Pooling::Mean),
        Some(2) => Some(Pooling::Cls),
        Some(3) => Some(Pooling::Last),
        Some(4) => {
            return Err(unsupported(format!("{key} = 4, a reranker, which gives scores and no vectors,")));
        }
        Some(other) => return Err(unsupported(format!("{key} = {other}"))),
    };
    Ok(EmbeddingDefaults { pooling, ..EmbeddingDefaults::default() })
}

fn unsupported(what: String) -> ModelError {
    ModelError::Unsupported { what }
}

fn from_folder(directory: &Path) -> Result<EmbeddingDefaults, ModelError> {
    let modules = modules(directory)?;
    let mut defaults = EmbeddingDefaults::default();
    let mut pooling = "1_Pooling".to_owned();
    for (kind, path) in modules.iter().flatten() {
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" => {}
            "Pooling" => pooling.clone_from(path),
            _ => return Err(unsupported(format!("modules.json: a module of type {kind:?}"))),
        }
    }
    if let Some(modules) = &modules {
        defaults.normalize = Some(modules.iter().any(|(kind, _)| kind.ends_with(".Normalize")));
    }
    // No name from a file leads out of the folder.
    if Path::new(&pooling).components().count() != 1 || pooling.starts_with("..") {
        return Err(unsupported(format!("modules.json: a module in {pooling:?}")));
    }
    if let Some(config) = read_json(&directory.join(&pooling).join("config.json"))? {
        defaults.pooling = Some(mode(&config)?);
    }
    if let Some(config) = read_json(&directory.join("sentence_bert_config.json"))? {
        let tokens = config.get("max_seq_length").filter(|v| !v.is_null());
        defaults.tokens_max = tokens.map(max_tokens).transpose()?;
    }
    Ok(defaults)
}

fn max_tokens(value: &Value) -> Result<usize, ModelError> {
    let tokens = value.as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
    let reason = || format!("{value} is no number of tokens");
    tokens.ok_or_else(|| ModelError::Invalid { key: "max_seq_length".to_owned(), reason: reason() })
}

/// Type and path of every module; `None` without `modules.json`.
fn modules(directory: &Path) -> Result<Option<Vec<(String, String)>>, ModelError> {
    let path = directory.join("modules.json");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = read_small(&path, CONFIG_BYTES_MAX)?;
    let list: Vec<Map<String, Value>> =
        serde_json::from_slice(&bytes).map_err(|source| not_json(&path, &bytes, source))?;
    let text = |module: &Map<String, Value>, key: &str| {
        module.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    Ok(Some(list.iter().map(|module| (text(module, "type"), text(module, "path"))).collect()))
}

/// The one mode that is switched on.
fn mode(config: &Map<String, Value>) -> Result<Pooling, ModelError> {
    let known = [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let on: Vec<&String> = config
        .iter()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(key, _)| key)
        .collect();
    let found = known.into_iter().find(|(key, _)| on == [key]);
    let names = || on.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    match found {
        Some((_, pooling)) => Ok(pooling),
        None if on.is_empty() => Err(unsupported("a pooling without a mode".to_owned())),
        None => Err(unsupported(format!("a pooling with {}", names()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> Result<EmbeddingDefaults, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        from_folder(dir.path())
    }

    const MEAN: (&str, &str) = ("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#);

    #[test]
    fn the_files_of_sentence_transformers_are_read() {
        assert_eq!(folder(&[]).unwrap(), EmbeddingDefaults::default());
        let modules = r#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "pool"},
            {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]"#;
        let cls = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        let length = ("sentence_bert_config.json", r#"{"max_seq_length": 256}"#);
        let all = folder(&[("modules.json", modules), ("pool/config.json", cls), length]).unwrap();
        let want =
            EmbeddingDefaults { pooling: Some(Pooling::Cls), normalize: Some(true), tokens_max: Some(256) };
        assert_eq!(all, want);
        let plain = folder(&[("modules.json", "[]"), MEAN]).unwrap();
        assert_eq!((plain.pooling, plain.normalize), (Some(Pooling::Mean), Some(false)));
    }

    #[test]
    fn what_would_give_other_vectors_is_refused_by_name() {
        let error = |files: &[(&str, &str)]| folder(files).unwrap_err().to_string();
        let dense = r#"[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#;
        assert!(error(&[("modules.json", dense)]).contains("models.Dense"));
        let max = r#"{"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}"#;
        assert!(error(&[("1_Pooling/config.json", max)]).contains("pooling_mode_max_tokens"));
        assert!(error(&[("1_Pooling/config.json", "{}")]).contains("without a mode"));
        for path in ["../x", "a/b", "..", "/etc"] {
            let out = format!(r#"[{{"type": "x.Pooling", "path": "{path}"}}]"#);
            assert!(error(&[("modules.json", &out)]).contains(path), "{path}");
        }
        assert!(error(&[("modules.json", "{}")]).contains("modules.json"));
        assert!(
            error(&[("sentence_bert_config.json", r#"{"max_seq_length": 0}"#)]).contains("max_seq_length")
        );
    }
}
