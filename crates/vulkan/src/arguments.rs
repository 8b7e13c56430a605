//! The arguments of one dispatch, written field by field in the order that the shader declares them (std140, which is the same as a plain struct's
//! for addresses and single words).

/// Builds a record of arguments. Addresses come first in every kernel, so no padding arises.
#[derive(Default)]
pub(crate) struct Arguments(Vec<u8>);

impl Arguments {
    pub(crate) fn new() -> Arguments {
        Arguments::default()
    }

    pub(crate) fn address(mut self, a: u64) -> Arguments {
        self.0.extend(a.to_le_bytes());
        self
    }

    pub(crate) fn addresses<const N: usize>(mut self, all: [u64; N]) -> Arguments {
        for a in all {
            self.0.extend(a.to_le_bytes());
        }
        self
    }

    pub(crate) fn u32(mut self, v: usize) -> Arguments {
        self.0.extend((v as u32).to_le_bytes());
        self
    }

    pub(crate) fn f32(mut self, v: f32) -> Arguments {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}
