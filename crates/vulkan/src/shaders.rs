//! The committed SPIR-V: what `cargo xtask shaders` makes of `shaders/variants.txt`.

/// The words of a module, if there is one of this name.
pub(crate) fn words(name: &str) -> Option<Vec<u32>> {
    let (_, bytes) = TABLE.iter().find(|(n, _)| *n == name)?;
    Some(bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
}

/// Whether there is a module of this name.
pub(crate) fn exists(name: &str) -> bool {
    TABLE.iter().any(|(n, _)| *n == name)
}

/// A number that changes when any module does (FNV-1a over names and code): what was found out about one build's kernels says nothing
/// about another's.
pub fn fingerprint() -> u64 {
    let bytes = TABLE.iter().flat_map(|(name, code)| name.bytes().chain(code.iter().copied()));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ b as u64).wrapping_mul(0x0100_0000_01b3))
}

/// (module, SPIR-V bytes)
static TABLE: &[(&str, &[u8])] = include!("../spirv/table.rs");
