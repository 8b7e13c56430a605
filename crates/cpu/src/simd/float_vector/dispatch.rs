//! Functions compiled per instruction set.

use super::ops::FloatVector;
use super::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::simd::level::SimdLevel;

/// A function that is compiled once per instruction set.
pub(crate) trait SimdFunction {
    /// What it returns.
    type Output;
    /// The body. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU must have the instruction set of `S`.
    unsafe fn run<S: FloatVector>(self) -> Self::Output;
}

/// Runs a kernel at a level that [`SimdLevel`]'s constructor has checked against the CPU.
#[inline]
pub(crate) fn dispatch<K: SimdFunction>(level: SimdLevel, kernel: K) -> K::Output {
    match level {
        // SAFETY: plain Rust.
        SimdLevel::Scalar => unsafe { kernel.run::<Scalar>() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only opened where the CPU has its features.
        SimdLevel::Avx2 => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        SimdLevel::Avx512 => unsafe { avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        // SAFETY: plain Rust.
        _ => unsafe { kernel.run::<Scalar>() },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<K: SimdFunction>(kernel: K) -> K::Output {
    // SAFETY: the caller has these features.
    unsafe { kernel.run::<x86::Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn avx512<K: SimdFunction>(kernel: K) -> K::Output {
    // SAFETY: the caller has these features.
    unsafe { kernel.run::<x86::Avx512>() }
}
