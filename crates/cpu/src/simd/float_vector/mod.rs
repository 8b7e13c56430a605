//! Vectors of `f32` behind one trait, so that every kernel is written once and compiled per instruction set.
//!
//! A kernel is a struct of arguments with a generic [`SimdFunction::run`]; [`dispatch`] compiles it inside a function that
//! has the level's target features. All trait methods are `inline(always)`: they must end up in that function.

mod dispatch;
mod ops;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use dispatch::{SimdFunction, dispatch};
pub(crate) use ops::FloatVector;
