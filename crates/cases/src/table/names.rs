//! Parts of the names of cases.

use unicorn_core::TensorType;

/// A type's name as case names have it.
pub(super) fn lower(ty: TensorType) -> String {
    ty.name().to_lowercase()
}
