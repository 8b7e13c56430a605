//! Checkpoints whose weights are quantized in a way of their own, told by `config.json` or by their tensors.

use serde_json::{Map, Value};

use crate::tensors::{StoredType, TensorTable};

/// `quant_method` and the name that people know it by.
const METHODS: [(&str, &str); 21] = [
    ("gptq", "GPTQ"),
    ("awq", "AWQ"),
    ("bitsandbytes", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors"),
    ("fp8", "FP8"),
    ("fbgemm_fp8", "FP8 (FBGEMM)"),
    ("mxfp4", "MXFP4"),
    ("mxfp8", "MXFP8"),
    ("nvfp4", "NVFP4"),
    ("modelopt", "NVIDIA ModelOpt"),
    ("eetq", "EETQ"),
    ("hqq", "HQQ"),
    ("aqlm", "AQLM"),
    ("vptq", "VPTQ"),
    ("quanto", "Quanto"),
    ("torchao", "torchao"),
    ("bitnet", "BitNet"),
    ("spqr", "SpQR"),
    ("higgs", "HIGGS"),
    ("quark", "AMD Quark"),
    ("auto-round", "AutoRound"),
];

/// Endings of tensor names that only one way of quantizing has, the telling ones first.
const TENSOR_ENDINGS: [(&str, &str); 15] = [
    (".g_idx", "GPTQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes"),
    (".weight.absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".W_q", "HQQ"),
    (".codebooks", "AQLM"),
    ("_blocks", "MXFP4"),
    (".weight_scale", "FP8 or INT8"),
    (".weight_scales", "EETQ"),
    (".scales", "MLX"),
];

/// How the weights are quantized; `None` where they are not. `config` is the whole `config.json`, `text` its part for text.
pub(super) fn method(
    config: &Map<String, Value>,
    text: &Map<String, Value>,
    tensors: Option<&TensorTable>,
) -> Option<String> {
    let named = [config, text].into_iter().find_map(named_method);
    named.or_else(|| tensors.and_then(by_tensors))
}

fn named_method(config: &Map<String, Value>) -> Option<String> {
    // MLX writes `quantization`, old compressed-tensors `compression_config`.
    let keys = ["quantization_config", "compression_config", "quantization"];
    let (key, value) = keys.iter().find_map(|key| {
        let value = config.get(*key)?;
        let absent = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        (!absent).then_some((*key, value))
    })?;
    let flag = |name: &str| value[name].as_bool() == Some(true);
    Some(match value["quant_method"].as_str() {
        Some(method) => {
            let known = METHODS.iter().find(|m| m.0.eq_ignore_ascii_case(method));
            known.map_or(method, |m| m.1).to_owned()
        }
        None if flag("load_in_4bit") || flag("load_in_8bit") => "bitsandbytes".to_owned(),
        None if key == "compression_config" => "compressed-tensors".to_owned(),
        None if key == "quantization" && value["group_size"].is_number() => "MLX".to_owned(),
        None => format!("a method that {key} does not name"),
    })
}

fn by_tensors(tensors: &TensorTable) -> Option<String> {
    let ending = TENSOR_ENDINGS.iter().find(|e| tensors.iter().any(|t| t.name.ends_with(e.0)));
    let of_bytes = || {
        // A matrix of a type that is no float, where a layer's weights should be.
        let weight = tensors.iter().find(|t| t.name.ends_with("_proj.weight") && is_packed(&t.ty))?;
        Some(match weight.ty.name() {
            name if name.starts_with("F8") => "FP8".to_owned(),
            name => format!("a method that stores {name} weights"),
        })
    };
    ending.map(|e| e.1.to_owned()).or_else(of_bytes)
}

fn is_packed(ty: &StoredType) -> bool {
    matches!(ty, StoredType::Other(name) if name.starts_with("F8") || name.starts_with('U') || name.starts_with('I'))
}
