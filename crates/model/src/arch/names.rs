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
    ConvInput,
    Conv,
    ConvOutput,
}

/// (role, GGUF, Hugging Face). Weights end in `.weight`, biases in `.bias`.
const LAYER: [(Role, &str, &str); 16] = [
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
    (Role::ConvInput, "shortconv.in_proj", "conv.in_proj"),
    (Role::Conv, "shortconv.conv", "conv.conv"),
    (Role::ConvOutput, "shortconv.out_proj", "conv.out_proj"),
];

/// Prefixes under which a Hugging Face checkpoint may hold its language model, and the head's name beside it.
const PREFIXES: [(&str, &str); 4] = [
    ("model.", "lm_head"),
    ("model.language_model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("", "lm_head"),
];

/// Architectures whose files name tensors in their own way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Usual,
    Lfm2,
}

impl Family {
    pub fn of(architecture: &str) -> Family {
        if architecture == "lfm2" { Family::Lfm2 } else { Family::Usual }
    }

    /// The Hugging Face name of a tensor that the family names in its own way.
    fn layer(self, role: Role) -> Option<&'static str> {
        Some(match (self, role) {
            (Family::Usual, _) => return None,
            (Family::Lfm2, Role::AttentionNorm) => "operator_norm",
            (Family::Lfm2, Role::O) => "self_attn.out_proj",
            (Family::Lfm2, Role::QNorm) => "self_attn.q_layernorm",
            (Family::Lfm2, Role::KNorm) => "self_attn.k_layernorm",
            (Family::Lfm2, Role::FfnNorm) => "ffn_norm",
            (Family::Lfm2, Role::Gate) => "feed_forward.w1",
            (Family::Lfm2, Role::Up) => "feed_forward.w3",
            (Family::Lfm2, Role::Down) => "feed_forward.w2",
            (Family::Lfm2, _) => return None,
        })
    }
}

/// How a file names its tensors.
#[derive(Clone, Copy)]
pub(super) enum Naming {
    Gguf(Family),
    HuggingFace { prefix: &'static str, head: &'static str, family: Family },
}

impl Naming {
    /// Finds the prefix that this checkpoint uses; that of most where none fits or nothing is known, so that messages name a usual tensor.
    pub fn hugging_face(tensors: Option<&TensorTable>, family: Family) -> Naming {
        let fits = |p: &&(&str, &str)| {
            tensors.is_some_and(|t| t.get(&format!("{}embed_tokens.weight", p.0)).is_some())
        };
        let (prefix, head) = PREFIXES.iter().find(fits).copied().unwrap_or(PREFIXES[0]);
        Naming::HuggingFace { prefix, head, family }
    }

    pub fn embedding(self) -> String {
        match self {
            Naming::Gguf(_) => "token_embd.weight".to_owned(),
            Naming::HuggingFace { prefix, .. } => format!("{prefix}embed_tokens.weight"),
        }
    }

    pub fn final_norm(self) -> String {
        match self {
            // It norms no embedding, whatever its name.
            Naming::Gguf(Family::Lfm2) => "token_embd_norm.weight".to_owned(),
            Naming::Gguf(Family::Usual) => "output_norm.weight".to_owned(),
            Naming::HuggingFace { prefix, family: Family::Lfm2, .. } => {
                format!("{prefix}embedding_norm.weight")
            }
            Naming::HuggingFace { prefix, .. } => format!("{prefix}norm.weight"),
        }
    }

    pub fn head(self) -> String {
        match self {
            Naming::Gguf(_) => "output.weight".to_owned(),
            Naming::HuggingFace { head, .. } => format!("{head}.weight"),
        }
    }

    /// What all tensor names of a layer begin with.
    pub fn layer_prefix(self, layer: usize) -> String {
        match self {
            Naming::Gguf(_) => format!("blk.{layer}."),
            Naming::HuggingFace { prefix, .. } => format!("{prefix}layers.{layer}."),
        }
    }

    /// A layer's tensor without `.weight` or `.bias`. `post_norm` says whether the layer has norms after its blocks.
    pub fn layer(self, layer: usize, role: Role, post_norm: bool) -> String {
        let (_, gguf, hugging_face) = LAYER[role as usize];
        let suffix = match self {
            Naming::Gguf(_) => gguf,
            Naming::HuggingFace { family, .. } if family.layer(role).is_some() => {
                family.layer(role).unwrap_or(hugging_face)
            }
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
