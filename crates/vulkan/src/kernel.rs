//! The name of a compiled kernel: what selection returns, recordings hold and pipelines are kept by.

/// One shader with its specialization. Equal values share a pipeline.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Kernel {
    /// Name of the SPIR-V module in [`crate::shaders`].
    pub(crate) shader: String,
    /// Values of the specialization constants 0, 1, 2, ...
    pub(crate) constants: Vec<u32>,
    /// Subgroup size to ask for; 0 takes the driver's.
    pub(crate) subgroup: u32,
}
