//! Tensor element types and their block layouts, as the GGUF format defines them.

/// Element type of a stored tensor. Quantized types group `block_len` consecutive elements of a row in one block
/// of `block_bytes` bytes; the layouts are those of the GGUF specification (ggml `ggml-common.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

use TensorType::*;

/// (type, name, GGUF id, elements per block, bytes per block)
const TABLE: [(TensorType, &str, u32, usize, usize); 16] = [
    (F32, "F32", 0, 1, 4),
    (F16, "F16", 1, 1, 2),
    (BF16, "BF16", 30, 1, 2),
    (Q4_0, "Q4_0", 2, 32, 18),
    (Q4_1, "Q4_1", 3, 32, 20),
    (Q5_0, "Q5_0", 6, 32, 22),
    (Q5_1, "Q5_1", 7, 32, 24),
    (Q8_0, "Q8_0", 8, 32, 34),
    (Q2_K, "Q2_K", 10, 256, 84),
    (Q3_K, "Q3_K", 11, 256, 110),
    (Q4_K, "Q4_K", 12, 256, 144),
    (Q5_K, "Q5_K", 13, 256, 176),
    (Q6_K, "Q6_K", 14, 256, 210),
    (IQ4_NL, "IQ4_NL", 20, 32, 18),
    (IQ4_XS, "IQ4_XS", 23, 256, 136),
    (MXFP4, "MXFP4", 39, 32, 17),
];

impl TensorType {
    /// Every supported type, in declaration order.
    pub const ALL: [TensorType; 16] =
        [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4];

    fn entry(self) -> &'static (TensorType, &'static str, u32, usize, usize) {
        &TABLE[self as usize]
    }

    /// The name used in GGUF tools, for example `Q4_K`.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// The type id stored in GGUF tensor infos.
    pub fn gguf_id(self) -> u32 {
        self.entry().2
    }

    /// Elements per block; 1 for the float types.
    pub fn block_len(self) -> usize {
        self.entry().3
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.entry().4
    }

    /// The type with this GGUF id, if it is supported.
    pub fn from_gguf_id(id: u32) -> Option<TensorType> {
        TABLE.iter().find(|e| e.2 == id).map(|e| e.0)
    }

    /// Parses a type name, in any case.
    pub fn parse(name: &str) -> Option<TensorType> {
        TABLE.iter().find(|e| e.1.eq_ignore_ascii_case(name)).map(|e| e.0)
    }

    /// True for types whose elements are integers with shared scales.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of one row of `cols` elements; `None` when `cols` is no multiple of the block length or overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order() {
        for (i, ty) in TensorType::ALL.iter().enumerate() {
            assert_eq!(*ty as usize, i);
            assert_eq!(ty.entry().0, *ty);
            assert_eq!(TensorType::from_gguf_id(ty.gguf_id()), Some(*ty));
            assert_eq!(TensorType::parse(&ty.name().to_lowercase()), Some(*ty));
        }
    }

    #[test]
    fn row_bytes_rejects_partial_blocks() {
        assert_eq!(Q4_K.row_bytes(512), Some(288));
        assert_eq!(Q4_K.row_bytes(576), None);
        assert_eq!(F32.row_bytes(usize::MAX), None);
    }
}
