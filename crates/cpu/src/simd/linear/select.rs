//! Which kernel multiplies which type at which level.

use unicorn_core::{RateKind, TensorType};

use super::activations::{ActivationForms, FLOAT_TILE, INT_TILE};
use crate::simd::level::SimdLevel;

/// The arithmetic that a kernel uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinearKernel {
    /// Portable integer arithmetic on single rows.
    ScalarInteger,
    /// Portable float arithmetic on single rows.
    ScalarFloat,
    /// u8 x i8 products summed in 16-bit lanes (`VPMADDUBSW`, `VPADDW`).
    ByteSums(TensorType),
    /// i16 products summed in 32-bit lanes (`VPMADDWD`), for codes that fill a byte.
    WordSums(TensorType),
    /// u8 x i8 products summed in 32-bit lanes (`VPDPBUSD`).
    Vnni(TensorType),
    /// f32 fused multiply-adds in 256-bit registers.
    Fma256(TensorType),
    /// f32 fused multiply-adds in 512-bit registers.
    Fma512(TensorType),
}

/// The kernel for a type at a level.
pub(crate) fn select(ty: TensorType, level: SimdLevel) -> LinearKernel {
    match (level, ty.is_quantized()) {
        (SimdLevel::Scalar, true) => LinearKernel::ScalarInteger,
        (SimdLevel::Scalar, false) => LinearKernel::ScalarFloat,
        (SimdLevel::Avx2, false) => LinearKernel::Fma256(ty),
        (SimdLevel::Avx512, false) => LinearKernel::Fma512(ty),
        (SimdLevel::Avx512, true) => LinearKernel::Vnni(ty),
        (SimdLevel::Avx2, true) => match ty {
            TensorType::Q8_0 | TensorType::IQ4_NL | TensorType::IQ4_XS => LinearKernel::WordSums(ty),
            _ => LinearKernel::ByteSums(ty),
        },
    }
}

impl LinearKernel {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            LinearKernel::ScalarInteger => "scalar int8",
            LinearKernel::ScalarFloat => "scalar f32",
            LinearKernel::ByteSums(_) => "avx2 vpmaddubsw",
            LinearKernel::WordSums(_) => "avx2 vpmaddwd",
            LinearKernel::Vnni(_) => "avx512 vpdpbusd",
            LinearKernel::Fma256(_) => "avx2 fma",
            LinearKernel::Fma512(_) => "avx512 fma",
        }
    }

    /// The forms of activations that it reads.
    pub(crate) fn forms(self) -> ActivationForms {
        match self {
            LinearKernel::ScalarInteger | LinearKernel::ByteSums(_) | LinearKernel::Vnni(_) => {
                ActivationForms::BYTES
            }
            LinearKernel::WordSums(_) => ActivationForms::WORDS,
            LinearKernel::ScalarFloat | LinearKernel::Fma256(_) | LinearKernel::Fma512(_) => {
                ActivationForms::FLOATS
            }
        }
    }

    /// The arithmetic rate that bounds it.
    pub fn rate(self) -> RateKind {
        if self.forms() == ActivationForms::FLOATS { RateKind::Float } else { RateKind::Integer }
    }

    /// Rows of activations per tile.
    pub(super) fn tile(self) -> usize {
        if self.forms() == ActivationForms::FLOATS { FLOAT_TILE } else { INT_TILE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_follows_type_and_level() {
        assert_eq!(select(TensorType::Q4_0, SimdLevel::Avx2), LinearKernel::ByteSums(TensorType::Q4_0));
        assert_eq!(select(TensorType::Q8_0, SimdLevel::Avx2), LinearKernel::WordSums(TensorType::Q8_0));
        assert_eq!(select(TensorType::Q8_0, SimdLevel::Avx512).name(), "avx512 vpdpbusd");
        assert_eq!(select(TensorType::F16, SimdLevel::Avx2).name(), "avx2 fma");
        for ty in TensorType::ALL {
            for level in SimdLevel::ALL {
                let expected = if ty.is_quantized() { RateKind::Integer } else { RateKind::Float };
                assert_eq!(select(ty, level).rate(), expected);
            }
        }
    }
}
