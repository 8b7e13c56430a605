//! Loading blocks and giving them KV caches.

use std::sync::Arc;

use unicorn_core::{
    Block, DeviceError, LayerNormWeights, NormSpec, ShortConvSpec, StateLayout, Weight, WeightSource,
};

use super::blocks::{
    AttentionBlock, EmbeddingBlock, EncoderAttentionBlock, EncoderEmbeddingBlock, EncoderFfnBlock,
    EncoderHeadBlock, FfnBlock, HeadBlock, LayerNorm, Loaded, Norm, QkNorm, ShortConvBlock,
};
use super::errors::{invalid, out_of_memory, unsupported};
use super::kv::{KvCache, KvGeometry};
use super::level::SimdLevel;
use super::linear::PackedMatrix;
use super::pool::Pool;
use super::short_conv::{KERNEL_MAX, States};
use super::state::State;
use super::weights::WeightStore;
use crate::reference::{KvLayout, StatesLayout};

/// Reads the weights of a block, whose shapes have been checked.
pub(super) fn load_block(
    state: &mut State,
    block: &Block,
    source: &dyn WeightSource,
    level: SimdLevel,
    pool: &Pool,
) -> Result<Loaded, DeviceError> {
    let mut loader = Loader { store: &mut state.weights, source, level, pool };
    Ok(match block {
        Block::Embedding { spec, table } => {
            let [table] = loader.matrices([table])?;
            Loaded::Embedding(EmbeddingBlock::new(spec, table))
        }
        Block::Attention { spec, weights: w } => {
            let matrices = loader.matrices([&w.q, &w.k, &w.v, &w.o])?;
            let norm = loader.norm(&spec.norm, &w.norm)?;
            let post_norm = loader.optional_norm(&spec.post_norm, &w.post_norm)?;
            let mut biases = [None, None, None, None];
            for (bias, weight) in biases.iter_mut().zip([&w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias]) {
                *bias = weight.as_ref().map(|b| loader.vector(b, 0.0)).transpose()?;
            }
            let qk_norm = match (&spec.qk_norm, &w.q_norm, &w.k_norm) {
                (Some(norm), Some(q), Some(k)) => {
                    let offset = norm.weight_offset;
                    Some(QkNorm { q: loader.vector(q, offset)?, k: loader.vector(k, offset)?, eps: norm.eps })
                }
                _ => None,
            };
            let known = state.ropes.iter().position(|r| *r == spec.rope);
            let rope = known.unwrap_or_else(|| {
                state.ropes.push(spec.rope.clone());
                state.ropes.len() - 1
            });
            let mut block =
                AttentionBlock::new(spec, rope, norm, matrices, biases, qk_norm, post_norm, level);
            if let Some(layout) = &state.layout {
                block.set_cache(Some(new_cache(&block, layout)?), level);
            }
            Loaded::Attention(Box::new(block))
        }
        Block::ShortConv { spec, weights: w } => {
            check_kernel(spec)?;
            let matrices = loader.matrices([&w.input, &w.output])?;
            let norm = loader.norm(&spec.norm, &w.norm)?;
            let taps = loader.store.load_columns(&w.conv, loader.source)?;
            let mut block = ShortConvBlock::new(spec, norm, matrices, taps, level);
            block.states = state.layout.as_ref().map(|layout| new_states(spec, layout)).transpose()?;
            Loaded::ShortConv(Box::new(block))
        }
        Block::Ffn { spec, weights: w } => {
            let matrices = loader.matrices([&w.gate, &w.up, &w.down])?;
            let norm = loader.norm(&spec.norm, &w.norm)?;
            let post_norm = loader.optional_norm(&spec.post_norm, &w.post_norm)?;
            Loaded::Ffn(FfnBlock::new(spec, norm, matrices, post_norm))
        }
        Block::Head { spec, norm, weight } => {
            let [matrix] = loader.matrices([weight])?;
            let norm = loader.norm(&spec.norm, norm)?;
            Loaded::Head(HeadBlock::new(spec, norm, matrix, level))
        }
        Block::EncoderEmbedding { .. }
        | Block::EncoderAttention { .. }
        | Block::EncoderFfn { .. }
        | Block::EncoderHead { .. } => loader.encoder(block)?,
    })
}

/// Gives every mixer the pages of its state group.
pub(super) fn reserve(state: &mut State, layout: &StateLayout, level: SimdLevel) -> Result<(), DeviceError> {
    for block in attention_blocks(state) {
        KvLayout::of(layout, block.spec.state(), block.spec.head_dim).map_err(unsupported)?;
    }
    for block in short_convolutions(state) {
        states_layout(&block.spec, layout)?;
    }
    // Free the old caches first: both together may not fit.
    state.layout = None;
    attention_blocks(state).for_each(|block| block.set_cache(None, level));
    short_convolutions(state).for_each(|block| block.states = None);
    for block in short_convolutions(state) {
        block.states = Some(new_states(&block.spec, layout)?);
    }
    for block in attention_blocks(state) {
        let cache = new_cache(block, layout)?;
        block.set_cache(Some(cache), level);
    }
    state.layout = Some(layout.clone());
    Ok(())
}

fn attention_blocks(state: &mut State) -> impl Iterator<Item = &mut AttentionBlock> {
    state.blocks.values_mut().filter_map(|block| match block {
        Loaded::Attention(block) => Some(&mut **block),
        _ => None,
    })
}

fn short_convolutions(state: &mut State) -> impl Iterator<Item = &mut ShortConvBlock> {
    state.blocks.values_mut().filter_map(|block| match block {
        Loaded::ShortConv(block) => Some(&mut **block),
        _ => None,
    })
}

