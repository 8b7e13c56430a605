//! Quantization labels in file names, and which file of a repository to take.

use std::collections::BTreeMap;

/// Labels in the order of preference for a download that names none: small with little loss first, then larger files,
/// then lossy ones, then unquantized.
const PREFERENCE: &[&str] = &[
    "Q4_K_M",
    "Q4_0",
    "Q8_0",
    "Q4_K_S",
    "Q5_K_M",
    "Q4_1",
    "Q6_K",
    "Q5_K_S",
    "Q5_0",
    "Q5_1",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
    "MXFP4_MOE",
    "Q4_K_L",
    "Q4_K_XL",
    "Q4_K",
    "Q5_K",
    "Q5_K_L",
    "Q5_K_XL",
    "Q6_K_L",
    "Q6_K_XL",
    "Q8_K_XL",
    "Q3_K_L",
    "Q3_K_XL",
    "Q3_K_M",
    "Q3_K_S",
    "Q3_K",
    "Q2_K",
    "Q2_K_L",
    "Q2_K_XL",
    "Q2_K_S",
    "F16",
    "FP16",
    "BF16",
    "F32",
    "FP32",
    "IQ3_M",
    "IQ3_S",
    "IQ3_XS",
    "IQ3_XXS",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
    "IQ1_S",
    "TQ1_0",
    "TQ2_0",
];

/// Place of a label in the order of preference; unknown ones come last.
pub(crate) fn rank(label: &str) -> usize {
    let (label, dynamic) = match label.strip_prefix("UD-") {
        Some(rest) => (rest, 1),
        None => (label, 0),
    };
    PREFERENCE.iter().position(|p| *p == label).map_or(usize::MAX, |place| 2 * place + dynamic)
}

/// A model file that may be split: `model-00001-of-00003.gguf`.
pub(crate) struct ShardName<'a> {
    /// Name without number and extension.
    pub stem: &'a str,
    /// Number, from 1, and count; `None` for a single file.
    pub shard: Option<(u32, u32)>,
}

/// Takes the extension and the shard number off a name.
pub(crate) fn split_shard<'a>(name: &'a str, extension: &str) -> Option<ShardName<'a>> {
    let cut = name.len().checked_sub(extension.len())?;
    if !name.is_char_boundary(cut) || !name[cut..].eq_ignore_ascii_case(extension) {
        return None;
    }
    let stem = &name[..cut];
    let numbered = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (rest, number) = rest.rsplit_once('-')?;
        let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        (digits(number) && digits(count)).then_some(())?;
        Some(ShardName { stem: rest, shard: Some((number.parse().ok()?, count.parse().ok()?)) })
    };
    Some(numbered().unwrap_or(ShardName { stem, shard: None }))
}

/// The quantization that a GGUF file name tells, in capitals, `UD-` kept: `Q4_K_M` of `model.q4_k_m-00001-of-00002.gguf`.
pub(crate) fn label(file: &str) -> Option<String> {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = split_shard(name, ".gguf")?.stem.to_ascii_uppercase();
    let bytes = stem.as_bytes();
    let mut best: Option<(usize, &str)> = None;
    for candidate in PREFERENCE {
        for (at, _) in stem.match_indices(candidate) {
            let end = at + candidate.len();
            let starts = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
            let ends = bytes.get(end).is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'_');
            // The last label counts (`Q8_0` may be part of a model's name), and the longest at that end.
            let better = best.is_none_or(|(b_at, b)| {
                let b_end = b_at + b.len();
                end > b_end || (end == b_end && candidate.len() > b.len())
            });
            if starts && ends && better {
                best = Some((at, candidate));
            }
        }
    }
    let (at, found) = best?;
    Some(if stem[..at].ends_with("UD-") { format!("UD-{found}") } else { found.to_string() })
}

/// A GGUF model in a repository: one file or all its shards in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct GgufChoice {
    /// Label, or the stem of the file where the name tells none.
    pub quant: String,
    /// Files, the one to open first.
    pub files: Vec<String>,
}

/// True for GGUF files that are no language model: multimodal projectors and importance matrices, however the name is
/// written (`mmproj-F16.gguf`, `X.mmproj-f16.gguf`, `x_mm_proj.gguf`).
pub(crate) fn is_no_model(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    plain.contains("mmproj") || plain.contains("imatrix")
}

/// Groups the GGUF files of a repository into models, in order of preference. Projectors and importance matrices are
/// left out, and so is a set with a missing shard.
pub(crate) fn choices<'a>(files: impl IntoIterator<Item = &'a str>) -> Vec<GgufChoice> {
    // By stem and number of shards; the shards with their numbers.
    type Groups = BTreeMap<(String, Option<u32>), Vec<(u32, String)>>;
    let mut groups = Groups::new();
    for file in files {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        if is_no_model(name) {
            continue;
        }
        let Some(split) = split_shard(name, ".gguf") else { continue };
        let (number, count) = split.shard.map_or((1, None), |(n, count)| (n, Some(count)));
        groups
            .entry((format!("{folder}/{}", split.stem), count))
            .or_default()
            .push((number, file.to_string()));
    }
    let mut all = Vec::new();
    for ((stem, count), mut shards) in groups {
        shards.sort();
        let numbers = shards.iter().map(|(n, _)| *n);
        if count.is_some_and(|count| !numbers.eq(1..=count)) {
            continue;
        }
        let files: Vec<String> = shards.into_iter().map(|(_, file)| file).collect();
        let plain = stem.rsplit('/').next().unwrap_or(&stem).to_string();
        all.push(GgufChoice { quant: label(&files[0]).unwrap_or(plain), files });
    }
    all.sort_by(|a, b| {
        (rank(&a.quant), a.files[0].len(), &a.files).cmp(&(rank(&b.quant), b.files[0].len(), &b.files))
    });
    all
}

