//! Ids of the GGUF specification: metadata value types and tensor element types.

use unicorn_core::TensorType;

use crate::tensors::StoredType;

/// Type of a metadata value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub(crate) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

use ValueType::*;

/// By id: (type, name, bytes; 0 where the size varies).
const VALUES: [(ValueType, &str, u64); 13] = [
    (U8, "u8", 1),
    (I8, "i8", 1),
    (U16, "u16", 2),
    (I16, "i16", 2),
    (U32, "u32", 4),
    (I32, "i32", 4),
    (F32, "f32", 4),
    (Bool, "bool", 1),
    (String, "string", 0),
    (Array, "array", 0),
    (U64, "u64", 8),
    (I64, "i64", 8),
    (F64, "f64", 8),
];

impl ValueType {
    /// The type with this id in the file.
    pub fn from_id(id: u32) -> Option<ValueType> {
        VALUES.get(id as usize).map(|v| v.0)
    }

    /// Lower-case name, for example `u32`.
    pub fn name(self) -> &'static str {
        VALUES[self as usize].1
    }

    /// Bytes of one value; `None` for strings and arrays.
    pub fn bytes(self) -> Option<u64> {
        Some(VALUES[self as usize].2).filter(|b| *b > 0)
    }
}

/// Types of ggml that may lie in a file without the engine computing with them:
/// (id, name, elements per block, bytes per block). Known so that such a file can be inspected.
const OTHER: [(u32, &str, u64, u64); 19] = [
    (9, "Q8_1", 32, 36),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

/// (type, elements per block, bytes per block) of a tensor type id.
pub(super) fn tensor_type(id: u32) -> Option<(StoredType, u64, u64)> {
    if let Some(ty) = TensorType::from_gguf_id(id) {
        return Some((StoredType::Supported(ty), ty.block_len() as u64, ty.block_bytes() as u64));
    }
    let (_, name, len, bytes) = OTHER.iter().find(|t| t.0 == id)?;
    Some((StoredType::Other((*name).to_owned()), *len, *bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_table_is_in_declaration_order() {
        for (id, (ty, ..)) in VALUES.iter().enumerate() {
            assert_eq!(*ty as usize, id);
        }
    }

    #[test]
    fn other_types_do_not_shadow_supported_ones() {
        for (id, ..) in OTHER {
            assert_eq!(TensorType::from_gguf_id(id), None, "{id}");
        }
    }
}
