//! What the engine reserves and what a model needs of memory, by arithmetic alone: nothing is read, and no device is asked.

use unicorn_core::{Block, CANARY_POSITIONS, ModelSpec, StateGroup, StateLayout, StateSpec, Workload};

use crate::drafts::LENGTH_MAX;
use crate::engine::batching::Room;
use crate::executor::{COPIES_MAX, rings};
use crate::kv::window_pages;
use crate::sampling::TOP_MAX;
use crate::states::SNAPSHOTS_MAX;
use crate::{EngineOptions, Placement, Placements};

/// Batches of prompts in flight where several devices share the work. A batch that goes back and forth spends most of its time on the way
/// where that is a bus, and with few of them the devices wait.
const FLIGHTS_ACROSS: usize = 8;

/// How many batches may be on their way under a placement.
pub(crate) fn room(placement: &Placement, options: &EngineOptions) -> Room {
    let mut used = placement.assignment().to_vec();
    used.sort_unstable();
    used.dedup();
    room_of(used.len(), options)
}

/// As many batches as devices are at work at once, each on one of them.
fn room_of(devices: usize, options: &EngineOptions) -> Room {
    let chunk = options.prefill_chunk.min(options.context);
    match devices {
        0 | 1 => Room { lanes: 1, flights: 2, chunk },
        lanes => Room { lanes, flights: FLIGHTS_ACROSS.max(2 * lanes), chunk },
    }
}

/// Sizes that an engine asks of its devices, the same for all of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Reservation {
    /// Residual streams: one for each batch in flight.
    pub streams: usize,
    /// Rows of a batch at most.
    pub rows: usize,
    /// Tokens of one sequence that are in flight at most.
    pub ahead: usize,
    /// The state of every group.
    pub layout: StateLayout,
}

impl Reservation {
    /// The sizes for a model, or a part of one, with these rooms for batches in its phases.
    fn new(spec: &ModelSpec, rooms: &[Room], options: &EngineOptions) -> Reservation {
        let flights = rooms.iter().map(|room| room.flights);
        let encodes = spec.blocks.iter().any(|b| matches!(b, Block::EncoderAttention { .. }));
        let chunk = options.prefill_chunk.min(options.context);
        let ahead = chunk.saturating_mul(flights.clone().max().unwrap_or(1));
        Reservation {
            streams: flights.fold(0, usize::saturating_add),
            // Every decoding sequence has its row, and prompts have a quarter of the chunk then.
            rows: match encodes {
                // A text is never cut.
                true => options.prefill_chunk.max(options.context),
                false => chunk.max(options.sequences_max.saturating_add(chunk.div_ceil(4))),
            },
            ahead,
            layout: layout(spec, options, ahead),
        }
    }

    /// The sizes for a model under placements.
    pub fn of(spec: &ModelSpec, placements: &Placements, options: &EngineOptions) -> Reservation {
        let rooms: Vec<Room> = placements.ways().iter().map(|placement| room(placement, options)).collect();
        Reservation::new(spec, &rooms, options)
    }

    /// The largest work on a device; `crosses` where residual streams come from another or go to one.
    pub fn workload(&self, options: &EngineOptions, crosses: bool) -> Workload {
        Workload {
            layout: self.layout.clone(),
            rows: self.rows,
            sequences: options.sequences_max,
            outputs: options.outputs_max.unwrap_or(options.sequences_max),
            top: TOP_MAX,
            streams: self.streams,
            crosses,
        }
    }

    /// Bytes of the residual streams, `f32 [rows, width]` each.
    pub fn stream_bytes(&self, width: usize) -> u64 {
        floats(self.rows, width).saturating_mul(self.streams as u64)
    }
}

/// Bytes of host memory through which pages of state go where the phases have different devices, in buffers and again in what a GPU copies
/// from: a few at a time, whatever the number of sequences.
pub(crate) fn moving_bytes(spec: &ModelSpec, placements: &Placements, layout: &StateLayout) -> u64 {
    let rings = rings(spec, placements, layout).into_iter();
    let buffers = rings.map(|(words, pages)| floats(pages, words).saturating_mul(COPIES_MAX as u64));
    buffers.fold(0, u64::saturating_add).saturating_mul(2)
}

/// Samples with pages of state that are held at once, what a GPU copies through included.
const SAMPLES_MAX: u64 = 4;

/// Bytes of host memory for a canary: pages of state that are taken out, and the largest block, which is loaded again to compute a row; 0
/// without one.
pub(crate) fn tap_bytes(spec: &ModelSpec, options: &EngineOptions, layout: &StateLayout) -> u64 {
    if options.overseer.looking().is_none() {
        return 0;
    }
    let pages = CANARY_POSITIONS.min(layout.positions).div_ceil(layout.page_tokens.max(1)) as u64 + 1;
    let bytes = |block: &Block| match block {
        Block::Attention { .. } => {
            pages.saturating_mul(block.page_words(layout).unwrap_or(0) as u64).saturating_mul(4)
        }
        _ => 0,
    };
    let weights = |block: &Block| block.weights().iter().map(|w| w.span.bytes).fold(0, u64::saturating_add);
    let most = |of: &dyn Fn(&Block) -> u64| spec.blocks.iter().map(of).max().unwrap_or(0);
    most(&bytes).saturating_mul(SAMPLES_MAX).saturating_add(most(&weights))
}