/// What a name says about the files of a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Pick<'a> {
    /// Quantization.
    pub quant: Option<&'a str>,
    /// File that belongs to the model, or folder that holds it.
    pub file: Option<&'a str>,
}

impl<'a> Pick<'a> {
    /// True where safetensors may be meant.
    pub fn allows_safetensors(&self) -> bool {
        let small = |file: &str| file.ends_with(".safetensors") || file.ends_with(".json");
        self.quant.is_none() && self.file.is_none_or(small)
    }

    fn holds(&self, choice: &GgufChoice) -> bool {
        let Some(wanted) = self.file else { return true };
        let below = |file: &String| file.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('/'));
        choice.files.iter().any(|file| file == wanted || below(file))
    }
}

/// The choice that is picked, or the preferred one of several. `UD-` may be left out where nothing else has the label,
/// and so may its end: `Q4` is the preferred one of `Q4_K_M`, `Q4_0` and their like.
pub(crate) fn choose<'a>(choices: &'a [GgufChoice], pick: Pick<'_>) -> Option<&'a GgufChoice> {
    let mut held = choices.iter().filter(|choice| pick.holds(choice));
    let Some(quant) = pick.quant else { return held.next() };
    let held: Vec<&GgufChoice> = held.collect();
    let named = |wanted: &str| held.iter().copied().find(|c| c.quant.eq_ignore_ascii_case(wanted));
    let begins = |c: &&GgufChoice| {
        let label = c.quant.strip_prefix("UD-").unwrap_or(&c.quant);
        let head = label.get(..quant.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(quant)) && label[quant.len()..].starts_with('_')
    };
    named(quant).or_else(|| named(&format!("UD-{quant}"))).or_else(|| held.iter().copied().find(begins))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_name(quant: &str) -> Pick<'_> {
        Pick { quant: Some(quant), file: None }
    }

    #[test]
    fn labels_of_file_names() {
        let cases = [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", Some("Q4_1")),
            ("gemma-3-270m-q4_k_m.gguf", Some("Q4_K_M")),
            ("BF16/model-BF16-00001-of-00002.gguf", Some("BF16")),
            ("Qwen3-4B-UD-Q4_K_XL.gguf", Some("UD-Q4_K_XL")),
            ("model_q8_0.gguf", Some("Q8_0")),
            ("gpt-oss-20b-mxfp4.gguf", Some("MXFP4")),
            ("Q8_0-experiment-Q4_0.gguf", Some("Q4_0")),
            ("model-Q4_K_M-v2.gguf", Some("Q4_K_M")),
            ("model-iq4_xs.GGUF", Some("IQ4_XS")),
            ("model-XQ4_0.gguf", None),
            ("model.gguf", None),
            ("config.json", None),
        ];
        for (file, expected) in cases {
            assert_eq!(label(file).as_deref(), expected, "{file}");
        }
    }

    #[test]
    fn the_preferred_file_comes_first() {
        let files =
            ["m-F16.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q2_K.gguf", "mmproj-m-F16.gguf", "README.md"];
        let all = choices(files);
        assert_eq!(all.len(), 4);
        assert_eq!(choose(&all, Pick::default()).unwrap().files, ["m-Q4_K_M.gguf"]);
        assert_eq!(choose(&all, by_name("q8_0")).unwrap().files, ["m-Q8_0.gguf"]);
        assert_eq!(choose(&all, by_name("Q6_K")), None);
        let dynamic = choices(["m-UD-Q4_K_XL.gguf"]);
        assert_eq!(choose(&dynamic, by_name("Q4_K_XL")).unwrap().quant, "UD-Q4_K_XL");
    }

    #[test]
    fn labels_may_be_begun_and_files_named() {
        let all = choices(["m-Q4_K_M.gguf", "m-Q4_0.gguf", "Q8_0/m-Q8_0.gguf", "m-IQ4_XS.gguf"]);
        let quant = |pick| choose(&all, pick).map(|c| c.quant.as_str());
        assert_eq!(quant(by_name("Q4")), Some("Q4_K_M"));
        assert_eq!(quant(by_name("q4_k")), Some("Q4_K_M"));
        assert_eq!(quant(by_name("iq4")), Some("IQ4_XS"));
        assert_eq!(quant(by_name("Q")), None);
        let file = |file| Pick { quant: None, file: Some(file) };
        assert_eq!(quant(file("m-Q4_0.gguf")), Some("Q4_0"));
        assert_eq!(quant(file("Q8_0")), Some("Q8_0"));
        assert_eq!(quant(file("Q8")), None);
        assert_eq!(quant(file("m.gguf")), None);
    }

    #[test]
    fn projectors_are_no_models_however_they_are_named() {
        for name in [
            "mmproj.gguf",
            "mmproj-model-f16.gguf",
            "X.mmproj-f16.gguf",
            "x-mmproj-Q8_0.gguf",
            "MM_Proj.gguf",
            "a/x.imatrix.gguf",
        ] {
            assert_eq!(choices([name]), [], "{name}");
        }
        assert_eq!(choices(["improved-Q4_0.gguf"]).len(), 1);
    }

    #[test]
    fn shards_are_one_model_and_incomplete_sets_none() {
        let all = choices(["Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf"]);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].files, ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]);
        assert_eq!(choices(["m-Q8_0-00002-of-00002.gguf"]), []);
    }
}
