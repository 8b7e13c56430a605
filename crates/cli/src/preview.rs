//! What is looked at before gigabytes are fetched: whether the model's files say that it cannot run.

use unicorn_hub::Preview;

/// Why a model is not to be fetched, if its beginning tells.
pub fn check(preview: Preview<'_>) -> Result<(), String> {
    match preview {
        Preview::Safetensors { config, files } => {
            check_files(files)?;
            let config =
                std::str::from_utf8(config).map_err(|_| "config.json is not valid UTF-8".to_owned())?;
            unicorn_model::check_config(config).map_err(|error| error.to_string())
        }
        Preview::Gguf { head, .. } => {
            unicorn_model::check_gguf_header(head).map(|_| ()).map_err(|error| error.to_string())
        }
        // A kind of model that this program does not know of: opening it tells.
        _ => Ok(()),
    }
}

/// Names what a safetensors model cannot do without.
fn check_files(files: &[&str]) -> Result<(), String> {
    let has = |name: &str| files.contains(&name);
    if !has("tokenizer.json") {
        return Err(
            "it has no tokenizer.json, and no other kind of tokenizer is read beside safetensors".to_owned()
        );
    }
    let index = "model.safetensors.index.json";
    if !has(index) && !has("model.safetensors") && files.iter().any(|name| name.contains("-of-")) {
        return Err(format!("its weights are in shards, and there is no {index}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safetensors(config: &str, files: &[&str]) -> Result<(), String> {
        check(Preview::Safetensors { config: config.as_bytes(), files })
    }

    #[test]
    fn what_cannot_run_is_told_from_small_files() {
        let whole = ["config.json", "tokenizer.json", "model.safetensors"];
        let shards = ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors"];
        let known = r#"{"architectures": ["LlamaForCausalLM"]}"#;
        let mamba = r#"{"architectures": ["MambaForCausalLM"]}"#;
        let error = safetensors(mamba, &whole).unwrap_err();
        assert!(error.contains("MambaForCausalLM"), "{error}");
        assert!(
            safetensors(known, &["config.json", "model.safetensors"]).unwrap_err().contains("tokenizer.json")
        );
        assert!(safetensors(known, &shards).unwrap_err().contains("index.json"));
        let mut head = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        for text in ["general.architecture", "mamba"] {
            head.extend((text.len() as u64).to_le_bytes());
            head.extend(text.as_bytes());
            if text.starts_with("general") {
                head.extend(8u32.to_le_bytes());
            }
        }
        let error = check(Preview::Gguf { head: &head, bytes: None }).unwrap_err();
        assert!(error.contains("mamba"), "{error}");
        head.truncate(30);
        assert_eq!(check(Preview::Gguf { head: &head, bytes: None }), Ok(()));
    }
}