/// Pages for recurrent states: of each running sequence the one that it starts from, the one that it ends in and its snapshots, of kept ones
/// the last and the snapshots; and one for each draft.
fn states(options: &EngineOptions) -> usize {
    let drafts = options.outputs_max.unwrap_or(0).saturating_sub(options.sequences_max);
    let drafts = drafts.min(options.sequences_max.saturating_mul(LENGTH_MAX));
    let running = options.sequences_max.saturating_mul(SNAPSHOTS_MAX + 2);
    let kept = options.kept_max.saturating_mul(SNAPSHOTS_MAX + 1);
    running.saturating_add(kept).saturating_add(drafts)
}

/// The state that devices reserve. A sliding window needs pages for what its sequences see and have in flight, and for what the
/// windows of kept ones hold.
fn layout(spec: &ModelSpec, options: &EngineOptions, ahead: usize) -> StateLayout {
    let (page_tokens, all) = (options.page_tokens.max(1), options.pages());
    let pages = |spec: StateSpec| match (
        spec,
        window_pages(spec, page_tokens, ahead),
        window_pages(spec, page_tokens, 0),
    ) {
        (StateSpec::Recurrent { .. }, ..) => states(options).min(all),
        (_, Some(running), Some(kept)) => {
            let wanted = running
                .saturating_mul(options.sequences_max)
                .saturating_add(kept.saturating_mul(options.kept_max));
            wanted.min(all)
        }
        _ => all,
    };
    let groups =
        spec.state_groups().into_iter().map(|spec| StateGroup { spec, pages: pages(spec) }).collect();
    StateLayout { page_tokens, positions: options.context, ty: options.kv_type, groups }
}

/// Bytes of memory that a device needs, by what they are for. Devices themselves know better what they hold: this is for comparing
/// placements without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Need {
    /// Weights as they lie in the file; devices pack them into about as many bytes.
    pub weights: u64,
    /// The KV cache.
    pub kv: u64,
    /// Activations, residual streams and logits, roughly.
    pub scratch: u64,
    /// Buffers in host memory for residual streams and pages of state that cross between devices; 0 where nothing does. All devices share
    /// them.
    pub crossing: u64,
}

impl Need {
    /// What a model, or a part of one, needs on one device.
    pub fn of(spec: &ModelSpec, options: &EngineOptions) -> Need {
        Need::with(spec, &Reservation::new(spec, &[room_of(1, options)], options))
    }

    /// What each device needs for its part of a model. The buffers for crossing are told for each, but are there once.
    pub(crate) fn of_placements(
        spec: &ModelSpec,
        placements: &Placements,
        options: &EngineOptions,
    ) -> Vec<Need> {
        let sizes = Reservation::of(spec, placements, options);
        let exported = placements.cross() || options.overseer.looking().is_some();
        let streams = if exported { sizes.stream_bytes(spec.width) } else { 0 };
        let crossing = streams
            .saturating_add(moving_bytes(spec, placements, &sizes.layout))
            .saturating_add(tap_bytes(spec, options, &sizes.layout));
        let part = |device| Need { crossing, ..Need::with(&placements.part(spec, device), &sizes) };
        (0..placements.prefill.devices()).map(part).collect()
    }

    /// What the blocks of a part need under these sizes, without the buffers for crossing.
    fn with(part: &ModelSpec, sizes: &Reservation) -> Need {
        if part.blocks.is_empty() {
            return Need::default();
        }
        let kv = part.blocks.iter().map(|block| kv_bytes(block, &sizes.layout)).fold(0, u64::saturating_add);
        // Blocks run one after the other and use the same buffers.
        let buffers = part.blocks.iter().map(|block| activation_bytes(block, sizes.rows)).max().unwrap_or(0);
        Need {
            weights: part.weight_bytes(),
            kv,
            scratch: buffers.saturating_add(sizes.stream_bytes(part.width)),
            crossing: 0,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        [self.weights, self.kv, self.scratch, self.crossing].into_iter().fold(0, u64::saturating_add)
    }
}

/// Bytes of state that a block's pages hold; 0 for blocks that are no mixers.
fn kv_bytes(block: &Block, layout: &StateLayout) -> u64 {
    if let Block::ShortConv { spec, .. } = block {
        return floats(layout.pages(spec.state()), spec.state_floats());
    }
    let Block::Attention { spec, .. } = block else { return 0 };
    spec.cache_bytes(layout).unwrap_or(0)
}

/// Bytes of what a block computes for `rows` rows beside the residual stream.
fn activation_bytes(block: &Block, rows: usize) -> u64 {
    match block {
        Block::Embedding { .. } => 0,
        // The normed input, queries and what they attend to, keys and values, the output.
        Block::Attention { spec, .. } => {
            let heads = spec.heads.saturating_add(spec.kv_heads).saturating_mul(2);
            floats(rows, heads.saturating_mul(spec.head_dim).saturating_add(2 * spec.width))
        }
        // The normed input, both gates and what they gate, the output.
        Block::ShortConv { spec, .. } => floats(rows, 6 * spec.width),
        // The normed input, gate and up, the output.
        Block::Ffn { spec, .. } => floats(rows, spec.hidden.saturating_mul(2).saturating_add(2 * spec.width)),
        // Logits are read for few rows.
        Block::Head { spec, .. } => floats(1, spec.vocab).saturating_add(floats(rows, spec.width)),
        Block::EncoderEmbedding { .. } => 0,
        Block::EncoderAttention { spec, .. } => {
            floats(rows, (4 * spec.heads).saturating_mul(spec.head_dim).saturating_add(2 * spec.width))
        }
        Block::EncoderFfn { spec, .. } => floats(rows, spec.hidden.saturating_add(2 * spec.width)),
        Block::EncoderHead { spec } => floats(rows, spec.width),
    }
}

/// Bytes of an `f32` array.
fn floats(rows: usize, width: usize) -> u64 {
    (rows as u64).saturating_mul(width as u64).saturating_mul(size_of::<f32>() as u64)
}

#[cfg(test)]
mod tests {
    use unicorn_core::KvType;

