//! The block that is timed.

use unicorn_cases::synthetic::SyntheticLayout;
use unicorn_core::{Activation, Block, FfnSpec, FfnWeights, NormSpec, TensorType};

use crate::exit::usage;

/// Most elements of one matrix: 64 GB in F32.
const ELEMENTS_MAX: usize = 1 << 34;

/// One block with weights of its own, or a usage error where its shape does not fit the type or any memory.
pub fn block(
    layout: &mut SyntheticLayout,
    width: usize,
    hidden: usize,
    ty: TensorType,
) -> anyhow::Result<Block> {
    for (name, value) in [("--width", width), ("--hidden", hidden)] {
        if ty.row_bytes(value).is_none() {
            return Err(usage(format!("{name} {value}: {ty} needs a multiple of {}", ty.block_len())));
        }
    }
    if width.checked_mul(hidden).is_none_or(|n| n > ELEMENTS_MAX) {
        return Err(usage(format!("a matrix of {width} x {hidden} is too large")));
    }
    let weights = FfnWeights {
        norm: layout.norm("norm", width),
        gate: layout.matrix("gate", ty, hidden, width),
        up: layout.matrix("up", ty, hidden, width),
        down: layout.matrix("down", ty, width, hidden),
        post_norm: None,
    };
    let spec =
        FfnSpec { width, hidden, activation: Activation::Silu, norm: NormSpec::rms(1e-5), post_norm: None };
    Ok(Block::Ffn { spec, weights: Box::new(weights) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_usage_errors() {
        let block = |width, hidden, ty| block(&mut SyntheticLayout::default(), width, hidden, ty);
        assert!(block(256, 300, TensorType::Q4_K).unwrap_err().to_string().contains("--hidden 300"));
        assert!(block(1 << 20, 1 << 20, TensorType::F16).is_err());
        assert!(block(usize::MAX, 1, TensorType::F32).is_err());
    }
}
