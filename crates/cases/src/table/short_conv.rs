//! Short convolutions.

use unicorn_core::{Block, KvType, NormSpec, ShortConvSpec, ShortConvWeights, Span, TensorType};

use super::names::lower;
use crate::synthetic::{Fill, SyntheticLayout};
use crate::{Case, Tolerance};
use TensorType::*;

/// A short convolution whose matrices have this type.
pub(crate) fn block(ty: TensorType, width: usize, kernel: usize) -> Block {
    let mut layout = SyntheticLayout::default();
    let weights = ShortConvWeights {
        norm: layout.norm("shortconv_norm", width),
        input: layout.matrix("shortconv_in", ty, 3 * width, width),
        // Taps of about the same size, as files have them: f32.
        conv: layout.tensor("shortconv_conv", Fill::Norm, width, kernel),
        output: layout.matrix("shortconv_out", ty, width, width),
    };
    let spec = ShortConvSpec { width, kernel, norm: NormSpec::rms(1e-6) };
    Block::ShortConv { spec, weights: Box::new(weights) }
}

pub(super) fn short_conv() -> Vec<Case> {
    let mut cases = Vec::new();
    for ty in TensorType::ALL {
        let width = ty.block_len().max(64);
        cases.push(case(ty, width, 3, "decode", vec![Span::new(5, 1)]));
        cases.push(case(ty, width, 3, "prompt", vec![Span::new(0, 33)]));
    }
    for ty in [F32, Q8_0, F16] {
        // Rows of several sequences: some begin, some have a past of fewer positions than the kernel has, some decode.
        let ragged =
            vec![Span::new(0, 1), Span::new(1, 2), Span::new(40, 1), Span::new(0, 17), Span::new(3, 5)];
        cases.extend([
            case(ty, 192, 3, "ragged", ragged.clone()),
            case(ty, 192, 2, "ragged", ragged.clone()),
            case(ty, 96, 4, "ragged", ragged.clone()),
            case(ty, 96, 8, "ragged", ragged),
            case(ty, 576, 3, "decodes", (0..9).map(|i| Span::new(i, 1)).collect()),
            case(ty, 224, 3, "many", vec![Span::new(0, 150), Span::new(70, 67)]),
        ]);
    }
    cases
}

fn case(ty: TensorType, width: usize, kernel: usize, what: &str, batch: Vec<Span>) -> Case {
    Case {
        name: format!("short_conv/{}/{width}x{kernel}/{what}", lower(ty)),
        block: block(ty, width, kernel),
        batch,
        kv: KvType::F32,
        tolerance: Tolerance::short_conv(ty),
    }
}
