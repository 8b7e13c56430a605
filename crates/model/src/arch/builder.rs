//! Turns a plan into blocks: looks up every tensor and checks its shape.

use std::collections::HashSet;

use unicorn_core::{
    AttentionSpec, AttentionWeights, Block, EmbeddingSpec, FfnSpec, FfnWeights, HeadSpec, ModelSpec,
    ShortConvSpec, ShortConvWeights, Weight,
};

use super::context::Context;
use super::keys;
use super::names::{Naming, Role, is_ignorable};
use super::plan::{Bias, LayerPlan, Plan};
use crate::error::ModelError;
use crate::tensors::{StoredType, TensorInfo, TensorTable, as_weight};

/// Builds the blocks of a model.
pub(super) fn build(cx: &Context<'_>, tensors: &TensorTable, plan: &Plan) -> Result<ModelSpec, ModelError> {
    let mut b = Builder { cx, tensors, naming: cx.naming, width: plan.width, used: HashSet::new() };
    let table = b.embedding()?;
    let vocab = table.rows;
    check_vocabulary(cx, &table)?;
    let head = b.head(plan, &table)?;
    let final_norm = b.vector(cx.naming.final_norm(), plan.width)?;
    let mut blocks = Vec::with_capacity(2 * plan.layers.len() + 2);
    let embedding = EmbeddingSpec { width: plan.width, vocab, scale: plan.embedding_scale };
    blocks.push(Block::Embedding { spec: embedding, table });
    for (i, layer) in plan.layers.iter().enumerate() {
        blocks.push(match layer.short_conv {
            Some(kernel) => b.short_conv(plan, i, kernel)?,
            None => b.attention(plan, i, layer)?,
        });
        blocks.push(b.ffn(plan, i, layer)?);
    }
    let spec = HeadSpec { width: plan.width, vocab, norm: plan.norm, soft_cap: plan.final_soft_cap };
    blocks.push(Block::Head { spec, norm: final_norm, weight: head });
    b.check_leftovers(plan.layers.len())?;
    Ok(ModelSpec {
        architecture: cx.architecture.name.to_owned(),
        name: cx.model_name.clone(),
        width: plan.width,
        vocab,
        context_max: plan.context_max,
        blocks,
    })
}

/// The table's rows must be the tokens: of the tokenizer in a GGUF, else of the configuration.
pub(super) fn check_vocabulary(cx: &Context<'_>, table: &Weight) -> Result<(), ModelError> {
    let configured = cx.meta.int(keys::VOCAB)?.map(|n| (cx.meta.name(keys::VOCAB), n as u64));
    let tokenizer = match cx.meta.file() {
        Some(file) => file.array("tokenizer.ggml.tokens")?.map(|a| a.len() as u64),
        None => None,
    };
    let tokenizer = tokenizer.map(|n| ("tokenizer.ggml.tokens".to_owned(), n));
    for (key, tokens) in [tokenizer, configured].into_iter().flatten() {
        if tokens != table.rows as u64 {
            let (tensor, rows) = (table.name.clone(), table.rows as u64);
            return Err(ModelError::Vocabulary { tensor, rows, key, tokens });
        }
    }
    Ok(())
}

struct Builder<'a> {
    cx: &'a Context<'a>,
    tensors: &'a TensorTable,
    naming: Naming,
    width: usize,
    /// Names of the tensors that some block uses.
    used: HashSet<String>,
}

