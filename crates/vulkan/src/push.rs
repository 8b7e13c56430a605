//! Push constant blocks, written field by field in the order that the shader declares them (scalar layout).

/// Builds push constants. Addresses come first in every kernel, so no padding arises.
#[derive(Default)]
pub(crate) struct Push(Vec<u8>);

impl Push {
    pub(crate) fn new() -> Push {
        Push::default()
    }

    pub(crate) fn address(mut self, a: u64) -> Push {
        self.0.extend(a.to_le_bytes());
        self
    }

    pub(crate) fn addresses<const N: usize>(mut self, all: [u64; N]) -> Push {
        for a in all {
            self.0.extend(a.to_le_bytes());
        }
        self
    }

    pub(crate) fn u32(mut self, v: usize) -> Push {
        self.0.extend((v as u32).to_le_bytes());
        self
    }

    pub(crate) fn f32(mut self, v: f32) -> Push {
        self.0.extend(v.to_le_bytes());
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}
