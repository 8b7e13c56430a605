//! BERT (Devlin et al. 2019) as an encoder: what sentence-transformers models of this class compute before they pool.

use std::collections::HashSet;

use unicorn_core::{
    Activation, Block, EncoderAttentionSpec, EncoderAttentionWeights, EncoderEmbeddingSpec,
    EncoderEmbeddingWeights, EncoderFfnSpec, EncoderFfnWeights, EncoderHeadSpec, LayerNormWeights, ModelSpec,
    RopeStyle, Weight,
};

use super::builder::{check_vocabulary, convert, shape};
use super::common::{CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, WIDTH_MAX};
use super::context::{Architecture, Context};
use super::keys::{self, Class, HIDDEN_MAX};
use crate::error::ModelError;
use crate::tensors::{TensorInfo, TensorTable};

/// Its blocks are built here, so that it has neither rotary embedding nor plan.
pub(super) const BERT: Architecture = Architecture {
    name: "bert",
    classes: &[("BertModel", Class::Bert)],
    model_types: &[("bert", Class::Bert)],
    gguf_rope: RopeStyle::Neox,
    activation: Activation::GeluTanh,
    plan: |_| {
        Err(ModelError::Unsupported { what: "a plan of layers that generate, of an encoder,".to_owned() })
    },
};

/// True where the blocks are those of BERT.
pub(super) fn is_bert(cx: &Context<'_>) -> bool {
    cx.architecture.name == BERT.name
}

/// Whether the hyperparameters alone tell that the model cannot run.
pub(super) fn check(cx: &Context<'_>) -> Result<(), ModelError> {
    read(cx).map(|_| ())
}

struct Sizes {
    width: usize,
    layers: usize,
    heads: usize,
    hidden: usize,
    positions: usize,
    eps: f32,
}

fn read(cx: &Context<'_>) -> Result<Sizes, ModelError> {
    let m = &cx.meta;
    let unsupported = |what: String| Err(ModelError::Unsupported { what });
    if let Some(kind) = m.string(keys::POSITION_TYPE)?.filter(|kind| kind != "absolute") {
        return unsupported(format!("{} {kind:?}", m.name(keys::POSITION_TYPE)));
    }
    if let Some(name) = m.string(keys::ACTIVATION)?.filter(|name| name != "gelu") {
        return unsupported(format!("{} {name:?} of an encoder", m.name(keys::ACTIVATION)));
    }
    for (key, wrong) in [(keys::IS_DECODER, true), (keys::CAUSAL, true)] {
        if m.flag(key)? == Some(wrong) {
            return unsupported(format!("{} = {wrong} of architecture bert", m.name(key)));
        }
    }
    let width = m.need_size(keys::WIDTH, WIDTH_MAX)?;
    let heads = m.need_size(keys::HEADS, HEADS_MAX)?;
    if !width.is_multiple_of(heads) {
        return Err(m.invalid(keys::HEADS, format!("{heads} does not divide the width {width}")));
    }
    let layers = m.need_size(keys::LAYERS, LAYERS_MAX)?;
    if let Some(tensors) = cx.tensors.filter(|tensors| layers > tensors.len()) {
        let reason = format!("{layers} layers, but the model has only {} tensors", tensors.len());
        return Err(m.invalid(keys::LAYERS, reason));
    }
    Ok(Sizes {
        width,
        layers,
        heads,
        hidden: m.need_size(keys::HIDDEN, HIDDEN_MAX)?,
        positions: m.need_size(keys::CONTEXT, CONTEXT_MAX)?,
        eps: m.need_positive(keys::LAYER_NORM_EPS)?,
    })
}

/// (GGUF, Hugging Face) names of what stands once.
const TABLE: (&str, &str) = ("token_embd", "embeddings.word_embeddings");
const POSITIONS: (&str, &str) = ("position_embd", "embeddings.position_embeddings");
const TYPES: (&str, &str) = ("token_types", "embeddings.token_type_embeddings");
const TABLE_NORM: (&str, &str) = ("token_embd_norm", "embeddings.LayerNorm");
// Those of a layer.
const Q: (&str, &str) = ("attn_q", "attention.self.query");
const K: (&str, &str) = ("attn_k", "attention.self.key");
const V: (&str, &str) = ("attn_v", "attention.self.value");
const O: (&str, &str) = ("attn_output", "attention.output.dense");
const O_NORM: (&str, &str) = ("attn_output_norm", "attention.output.LayerNorm");
const UP: (&str, &str) = ("ffn_up", "intermediate.dense");
const DOWN: (&str, &str) = ("ffn_down", "output.dense");
const DOWN_NORM: (&str, &str) = ("layer_output_norm", "output.LayerNorm");

/// Builds the blocks.
pub(super) fn build(cx: &Context<'_>, tensors: &TensorTable) -> Result<ModelSpec, ModelError> {
    let sizes = read(cx)?;
    let gguf = cx.meta.is_gguf();
    // Checkpoints with a head for training have the encoder behind a prefix.
    let prefixed = !gguf && tensors.get("bert.embeddings.word_embeddings.weight").is_some();
    let prefix = if prefixed { "bert." } else { "" };
    let mut b = Builder { tensors, gguf, prefix, used: HashSet::new() };
    let Sizes { width, positions, eps: norm_eps, .. } = sizes;
    let table = b.table(TABLE, width)?;
    check_vocabulary(cx, &table)?;
    let token_types = b.table(TYPES, width)?;
    let spec =
        EncoderEmbeddingSpec { width, vocab: table.rows, positions, token_types: token_types.rows, norm_eps };
    let vocab = table.rows;
    let weights = EncoderEmbeddingWeights {
        table,
        positions: b.weight(b.once(POSITIONS, "weight"), &[positions, width])?,
        token_types,
        norm: LayerNormWeights {
            weight: b.weight(b.once(TABLE_NORM, "weight"), &[width])?,
            bias: b.weight(b.once(TABLE_NORM, "bias"), &[width])?,
        },
    };
    let mut blocks = vec![Block::EncoderEmbedding { spec, weights: Box::new(weights) }];
    for layer in 0..sizes.layers {
        blocks.push(b.attention(layer, &sizes)?);
        blocks.push(b.ffn(layer, &sizes)?);
    }
    blocks.push(Block::EncoderHead { spec: EncoderHeadSpec { width } });
    b.check_leftovers(sizes.layers)?;
    Ok(ModelSpec {
        architecture: cx.architecture.name.to_owned(),
        name: cx.model_name.clone(),
        width,
        vocab,
        context_max: positions,
        blocks,
    })
}

