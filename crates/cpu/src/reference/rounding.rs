//! Activations as kernels for quantized weights see them: signed bytes with a scale per block.

/// Rounds the inputs of products with quantized weights to 8 bits, as integer kernels do: in blocks of `block` consecutive elements of a
/// row, the largest magnitude at 127, to nearest, ties to even.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ActivationRounding {
    /// Elements that share a scale; the last block of a row may be shorter.
    pub block: usize,
}

impl ActivationRounding {
    /// What a row becomes. The steps are those of the kernels, in f32: a tie must fall the same way.
    pub(super) fn round(self, row: &mut [f64]) {
        for block in row.chunks_mut(self.block.max(1)) {
            let magnitude = |v: &f64| (*v as f32).abs();
            let nan = block.iter().any(|v| v.is_nan());
            let largest = if nan { f32::NAN } else { block.iter().map(magnitude).fold(0.0, f32::max) };
            let (scale, inverse) =
                if largest < 1e-30 { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
            for v in block {
                *v = f64::from((*v as f32 * inverse).round_ties_even()) * f64::from(scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_rounded_each_by_its_largest() {
        let mut row = [1.27, 0.014, -0.016, 0.0, 254.0, 3.0, -1.0, 0.9];
        ActivationRounding { block: 4 }.round(&mut row);
        let want = [1.27, 0.01, -0.02, 0.0, 254.0, 4.0, 0.0, 0.0];
        for (got, want) in row.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{row:?}");
        }
        let mut zeros = [0.0, 1e-35, -0.0];
        ActivationRounding { block: 32 }.round(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
        let mut broken = [1.0, f64::NAN, 2.0, 3.0];
        ActivationRounding { block: 2 }.round(&mut broken);
        assert!(broken[..2].iter().all(|v| v.is_nan()) && broken[2..].iter().all(|v| v.is_finite()));
    }
}