/// Errors where the kernel is longer than those that there are.
pub(super) fn check_kernel(spec: &ShortConvSpec) -> Result<(), DeviceError> {
    if spec.kernel > KERNEL_MAX {
        return Err(unsupported(format!("a short convolution over {} positions", spec.kernel)));
    }
    Ok(())
}

/// Where the states of a short convolution lie.
pub(super) fn states_layout(spec: &ShortConvSpec, layout: &StateLayout) -> Result<StatesLayout, DeviceError> {
    StatesLayout::of(layout, spec.state(), spec.state_floats()).map_err(unsupported)
}

fn new_states(spec: &ShortConvSpec, layout: &StateLayout) -> Result<States, DeviceError> {
    let layout = states_layout(spec, layout)?;
    let bytes = layout.bytes().map_or(u64::MAX, |bytes| bytes as u64);
    States::new(layout).ok_or_else(|| out_of_memory(format!("{} states of a block", layout.pages), bytes))
}

fn new_cache(block: &AttentionBlock, layout: &StateLayout) -> Result<KvCache, DeviceError> {
    let (kv_heads, dim) = (block.spec.kv_heads, block.spec.head_dim);
    let layout = KvLayout::of(layout, block.spec.state(), dim).map_err(unsupported)?;
    let absurd = || out_of_memory(format!("a KV cache of {} pages", layout.pages), u64::MAX);
    let geometry = KvGeometry::new(layout, kv_heads, dim).ok_or_else(absurd)?;
    let what = || format!("the KV cache of a block, {} pages", layout.pages);
    KvCache::new(geometry).ok_or_else(|| out_of_memory(what(), geometry.bytes() as u64))
}

/// Reads the weights of one block.
struct Loader<'a> {
    store: &'a mut WeightStore,
    source: &'a dyn WeightSource,
    level: SimdLevel,
    pool: &'a Pool,
}

impl Loader<'_> {
    fn matrices<const N: usize>(
        &mut self,
        weights: [&Weight; N],
    ) -> Result<[Arc<PackedMatrix>; N], DeviceError> {
        let loaded = self.store.load_matrices(&weights, self.source, self.level, self.pool)?;
        loaded.try_into().map_err(|_| invalid("a block with another number of matrices"))
    }

    /// A block of an encoder.
    fn encoder(&mut self, block: &Block) -> Result<Loaded, DeviceError> {
        Ok(match block {
            Block::EncoderEmbedding { spec, weights: w } => {
                let [table] = self.matrices([&w.table])?;
                let tables = self.plain([&w.positions, &w.token_types])?;
                let norm = self.layer_norm(&w.norm, spec.norm_eps)?;
                Loaded::EncoderEmbedding(EncoderEmbeddingBlock::new(spec, table, tables, norm))
            }
            Block::EncoderAttention { spec, weights: w } => {
                let matrices = self.matrices([&w.q, &w.k, &w.v, &w.o])?;
                let biases = self.plain([&w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias])?;
                let norm = self.layer_norm(&w.norm, spec.norm_eps)?;
                let block = EncoderAttentionBlock::new(spec, matrices, biases, norm, self.level);
                Loaded::EncoderAttention(Box::new(block))
            }
            Block::EncoderFfn { spec, weights: w } => {
                let matrices = self.matrices([&w.up, &w.down])?;
                let biases = self.plain([&w.up_bias, &w.down_bias])?;
                let norm = self.layer_norm(&w.norm, spec.norm_eps)?;
                Loaded::EncoderFfn(Box::new(EncoderFfnBlock::new(spec, matrices, biases, norm)))
            }
            Block::EncoderHead { spec } => Loaded::EncoderHead(EncoderHeadBlock::new(spec)),
            Block::Embedding { .. } | Block::Attention { .. } | Block::ShortConv { .. } => {
                return Err(invalid("a block of no encoder"));
            }
            Block::Ffn { .. } | Block::Head { .. } => {
                return Err(invalid("a block of no encoder"));
            }
        })
    }

    /// Tensors that are kept as floats.
    fn plain<const N: usize>(&mut self, weights: [&Weight; N]) -> Result<[Arc<[f32]>; N], DeviceError> {
        let loaded = weights.map(|weight| self.vector(weight, 0.0));
        let loaded = loaded.into_iter().collect::<Result<Vec<_>, _>>()?;
        loaded.try_into().map_err(|_| invalid("a block with another number of vectors"))
    }

    fn layer_norm(&mut self, weights: &LayerNormWeights, eps: f32) -> Result<LayerNorm, DeviceError> {
        let [weight, bias] = self.plain([&weights.weight, &weights.bias])?;
        Ok(LayerNorm { weight, bias, eps })
    }

    fn vector(&mut self, weight: &Weight, offset: f32) -> Result<Arc<[f32]>, DeviceError> {
        self.store.load_vector(weight, offset, self.source)
    }

    fn norm(&mut self, spec: &NormSpec, weight: &Weight) -> Result<Norm, DeviceError> {
        Ok(Norm::new(spec, self.vector(weight, spec.weight_offset)?))
    }

    fn optional_norm(
        &mut self,
        spec: &Option<NormSpec>,
        weight: &Option<Weight>,
    ) -> Result<Option<Norm>, DeviceError> {
        match (spec, weight) {
            (Some(spec), Some(weight)) => self.norm(spec, weight).map(Some),
            _ => Ok(None),
        }
    }
}
