//! The kernels, compiled for each level: one body serves all, inside a function with the level's target features.

use unicorn_core::TensorType;

use super::job::PanelFn;
use super::scalar;
use super::select::LinearKernel;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512, encoding::*, float, int, job::PanelJob};

/// The compiled functions of a kernel.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    /// For activations of one row.
    pub decode: PanelFn,
    /// For any activations.
    pub tiles: PanelFn,
}

/// The compiled functions of a kernel. Levels that this build lacks have none, so the portable ones stand in; [`select`](super::select::select) never asks
/// for them, since such a level is not available.
pub(super) fn functions(kernel: LinearKernel) -> Functions {
    let portable = |f: PanelFn| Functions { decode: f, tiles: f };
    match kernel {
        LinearKernel::ScalarInteger => portable(scalar::integers),
        LinearKernel::ScalarFloat => portable(scalar::floats),
        #[cfg(target_arch = "x86_64")]
        LinearKernel::Fma256(TensorType::F16) => avx2_float::<float::Half>(),
        #[cfg(target_arch = "x86_64")]
        LinearKernel::Fma256(TensorType::BF16) => avx2_float::<float::Brain>(),
        #[cfg(target_arch = "x86_64")]
        LinearKernel::Fma256(_) => avx2_float::<float::Single>(),
        #[cfg(target_arch = "x86_64")]
        LinearKernel::Fma512(TensorType::F16) => avx512_float::<float::Half>(),
        #[cfg(target_arch = "x86_64")]
        LinearKernel::Fma512(TensorType::BF16) => avx512_float::<float::Brain>(),
        #[cfg(target_arch = "x86_64")]
        LinearKernel::Fma512(_) => avx512_float::<float::Single>(),
        #[cfg(target_arch = "x86_64")]
        LinearKernel::ByteSums(ty) | LinearKernel::WordSums(ty) => integers!(avx2_int, ty),
        #[cfg(target_arch = "x86_64")]
        LinearKernel::Vnni(ty) => integers!(avx512_int, ty),
        #[cfg(not(target_arch = "x86_64"))]
        other if other.forms() == ActivationForms::FLOATS => portable(scalar::floats),
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable(scalar::integers),
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
            unsafe fn decode<E: Encoding>(job: &PanelJob<'_>) {
                // SAFETY: by the contract of `PanelFn`.
                unsafe { int::decode::<$simd, E>(job) }
            }
            #[target_feature(enable = $features)]
            unsafe fn tiles<E: Encoding>(job: &PanelJob<'_>) {
                // SAFETY: by the contract of `PanelFn`.
                unsafe { int::tiles::<$simd, E>(job) }
            }
            Functions { decode: decode::<E>, tiles: tiles::<E> }
        }

        fn $float<E: float::FloatEncoding>() -> Functions {
            #[target_feature(enable = $features)]
            unsafe fn decode<E: float::FloatEncoding>(job: &PanelJob<'_>) {
                // SAFETY: by the contract of `PanelFn`.
                unsafe { float::decode::<$simd, E>(job) }
            }
            #[target_feature(enable = $features)]
            unsafe fn tiles<E: float::FloatEncoding>(job: &PanelJob<'_>) {
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