impl Builder<'_> {
    fn find(&mut self, name: String) -> Result<&TensorInfo, ModelError> {
        let Some(info) = self.tensors.get(&name) else { return Err(ModelError::MissingTensor { name }) };
        self.used.insert(name);
        Ok(info)
    }

    fn weight(&mut self, name: String, expected: &[usize]) -> Result<Weight, ModelError> {
        let info = self.find(name)?;
        let expected: Vec<u64> = expected.iter().map(|n| *n as u64).collect();
        if info.shape != expected {
            return Err(ModelError::TensorShape {
                name: info.name.clone(),
                expected,
                found: info.shape.clone(),
            });
        }
        convert(info)
    }

    fn matrix(&mut self, name: String, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        self.weight(name, &[rows, cols])
    }

    fn vector(&mut self, name: String, len: usize) -> Result<Weight, ModelError> {
        self.weight(name, &[len])
    }

    fn bias(&mut self, stem: &str, len: usize, bias: Bias) -> Result<Option<Weight>, ModelError> {
        let name = format!("{stem}.bias");
        let used = match bias {
            Bias::Required => true,
            Bias::IfPresent => self.tensors.get(&name).is_some(),
            Bias::Never => false,
        };
        self.optional(used, name, len)
    }

    fn embedding(&mut self) -> Result<Weight, ModelError> {
        let width = self.width as u64;
        let info = self.find(self.naming.embedding())?;
        match info.shape[..] {
            [rows, cols] if cols == width && rows > 0 && rows <= u32::MAX as u64 => convert(info),
            [rows, _] => Err(shape(info, vec![rows, width])),
            _ => Err(shape(info, vec![1, width])),
        }
    }

    fn head(&mut self, plan: &Plan, table: &Weight) -> Result<Weight, ModelError> {
        let name = self.naming.head();
        let present = self.tensors.get(&name).is_some();
        if plan.tied.unwrap_or(!present) {
            return Ok(table.clone());
        }
        self.matrix(name, table.rows, plan.width)
    }

    fn attention(&mut self, plan: &Plan, i: usize, layer: &LayerPlan) -> Result<Block, ModelError> {
        let (width, naming) = (self.width, self.naming);
        let stem = |role| naming.layer(i, role, layer.post_norm);
        let weight = |role| stem(role) + ".weight";
        // Products of bounded factors: no overflow.
        let (q_rows, kv_rows) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
        let norm_if = |on: bool| on.then_some(plan.norm);
        let weights = AttentionWeights {
            norm: self.vector(weight(Role::AttentionNorm), width)?,
            q: self.matrix(weight(Role::Q), q_rows, width)?,
            k: self.matrix(weight(Role::K), kv_rows, width)?,
            v: self.matrix(weight(Role::V), kv_rows, width)?,
            o: self.matrix(weight(Role::O), width, q_rows)?,
            q_bias: self.bias(&stem(Role::Q), q_rows, layer.qkv_bias)?,
            k_bias: self.bias(&stem(Role::K), kv_rows, layer.qkv_bias)?,
            v_bias: self.bias(&stem(Role::V), kv_rows, layer.qkv_bias)?,
            o_bias: self.bias(&stem(Role::O), width, layer.o_bias)?,
            q_norm: self.optional(layer.qk_norm, weight(Role::QNorm), layer.head_dim)?,
            k_norm: self.optional(layer.qk_norm, weight(Role::KNorm), layer.head_dim)?,
            post_norm: self.optional(layer.post_norm, weight(Role::AttentionPostNorm), width)?,
        };
        let spec = AttentionSpec {
            width,
            heads: layer.heads,
            kv_heads: layer.kv_heads,
            head_dim: layer.head_dim,
            scale: layer.scale,
            rope: layer.rope.clone(),
            window: layer.window,
            soft_cap: layer.soft_cap,
            norm: plan.norm,
            qk_norm: norm_if(layer.qk_norm),
            post_norm: norm_if(layer.post_norm),
        };
        Ok(Block::Attention { spec, weights: Box::new(weights) })
    }

    fn short_conv(&mut self, plan: &Plan, i: usize, kernel: usize) -> Result<Block, ModelError> {
        let (width, naming) = (self.width, self.naming);
        let weight = |role| naming.layer(i, role, false) + ".weight";
        let weights = ShortConvWeights {
            norm: self.vector(weight(Role::AttentionNorm), width)?,
            input: self.matrix(weight(Role::ConvInput), 3 * width, width)?,
            conv: self.taps(weight(Role::Conv), kernel)?,
            output: self.matrix(weight(Role::ConvOutput), width, width)?,
        };
        let spec = ShortConvSpec { width, kernel, norm: plan.norm };
        Ok(Block::ShortConv { spec, weights: Box::new(weights) })
    }

    /// The taps of a convolution, `[width, kernel]`. Hugging Face stores a dimension of 1 in between.
    fn taps(&mut self, name: String, kernel: usize) -> Result<Weight, ModelError> {
        let [width, kernel] = [self.width as u64, kernel as u64];
        let hugging_face = matches!(self.naming, Naming::HuggingFace { .. });
        let expected = if hugging_face { vec![width, 1, kernel] } else { vec![width, kernel] };
        let info = self.find(name)?;
        if info.shape != expected {
            return Err(shape(info, expected));
        }
        convert(&TensorInfo { shape: vec![width, kernel], ..info.clone() })
    }

    fn ffn(&mut self, plan: &Plan, i: usize, layer: &LayerPlan) -> Result<Block, ModelError> {
        let (width, naming, hidden) = (self.width, self.naming, layer.hidden);
        let weight = |role| naming.layer(i, role, layer.post_norm) + ".weight";
        let weights = FfnWeights {
            norm: self.vector(weight(Role::FfnNorm), width)?,
            gate: self.matrix(weight(Role::Gate), hidden, width)?,
            up: self.matrix(weight(Role::Up), hidden, width)?,
            down: self.matrix(weight(Role::Down), width, hidden)?,
            post_norm: self.optional(layer.post_norm, weight(Role::FfnPostNorm), width)?,
        };
        let spec = FfnSpec {
            width,
            hidden,
            activation: layer.activation,
            norm: plan.norm,
            post_norm: layer.post_norm.then_some(plan.norm),
        };
        Ok(Block::Ffn { spec, weights: Box::new(weights) })
    }

    fn optional(&mut self, on: bool, name: String, len: usize) -> Result<Option<Weight>, ModelError> {
        if on { self.vector(name, len).map(Some) } else { Ok(None) }
    }

    /// A tensor of a layer that no block uses means that the model computes something else than the plan says: better an
    /// error than wrong text.
    fn check_leftovers(&self, layers: usize) -> Result<(), ModelError> {
        let prefix = self.naming.layer_prefix(0);
        let prefix = prefix.trim_end_matches("0.");
        for info in self.tensors.iter() {
            let Some(rest) = info.name.strip_prefix(prefix) else { continue };
            let layer = rest.split('.').next().and_then(|n| n.parse::<usize>().ok());
            let ours = layer.is_some_and(|n| n < layers);
            if ours && !self.used.contains(&info.name) && !is_ignorable(&info.name) {
                let what =
                    format!("tensor {} in a model of architecture {}", info.name, self.cx.architecture.name);
                return Err(ModelError::Unsupported { what });
            }
        }
        Ok(())
    }
}

pub(super) fn shape(info: &TensorInfo, expected: Vec<u64>) -> ModelError {
    ModelError::TensorShape { name: info.name.clone(), expected, found: info.shape.clone() }
}

pub(super) fn convert(info: &TensorInfo) -> Result<Weight, ModelError> {
    as_weight(info).ok_or_else(|| match &info.ty {
        StoredType::Other(ty) => ModelError::TensorType { name: info.name.clone(), ty: ty.clone() },
        StoredType::Supported(_) => shape(info, vec![1, 1]),
    })
}
