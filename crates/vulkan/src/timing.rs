//! Times per kernel, gathered from timestamps.

use std::collections::BTreeMap;

use unicorn_core::{KernelTime, RateKind};

use crate::recording::Recording;

/// The rate that bounds a shader, by the family that its name tells.
fn rate(shader: &str) -> RateKind {
    let float = shader.ends_with("_f32") || shader.ends_with("_f16") || shader.ends_with("_bf16");
    if shader.contains("cooperative") || shader.starts_with("flash_matrix2") {
        RateKind::Matrix
    } else if shader.starts_with("matmul_dot") || (shader.starts_with("linear") && !float) {
        RateKind::Integer
    } else {
        RateKind::Float
    }
}

/// Sums per (op, shader).
#[derive(Default)]
pub(crate) struct Timings(BTreeMap<(&'static str, String), KernelTime>);

impl Timings {
    pub(crate) fn add(&mut self, recording: &Recording, seconds: &[f64]) {
        for (i, d) in recording.dispatches.iter().enumerate() {
            // Without timestamps the kernels that ran are listed with no time.
            let seconds = seconds.get(i).copied().unwrap_or(0.0);
            let kernel = format!("{} {}", d.op, d.kernel.shader);
            let entry = self.0.entry((d.op, d.kernel.shader.clone())).or_insert_with(|| KernelTime {
                kernel,
                calls: 0,
                seconds: 0.0,
                bytes: 0,
                flops: 0,
                rate: rate(&d.kernel.shader),
            });
            entry.calls += 1;
            entry.seconds += seconds;
            entry.bytes += d.bytes;
            entry.flops += d.flops;
        }
    }

    pub(crate) fn list(&self) -> Vec<KernelTime> {
        self.0.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_their_roofs() {
        assert_eq!(rate("linear_glu_q4_k"), RateKind::Integer);
        assert_eq!(rate("linear_f16"), RateKind::Float);
        assert_eq!(rate("attention_decode_q8_0"), RateKind::Float);
        assert_eq!(rate("matmul_cooperative_q4_k"), RateKind::Matrix);
        assert_eq!(rate("flash_matrix2_q8_0"), RateKind::Matrix);
        assert_eq!(rate("flash_cooperative_f16"), RateKind::Matrix);
        assert_eq!(rate("matmul_dot_glu_q6_k"), RateKind::Integer);
        assert_eq!(rate("matmul_plain_q4_k"), RateKind::Float);
    }
}
