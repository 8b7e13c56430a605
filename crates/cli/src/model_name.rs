//! A model's name in the place of the prompt, as other tools take it: `unicorn run gemma3-270m`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use unicorn_hub::{HubConfig, Reference, cached};

/// True where `text` can only mean a model: a known name, a repository in the cache, a model's file or folder. A prompt that
/// merely contains such a name is none, nor is one with a space before it.
pub fn is_model(text: &str, hub: &HubConfig) -> bool {
    if text.trim() != text {
        return false;
    }
    match unicorn_hub::resolve(text) {
        Ok(Reference::Known(_)) => true,
        Ok(Reference::File(path)) => is_model_file(&path),
        Ok(Reference::Directory(path)) => is_model_folder(&path),
        Ok(reference) => cached(&reference, hub).is_some(),
        Err(_) => false,
    }
}

/// True where `text` looks like the path of a model file and there is none: nobody asks a model about that.
pub fn is_missing_file(text: &str) -> bool {
    !text.contains(char::is_whitespace) && has_model_ending(Path::new(text)) && !Path::new(text).exists()
}

fn has_model_ending(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf") || e.eq_ignore_ascii_case("safetensors"))
}

fn is_model_file(path: &Path) -> bool {
    let begins_as_gguf = || {
        let mut magic = [0; 4];
        File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"GGUF"
    };
    has_model_ending(path) || (path.is_file() && begins_as_gguf())
}

fn is_model_folder(path: &Path) -> bool {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    path.join("config.json").is_file() || entries.map(|e| e.path()).any(|path| has_model_ending(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_models_count() {
        let folder = tempfile::tempdir().unwrap();
        let hub = HubConfig::new(folder.path());
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("m.gguf"), "GGUF").unwrap();
        std::fs::write(path("blob"), "GGUF and more").unwrap();
        std::fs::write(path("notes.txt"), "GG").unwrap();
        std::fs::create_dir(path("empty")).unwrap();
        std::fs::create_dir(path("model")).unwrap();
        std::fs::write(path("model/config.json"), "{}").unwrap();
        for text in ["gemma3-270m", "SmolLM2-135m", &path("m.gguf"), &path("blob"), &path("model")] {
            assert!(is_model(text, &hub), "{text}");
        }
        let (notes, empty) = (path("notes.txt"), path("empty"));
        for text in ["gemma3-270m?", " gemma3-270m", "run gemma3-270m", "and/or", "", &notes, &empty] {
            assert!(!is_model(text, &hub), "{text}");
        }
        assert!(is_missing_file("nope.gguf") && is_missing_file(&path("x.safetensors")));
        assert!(!is_missing_file(&path("m.gguf")) && !is_missing_file("what is m.gguf"));
    }
}