    use super::*;
    use crate::testing::{recurrent_spec, sliding_spec, tiny_spec};

    fn position_bytes(spec: &ModelSpec, ty: KvType) -> u64 {
        let Block::Attention { spec, .. } = &spec.blocks[1] else { unreachable!("the first mixer") };
        (2 * spec.kv_heads * ty.tensor_type().row_bytes(spec.head_dim).unwrap()) as u64
    }

    #[test]
    fn a_window_needs_the_pages_of_its_window_and_not_of_the_context() {
        let spec = sliding_spec(2, 64);
        let options = EngineOptions {
            context: 8192,
            prefill_chunk: 128,
            kept_max: 0,
            kv_type: KvType::F32,
            ..EngineOptions::default()
        };
        let each = position_bytes(&spec, KvType::F32);
        // Two chunks of 128 in flight and a window of 64 are five pages of 64, and two more.
        assert_eq!(Need::of(&spec, &options).kv, each * 8192 + each * 7 * 64);
        // A split model has eight streams, and as many chunks may be in flight: 17 pages, and two more.
        let placement = Placement::mixers_and_ffns(&spec).unwrap();
        let needs = Need::of_placements(&spec, &placement.into(), &options);
        assert_eq!((needs[0].kv, needs[1].kv), (each * 8192 + each * 19 * 64, 0));
    }

    #[test]
    fn recurrent_state_needs_a_page_for_each_state_and_not_for_positions() {
        let spec = recurrent_spec(2);
        let options =
            EngineOptions { context: 4096, kept_max: 0, kv_type: KvType::F32, ..EngineOptions::default() };
        let each = position_bytes(&spec, KvType::F32);
        let need = |options: &EngineOptions| Need::of(&spec, options).kv - each * 4096;
        // Two columns of 4 channels each.
        assert_eq!(need(&options), 10 * 2 * 4 * 4);
        assert_eq!(need(&EngineOptions { kept_max: 2, ..options.clone() }), 28 * 2 * 4 * 4);
        assert_eq!(need(&EngineOptions { outputs_max: Some(5), ..options.clone() }), 14 * 2 * 4 * 4);
        assert_eq!(need(&EngineOptions { outputs_max: Some(999), ..options }), 26 * 2 * 4 * 4);
    }

    #[test]
    fn streams_that_cross_have_a_buffer_for_every_batch_in_flight() {
        let spec = tiny_spec(2);
        let options = EngineOptions { context: 512, prefill_chunk: 64, ..EngineOptions::default() };
        let buffer = (64 * spec.width * 4) as u64;
        let single = Need::of_placements(&spec, &Placement::single(&spec).unwrap().into(), &options);
        assert_eq!(single, [Need::of(&spec, &options)]);
        assert_eq!(single[0].crossing, 0);
        assert!(single[0].scratch > 2 * buffer);
        let split = Placement::by_layers(&spec, &[1, 1]).unwrap();
        for need in Need::of_placements(&spec, &split.into(), &options) {
            assert_eq!(need.crossing, 8 * buffer);
        }
        // A device without a block needs nothing of its own.
        let unused = Placement::new(&spec, 2, vec![0; spec.blocks.len()]).unwrap();
        assert_eq!(Need::of_placements(&spec, &unused.into(), &options)[1], Need::default());
    }

    #[test]
    fn absurd_sizes_are_too_much_and_not_an_overflow() {
        let spec = sliding_spec(2, 64);
        let absurd = EngineOptions {
            context: usize::MAX - 64,
            prefill_chunk: usize::MAX,
            kept_max: usize::MAX,
            ..EngineOptions::default()
        };
        assert_eq!(Need::of(&spec, &absurd).total(), u64::MAX);
        let zero = EngineOptions { page_tokens: 0, ..EngineOptions::default() };
        assert!(Need::of(&spec, &zero).total() >= spec.weight_bytes());
    }
}