struct Builder<'a> {
    tensors: &'a TensorTable,
    gguf: bool,
    prefix: &'static str,
    /// Names of the tensors that some block uses.
    used: HashSet<String>,
}

impl Builder<'_> {
    fn once(&self, (gguf, hugging_face): (&str, &str), kind: &str) -> String {
        if self.gguf { format!("{gguf}.{kind}") } else { format!("{}{hugging_face}.{kind}", self.prefix) }
    }

    /// What all names of a layer's tensors begin with, without the layer's number.
    fn layers(&self) -> String {
        if self.gguf { "blk.".to_owned() } else { format!("{}encoder.layer.", self.prefix) }
    }

    fn of_layer(&self, layer: usize, (gguf, hugging_face): (&str, &str), kind: &str) -> String {
        let name = if self.gguf { gguf } else { hugging_face };
        format!("{}{layer}.{name}.{kind}", self.layers())
    }

    fn find(&mut self, name: String) -> Result<&TensorInfo, ModelError> {
        let Some(info) = self.tensors.get(&name) else { return Err(ModelError::MissingTensor { name }) };
        self.used.insert(name);
        Ok(info)
    }

    fn weight(&mut self, name: String, expected: &[usize]) -> Result<Weight, ModelError> {
        let info = self.find(name)?;
        let expected: Vec<u64> = expected.iter().map(|n| *n as u64).collect();
        if info.shape != expected { Err(shape(info, expected)) } else { convert(info) }
    }

    /// A table with as many rows as it has.
    fn table(&mut self, name: (&str, &str), width: usize) -> Result<Weight, ModelError> {
        let info = self.find(self.once(name, "weight"))?;
        match info.shape[..] {
            [rows, cols] if cols == width as u64 && rows > 0 && rows <= u32::MAX as u64 => convert(info),
            _ => Err(shape(info, vec![info.shape.first().copied().unwrap_or(1), width as u64])),
        }
    }

    /// A matrix of a layer with its bias.
    fn linear(
        &mut self,
        layer: usize,
        name: (&str, &str),
        rows: usize,
        cols: usize,
    ) -> Result<(Weight, Weight), ModelError> {
        let weight = self.weight(self.of_layer(layer, name, "weight"), &[rows, cols])?;
        Ok((weight, self.weight(self.of_layer(layer, name, "bias"), &[rows])?))
    }

    fn norm(
        &mut self,
        layer: usize,
        name: (&str, &str),
        width: usize,
    ) -> Result<LayerNormWeights, ModelError> {
        let weight = self.weight(self.of_layer(layer, name, "weight"), &[width])?;
        Ok(LayerNormWeights { weight, bias: self.weight(self.of_layer(layer, name, "bias"), &[width])? })
    }

    fn attention(&mut self, layer: usize, sizes: &Sizes) -> Result<Block, ModelError> {
        let &Sizes { width, heads, eps: norm_eps, .. } = sizes;
        let (q, q_bias) = self.linear(layer, Q, width, width)?;
        let (k, k_bias) = self.linear(layer, K, width, width)?;
        let (v, v_bias) = self.linear(layer, V, width, width)?;
        let (o, o_bias) = self.linear(layer, O, width, width)?;
        let norm = self.norm(layer, O_NORM, width)?;
        let head_dim = width / heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let spec = EncoderAttentionSpec { width, heads, head_dim, scale, norm_eps };
        let weights = EncoderAttentionWeights { q, k, v, o, q_bias, k_bias, v_bias, o_bias, norm };
        Ok(Block::EncoderAttention { spec, weights: Box::new(weights) })
    }

    fn ffn(&mut self, layer: usize, sizes: &Sizes) -> Result<Block, ModelError> {
        let &Sizes { width, hidden, eps: norm_eps, .. } = sizes;
        let (up, up_bias) = self.linear(layer, UP, hidden, width)?;
        let (down, down_bias) = self.linear(layer, DOWN, width, hidden)?;
        let norm = self.norm(layer, DOWN_NORM, width)?;
        let spec = EncoderFfnSpec { width, hidden, norm_eps };
        let weights = EncoderFfnWeights { up, down, up_bias, down_bias, norm };
        Ok(Block::EncoderFfn { spec, weights: Box::new(weights) })
    }

    /// A tensor of a layer that no block uses means that the model computes something else.
    fn check_leftovers(&self, layers: usize) -> Result<(), ModelError> {
        let prefix = self.layers();
        for info in self.tensors.iter() {
            let Some(rest) = info.name.strip_prefix(&prefix) else { continue };
            let layer = rest.split('.').next().and_then(|n| n.parse::<usize>().ok());
            if layer.is_some_and(|n| n < layers) && !self.used.contains(&info.name) {
                let what = format!("tensor {} in a model of architecture bert", info.name);
                return Err(ModelError::Unsupported { what });
            }
        }
        Ok(())
    }
}
