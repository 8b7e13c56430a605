//! Why a folder holds no model that can be opened, told from the names of its files.

use crate::wrong_file;

/// Completes "FOLDER: not a model: ". `names` are those of its files; none of them is a GGUF model, and `config.json` with
/// `model.safetensors` or its index are not both there.
pub(crate) fn why_no_model(names: &[String]) -> String {
    let has = |name: &str| names.iter().any(|n| n == name);
    let find = |test: &dyn Fn(&str) -> bool| names.iter().find(|n| test(n)).cloned();
    let safetensors: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
    let shards: Vec<&&String> = safetensors.iter().filter(|n| is_shard(n)).collect();
    if has("adapter_config.json") || safetensors.iter().any(|n| n.starts_with("adapter_model")) {
        return "an adapter (LoRA), which has to be merged into its base model first".to_owned();
    }
    if has("model_index.json") {
        return "a pipeline of the diffusers library, not a language model".to_owned();
    }
    if let Some(shard) = shards.first() {
        let of = if shards.len() == 1 { String::new() } else { format!(" and {} more", shards.len() - 1) };
        return format!("shards without model.safetensors.index.json (found {shard}{of})");
    }
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return "safetensors without config.json, which says what they are".to_owned();
    }
    if let Some(name) = safetensors.first() {
        return format!("found {name}, but neither model.safetensors nor model.safetensors.index.json");
    }
    if let Some(name) = find(&|n| n.to_lowercase().contains("mmproj") && n.to_lowercase().ends_with(".gguf"))
    {
        return format!("{name} is a vision projector; the model that it belongs to is not there");
    }
    if let Some(name) = find(&|n| n.to_lowercase().ends_with(".gguf")) {
        return format!("{name} is a later shard; the first one is not there");
    }
    let of_others = names.iter().find_map(|n| wrong_file::by_name(n).map(|what| format!("{n} is {what}")));
    if let Some(what) = of_others {
        return what;
    }
    if has("config.json") {
        return "config.json without weights: model.safetensors is not there".to_owned();
    }
    "the directory holds neither config.json with safetensors nor a .gguf file".to_owned()
}

/// `NAME-00001-of-00002.safetensors`.
fn is_shard(name: &str) -> bool {
    shard_count(name).is_some()
}

/// How many shards there are by the name of one.
pub(crate) fn shard_count(name: &str) -> Option<u64> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    number.parse::<u64>().ok()?;
    count.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_has_its_reason() {
        let why = |names: &[&str]| why_no_model(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        for (names, reason) in [
            (
                &["config.json", "model-00001-of-00002.safetensors"][..],
                "shards without model.safetensors.index.json",
            ),
            (&["config.json", "pytorch_model.bin"], "pytorch_model.bin is a PyTorch checkpoint"),
            (&["config.json", "pytorch_model.bin.index.json"], "convert it to safetensors"),
            (&["config.json", "consolidated.00.pth", "params.json"], "PyTorch"),
            (&["model.safetensors", "tokenizer.json"], "without config.json"),
            (&["config.json", "consolidated.safetensors"], "found consolidated.safetensors"),
            (&["adapter_config.json", "adapter_model.safetensors"], "adapter"),
            (&["model_index.json"], "diffusers"),
            (&["config.json", "model.onnx"], "ONNX"),
            (&["config.json", "tokenizer.json"], "config.json without weights"),
            (&["config.json", "tf_model.h5"], "does not read"),
            (&["gemma.mmproj-f16.gguf"], "vision projector"),
            (&["m-00002-of-00003.gguf"], "later shard"),
            (&["m.gguf.part"], "did not finish"),
            (&["notes.txt"], "neither config.json"),
        ] {
            let text = why(names);
            assert!(text.contains(reason), "{names:?}: {text}");
        }
    }
}
