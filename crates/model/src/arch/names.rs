//! Tensor names of both formats, by role.

use crate::tensors::TensorTable;

/// What a tensor of a layer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    AttentionNorm,
    Q,
    K,
    V,
    O,
    QNorm,
    KNorm,
    AttentionPostNorm,
    FfnNorm,
    Gate,
    Up,
    Down,
    FfnPostNorm,
}

/// (role, GGUF, Hugging Face). Weights end in `.weight`, biases in `.bias`.
const LAYER: [(Role, &str, &str); 13] = [
    (Role::AttentionNorm, "attn_norm", "input_layernorm"),
    (Role::Q, "attn_q", "self_attn.q_proj"),
    (Role::K, "attn_k", "self_attn.k_proj"),
    (Role::V, "attn_v", "self_attn.v_proj"),
    (Role::O, "attn_output", "self_attn.o_proj"),
    (Role::QNorm, "attn_q_norm", "self_attn.q_norm"),
    (Role::KNorm, "attn_k_norm", "self_attn.k_norm"),
    (Role::AttentionPostNorm, "post_attention_norm", "post_attention_layernorm"),
    (Role::FfnNorm, "ffn_norm", "pre_feedforward_layernorm"),
    (Role::Gate, "ffn_gate", "mlp.gate_proj"),
    (Role::Up, "ffn_up", "mlp.up_proj"),
    (Role::Down, "ffn_down", "mlp.down_proj"),
    (Role::FfnPostNorm, "post_ffw_norm", "post_feedforward_layernorm"),
];

/// Prefixes under which a Hugging Face checkpoint may hold its language model, and the head's name beside it.
const PREFIXES: [(&str, &str); 4] = [
    ("model.", "lm_head"),
    ("model.language_model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("", "lm_head"),
];

/// How a file names its tensors.
#[derive(Clone, Copy)]
pub(super) enum Naming {
    Gguf,
    HuggingFace { prefix: &'static str, head: &'static str },
}

impl Naming {
    /// The names that most Hugging Face checkpoints use.
    pub fn usual() -> Naming {
        Naming::HuggingFace { prefix: PREFIXES[0].0, head: PREFIXES[0].1 }
    }

    /// Finds the prefix that this checkpoint uses; the first one when none fits, so that messages name a usual tensor.
    pub fn hugging_face(tensors: &TensorTable) -> Naming {
        let fits = |p: &&(&str, &str)| tensors.get(&format!("{}embed_tokens.weight", p.0)).is_some();
        let (prefix, head) = PREFIXES.iter().find(fits).copied().unwrap_or(PREFIXES[0]);
        Naming::HuggingFace { prefix, head }
    }

    pub fn embedding(self) -> String {
        match self {
            Naming::Gguf => "token_embd.weight".to_owned(),
            Naming::HuggingFace { prefix, .. } => format!("{prefix}embed_tokens.weight"),
        }
    }

    pub fn final_norm(self) -> String {
        match self {
            Naming::Gguf => "output_norm.weight".to_owned(),
            Naming::HuggingFace { prefix, .. } => format!("{prefix}norm.weight"),
        }
    }

    pub fn head(self) -> String {
        match self {
            Naming::Gguf => "output.weight".to_owned(),
            Naming::HuggingFace { head, .. } => format!("{head}.weight"),
        }
    }

    /// What all tensor names of a layer begin with.
    pub fn layer_prefix(self, layer: usize) -> String {
        match self {
            Naming::Gguf => format!("blk.{layer}."),
            Naming::HuggingFace { prefix, .. } => format!("{prefix}layers.{layer}."),
        }
    }

    /// A layer's tensor without `.weight` or `.bias`. `post_norm` says whether the layer has norms after its blocks.
    pub fn layer(self, layer: usize, role: Role, post_norm: bool) -> String {
        let (_, gguf, hugging_face) = LAYER[role as usize];
        let suffix = match self {
            Naming::Gguf => gguf,
            // Without post norms, the norm before the ffn goes by the name of the one after attention.
            Naming::HuggingFace { .. } if role == Role::FfnNorm && !post_norm => "post_attention_layernorm",
            Naming::HuggingFace { .. } => hugging_face,
        };
        self.layer_prefix(layer) + suffix
    }
}

/// Buffers that old checkpoints carry and that nothing needs.
pub(super) fn is_ignorable(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.ends_with(".attn_rot_embd.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_table_is_in_declaration_order() {
        for (i, (role, ..)) in LAYER.iter().enumerate() {
            assert_eq!(*role as usize, i);
        }
    }
}
