//! The committed SPIR-V: what `cargo xtask shaders` makes of `shaders/variants.txt`.

/// The words of a module, if there is one of this name.
pub fn words(name: &str) -> Option<Vec<u32>> {
    let (_, bytes) = TABLE.iter().find(|(n, _)| *n == name)?;
    Some(bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
}

/// (module, SPIR-V bytes)
static TABLE: &[(&str, &[u8])] = include!("../spirv/table.rs");
