//! What a model computes, before its tensors are looked up.

use unicorn_core::{Activation, NormSpec, RopeSpec};

/// A whole model.
#[derive(Debug)]
pub(super) struct Plan {
    pub width: usize,
    pub context_max: usize,
    /// Every norm of the model is of this kind.
    pub norm: NormSpec,
    pub embedding_scale: f32,
    pub final_soft_cap: Option<f32>,
    /// Whether the head uses the embedding's table; `None` decides by the tensors present.
    pub tied: Option<bool>,
    pub layers: Vec<LayerPlan>,
}

/// Whether a product has a bias.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bias {
    /// The tensor must be there.
    Required,
    /// Where the file has the tensor: GGUF has no key for it.
    IfPresent,
    /// Never: a tensor of that name is an error.
    Never,
}

/// One layer: a mixer and an ffn.
#[derive(Clone, Debug)]
pub(super) struct LayerPlan {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on the attention scores.
    pub scale: f32,
    pub rope: RopeSpec,
    pub window: Option<usize>,
    pub soft_cap: Option<f32>,
    /// Per-head norms of queries and keys.
    pub qk_norm: bool,
    /// Biases of q, k and v.
    pub qkv_bias: Bias,
    /// Bias of the projection after attention.
    pub o_bias: Bias,
    /// A norm after each block as well as before it.
    pub post_norm: bool,
    /// The mixer is a short convolution over so many positions, and no attention.
    pub short_conv: Option<usize>,
    pub hidden: usize,
    pub activation: Activation,
}
