//! What a model needs of a device's memory, in words.

use unicorn_engine::Need;

use crate::units;

/// `weights 1.2 GB, KV cache 300 MB, scratch 20 MB`.
pub fn in_words(need: &Need) -> String {
    let part = |name: &str, bytes: u64| format!("{name} {}", units::bytes(bytes));
    let mut parts = vec![part("weights", need.weights)];
    if need.kv > 0 {
        parts.push(part("KV cache", need.kv));
    }
    parts.push(part("scratch", need.scratch));
    if need.crossing > 0 {
        parts.push(part("crossing buffers", need.crossing));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use unicorn_cases::shapes;
    use unicorn_core::{KvType, TensorType};
    use unicorn_engine::EngineOptions;

    use super::*;

    #[test]
    fn needs_are_those_of_the_shape() {
        // 32 layers of 8 heads of 128 for keys and for values: 131072 bytes a position in f16.
        let spec = shapes::model("llama-8b", TensorType::Q4_K).unwrap();
        let options = EngineOptions { context: 8192, ..EngineOptions::default() };
        let need = Need::of(&spec, &options);
        assert_eq!(need.kv, 131_072 * 8192);
        assert_eq!(need.weights, spec.weight_bytes());
        assert!(need.scratch > (512 * 2 * 14_336 + 128_256) * 4 && need.scratch < 200_000_000, "{need:?}");
        let wide = EngineOptions { kv_type: KvType::F32, ..options };
        assert_eq!(Need::of(&spec, &wide).kv, 2 * need.kv);
    }

    #[test]
    fn what_there_is_none_of_is_not_told() {
        let need = Need { weights: 1, kv: 0, scratch: 2, crossing: 0 };
        assert_eq!(in_words(&need), "weights 1 B, scratch 2 B");
        let need = Need { kv: 3, crossing: 4, ..need };
        assert_eq!(in_words(&need), "weights 1 B, KV cache 3 B, scratch 2 B, crossing buffers 4 B");
    }
}
