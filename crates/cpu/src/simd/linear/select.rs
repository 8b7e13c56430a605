//! Which kernel multiplies which type at which level.

use unicorn_core::{RateKind, TensorType};

use super::activations::{ActivationForms, FLOAT_TILE, INT_TILE};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512, encoding::*, float, int};
use super::{int::PanelFn, scalar};
use crate::simd::level::SimdLevel;

/// The arithmetic that a kernel uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
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
pub fn select(ty: TensorType, level: SimdLevel) -> Kernel {
    match (level, ty.is_quantized()) {
        (SimdLevel::Scalar, true) => Kernel::ScalarInteger,
        (SimdLevel::Scalar, false) => Kernel::ScalarFloat,
        (SimdLevel::Avx2, false) => Kernel::Fma256(ty),
        (SimdLevel::Avx512, false) => Kernel::Fma512(ty),
        (SimdLevel::Avx512, true) => Kernel::Vnni(ty),
        (SimdLevel::Avx2, true) => match ty {
            TensorType::Q8_0 | TensorType::IQ4_NL | TensorType::IQ4_XS => Kernel::WordSums(ty),
            _ => Kernel::ByteSums(ty),
        },
    }
}

/// Name of the kernel for a type at a level, for people.
pub fn kernel_name(ty: TensorType, level: SimdLevel) -> &'static str {
    select(ty, level).name()
}

/// The compiled functions of a kernel.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    /// For activations of one row.
    pub decode: PanelFn,
    /// For any activations.
    pub tiles: PanelFn,
}

impl Kernel {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::ScalarInteger => "scalar int8",
            Kernel::ScalarFloat => "scalar f32",
            Kernel::ByteSums(_) => "avx2 vpmaddubsw",
            Kernel::WordSums(_) => "avx2 vpmaddwd",
            Kernel::Vnni(_) => "avx512 vpdpbusd",
            Kernel::Fma256(_) => "avx2 fma",
            Kernel::Fma512(_) => "avx512 fma",
        }
    }

    /// The forms of activations that it reads.
    pub fn forms(self) -> ActivationForms {
        match self {
            Kernel::ScalarInteger | Kernel::ByteSums(_) | Kernel::Vnni(_) => ActivationForms::BYTES,
            Kernel::WordSums(_) => ActivationForms::WORDS,
            Kernel::ScalarFloat | Kernel::Fma256(_) | Kernel::Fma512(_) => ActivationForms::FLOATS,
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

    /// The compiled functions. Levels that this build lacks have none, so the portable ones stand in; [`select`] never asks
    /// for them, since such a level is not available.
    pub(super) fn functions(self) -> Functions {
        let portable = |f: PanelFn| Functions { decode: f, tiles: f };
        match self {
            Kernel::ScalarInteger => portable(scalar::integers),
            Kernel::ScalarFloat => portable(scalar::floats),
            #[cfg(target_arch = "x86_64")]
            Kernel::Fma256(TensorType::F16) => avx2_float::<float::Half>(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Fma256(TensorType::BF16) => avx2_float::<float::Brain>(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Fma256(_) => avx2_float::<float::Single>(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Fma512(TensorType::F16) => avx512_float::<float::Half>(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Fma512(TensorType::BF16) => avx512_float::<float::Brain>(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Fma512(_) => avx512_float::<float::Single>(),
            #[cfg(target_arch = "x86_64")]
            Kernel::ByteSums(ty) | Kernel::WordSums(ty) => integers!(avx2_int, ty),
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni(ty) => integers!(avx512_int, ty),
            #[cfg(not(target_arch = "x86_64"))]
            other if other.forms() == ActivationForms::FLOATS => portable(scalar::floats),
            #[cfg(not(target_arch = "x86_64"))]
            _ => portable(scalar::integers),
        }
    }
}

/// The function for a type known at run time.
#[cfg(target_arch = "x86_64")]
macro_rules! integers {
    ($functions:ident, $ty:expr) => {
        match $ty {
            TensorType::Q4_0 => $functions::<Q40>(),
            TensorType::Q4_1 => $functions::<Q41>(),
            TensorType::Q5_0 => $functions::<Q50>(),
            TensorType::Q5_1 => $functions::<Q51>(),
            TensorType::Q8_0 => $functions::<Q80>(),
            TensorType::Q2_K => $functions::<Q2K>(),
            TensorType::Q3_K => $functions::<Q3K>(),
            TensorType::Q4_K => $functions::<Q4K>(),
            TensorType::Q5_K => $functions::<Q5K>(),
            TensorType::Q6_K => $functions::<Q6K>(),
            TensorType::IQ4_NL => $functions::<Iq4Nl>(),
            TensorType::IQ4_XS => $functions::<Iq4Xs>(),
            TensorType::MXFP4 => $functions::<Mxfp4>(),
            // Floats have no integer kernel; the portable one multiplies them.
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                Functions { decode: scalar::floats, tiles: scalar::floats }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
use integers;

/// Compiles kernel bodies for one level: the target features are here, and everything below inlines into these functions.
#[cfg(target_arch = "x86_64")]
macro_rules! compile {
    ($simd:ty, $features:literal, $int:ident, $float:ident) => {
        fn $int<E: Encoding>() -> Functions {
            #[target_feature(enable = $features)]
            unsafe fn decode<E: Encoding>(job: &int::PanelJob<'_>) {
                // SAFETY: by the contract of `PanelFn`.
                unsafe { int::decode::<$simd, E>(job) }
            }
            #[target_feature(enable = $features)]
            unsafe fn tiles<E: Encoding>(job: &int::PanelJob<'_>) {
                // SAFETY: by the contract of `PanelFn`.
                unsafe { int::tiles::<$simd, E>(job) }
            }
            Functions { decode: decode::<E>, tiles: tiles::<E> }
        }

        fn $float<E: float::FloatEncoding>() -> Functions {
            #[target_feature(enable = $features)]
            unsafe fn decode<E: float::FloatEncoding>(job: &int::PanelJob<'_>) {
                // SAFETY: by the contract of `PanelFn`.
                unsafe { float::decode::<$simd, E>(job) }
            }
            #[target_feature(enable = $features)]
            unsafe fn tiles<E: float::FloatEncoding>(job: &int::PanelJob<'_>) {
                // SAFETY: by the contract of `PanelFn`.
                unsafe { float::tiles::<$simd, E>(job) }
            }
            Functions { decode: decode::<E>, tiles: tiles::<E> }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compile!(Avx2, "avx2,fma,f16c", avx2_int, avx2_float);
#[cfg(target_arch = "x86_64")]
compile!(Avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", avx512_int, avx512_float);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_follows_type_and_level() {
        assert_eq!(select(TensorType::Q4_0, SimdLevel::Avx2), Kernel::ByteSums(TensorType::Q4_0));
        assert_eq!(select(TensorType::Q8_0, SimdLevel::Avx2), Kernel::WordSums(TensorType::Q8_0));
        assert_eq!(kernel_name(TensorType::Q8_0, SimdLevel::Avx512), "avx512 vpdpbusd");
        assert_eq!(kernel_name(TensorType::F16, SimdLevel::Avx2), "avx2 fma");
        for ty in TensorType::ALL {
            for level in SimdLevel::ALL {
                let expected = if ty.is_quantized() { RateKind::Integer } else { RateKind::Float };
                assert_eq!(select(ty, level).rate(), expected);
            }
        }
    }
}
