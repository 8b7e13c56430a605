//! A fake device for tests: a tiny language model made of hashes, whose K and V go through real pages. Wrong pages, positions,
//! order or leftovers of other sequences change its tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use unicorn_core::*;

pub const VOCAB: usize = 64;

/// Embedding, `layers` times mixer and ffn, head; width 4, hidden 8, all F32, every tensor at its own offset.
pub fn tiny_spec(layers: usize) -> ModelSpec {
    let mut offset = 0;
    let mut weight = |name: &str, rows: usize, cols: usize| {
        let bytes = (rows * cols * 4) as u64;
        offset += bytes;
        let span = WeightSpan { file: 0, offset: offset - bytes, bytes };
        Weight { name: name.into(), ty: TensorType::F32, rows, cols, span }
    };
    let norm = NormSpec::rms(1e-6);
    let rope = RopeSpec::new(RopeStyle::Neox, 4, 1e4, &rope::RopeScaling::None);
    let embedding = EmbeddingSpec { width: 4, vocab: VOCAB, scale: 1.0 };
    let mut blocks = vec![Block::Embedding { spec: embedding, table: weight("token_embd", VOCAB, 4) }];
    for _ in 0..layers {
        let spec = AttentionSpec {
            width: 4,
            heads: 1,
            kv_heads: 1,
            head_dim: 4,
            scale: 0.5,
            rope: rope.clone(),
            window: None,
            soft_cap: None,
            norm,
            qk_norm: None,
            post_norm: None,
        };
        let weights = AttentionWeights {
            norm: weight("attn_norm", 1, 4),
            q: weight("attn_q", 4, 4),
            k: weight("attn_k", 4, 4),
            v: weight("attn_v", 4, 4),
            o: weight("attn_o", 4, 4),
            q_bias: None,
            k_bias: None,
            v_bias: None,
            o_bias: None,
            q_norm: None,
            k_norm: None,
            post_norm: None,
        };
        blocks.push(Block::Attention { spec, weights: Box::new(weights) });
        let spec = FfnSpec { width: 4, hidden: 8, activation: Activation::Silu, norm, post_norm: None };
        let weights = FfnWeights {
            norm: weight("ffn_norm", 1, 4),
            gate: weight("ffn_gate", 8, 4),
            up: weight("ffn_up", 8, 4),
            down: weight("ffn_down", 4, 8),
            post_norm: None,
        };
        blocks.push(Block::Ffn { spec, weights: Box::new(weights) });
    }
    let spec = HeadSpec { width: 4, vocab: VOCAB, norm, soft_cap: None };
    blocks.push(Block::Head { spec, norm: weight("output_norm", 1, 4), weight: weight("output", VOCAB, 4) });
    ModelSpec {
        architecture: "fake".into(),
        name: "tiny".into(),
        width: 4,
        vocab: VOCAB,
        context_max: 4096,
        blocks,
    }
}

/// Weights that read as zeros.
pub struct ZeroWeights;

impl WeightSource for ZeroWeights {
    fn read(&self, _: &WeightSpan, _: u64, buf: &mut [u8]) -> Result<(), WeightError> {
        buf.fill(0);
        Ok(())
    }
}

/// A step of a device as seen from outside: device, step, stream.
pub type Log = Arc<Mutex<Vec<(String, &'static str, u32)>>>;

/// What a fake device does wrong.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Work with this token fails.
    pub token: Option<u32>,
    /// Work with more rows than this fails.
    pub rows: Option<usize>,
    /// All work fails, the device being lost.
    pub lost: bool,
    /// Loading the block with this number of blocks loaded before fails.
    pub load: Option<usize>,
    /// Logits come back as NaN.
    pub nan: bool,
}

#[derive(Default)]
struct State {
    blocks: Vec<Option<Block>>,
    layout: Option<KvLayout>,
    kv: HashMap<(u32, PageId), Vec<u64>>,
    streams: HashMap<StreamId, Vec<u64>>,
    outputs: HashMap<StreamId, HeadOutput>,
    queue: Vec<(Ticket, Work)>,
    tickets: u64,
    faults: Faults,
    rows_max: usize,
}

/// See the module's documentation.
pub struct FakeDevice {
    profile: DeviceProfile,
    /// Work runs when it is waited for, and not before.
    lazy: bool,
    state: Mutex<State>,
    log: Log,
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.rotate_left(23) ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 32)
}

impl FakeDevice {
    pub fn new(name: &str, lazy: bool, log: Log) -> FakeDevice {
        let profile = DeviceProfile {
            name: name.into(),
            kind: DeviceKind::Cpu,
            description: "fake".into(),
            memory_bytes: 1 << 30,
            unified_memory: true,
            workers: 1,
            features: vec![],
        };
        FakeDevice { profile, lazy, state: Mutex::new(State::default()), log }
    }

    pub fn plain() -> Arc<FakeDevice> {
        Arc::new(FakeDevice::new("fake", false, Log::default()))
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    pub fn loaded(&self) -> usize {
        self.state().blocks.iter().flatten().count()
    }

    /// The most rows of any work so far.
    pub fn rows_max(&self) -> usize {
        self.state().rows_max
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn failed(&self, reason: &str) -> DeviceError {
        DeviceError::Failed { device: self.profile.name.clone(), what: "work".into(), reason: reason.into() }
    }

    fn execute(&self, state: &mut State, work: &Work) -> Result<(), DeviceError> {
        let batch = &work.batch;
        let faults = state.faults;
        state.rows_max = state.rows_max.max(batch.rows());
        if faults.lost {
            return Err(DeviceError::Lost { device: self.profile.name.clone(), what: "work".into() });
        }
        if batch.slices.iter().any(|s| s.tokens.iter().any(|t| Some(*t) == faults.token)) {
            return Err(self.failed("poisoned token"));
        }
        if faults.rows.is_some_and(|max| batch.rows() > max) {
            return Err(self.failed("too many rows"));
        }
        for id in &work.blocks {
            let block = state.blocks[id.0 as usize].clone().expect("block is loaded");
            let salt = block.weights()[0].span.offset + 1;
            match block {
                Block::Embedding { .. } => {
                    let rows =
                        batch.slices.iter().flat_map(|s| &s.tokens).map(|t| mix(salt, *t as u64)).collect();
                    state.streams.insert(work.stream, rows);
                }
                Block::Attention { .. } => attend(state, work, id.0, salt),
                Block::Ffn { .. } => {
                    let x = state.streams.get_mut(&work.stream).expect("stream");
                    x.iter_mut().for_each(|x| *x = mix(*x, salt));
                }
                Block::Head { .. } => {
                    let x = &state.streams[&work.stream];
                    let rows: Vec<Vec<f32>> = batch
                        .outputs
                        .iter()
                        .map(|r| {
                            let logit = |v: usize| (mix(x[*r as usize], v as u64) >> 40) as f32 / 2e6;
                            (0..VOCAB).map(|v| if faults.nan { f32::NAN } else { logit(v) }).collect()
                        })
                        .collect();
                    state.outputs.insert(work.stream, select(rows, batch.select));
                }
            }
        }
        Ok(())
    }
}

fn attend(state: &mut State, work: &Work, block: u32, salt: u64) {
    let layout = state.layout.expect("KV is reserved");
    let x = state.streams.get_mut(&work.stream).expect("stream");
    assert_eq!(x.len(), work.batch.rows());
    let mut row = 0;
    for slice in &work.batch.slices {
        let end = slice.start as usize + slice.tokens.len();
        assert_eq!(slice.pages.len(), end.div_ceil(layout.page_tokens), "pages of the slice");
        let place = |p: usize| {
            let page = slice.pages[p / layout.page_tokens];
            assert!((page as usize) < layout.pages);
            ((block, page), p % layout.page_tokens)
        };
        for p in slice.start as usize..end {
            let (key, slot) = place(p);
            let page = state.kv.entry(key).or_insert_with(|| vec![0xBAD; layout.page_tokens]);
            page[slot] = mix(x[row + p - slice.start as usize], p as u64);
        }
        for p in slice.start as usize..end {
            let seen = |q: usize| state.kv.get(&place(q).0).map_or(0xBAD, |page| page[place(q).1]);
            let sum = (0..=p).fold(salt, |h, q| mix(h, seen(q)));
            x[row] = mix(x[row], sum);
            row += 1;
        }
    }
}

fn select(rows: Vec<Vec<f32>>, select: Select) -> HeadOutput {
    match select {
        Select::Logits => HeadOutput::Logits(rows.concat()),
        Select::Top(k) => HeadOutput::Top(rows.into_iter().map(|r| top(&r, k)).collect()),
    }
}

fn top(logits: &[f32], k: usize) -> Vec<TopEntry> {
    let mut all: Vec<TopEntry> =
        logits.iter().enumerate().map(|(i, &logit)| TopEntry { token: i as u32, logit }).collect();
    all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
    all.truncate(k);
    all
}

impl Device for FakeDevice {
    fn profile(&self) -> &DeviceProfile {
        &self.profile
    }

    fn measure(&self) -> Result<Roofline, DeviceError> {
        Ok(Roofline {
            read_bytes_per_second: 1e9,
            integer_ops_per_second: 1e9,
            float_ops_per_second: 1e9,
            matrix_ops_per_second: None,
            copy_bytes_per_second: None,
        })
    }

    fn rate_kind(&self, _: TensorType) -> RateKind {
        RateKind::Float
    }

    fn load(&self, block: &Block, source: &dyn WeightSource) -> Result<BlockId, DeviceError> {
        let mut state = self.state();
        if state.faults.load == Some(state.blocks.iter().flatten().count()) {
            return Err(self.failed("load"));
        }
        for weight in block.weights() {
            let read = source.read(&weight.span, 0, &mut [0u8; 4]);
            read.map_err(|source| DeviceError::Weight { tensor: weight.name.clone(), source })?;
        }
        state.blocks.push(Some(block.clone()));
        Ok(BlockId(state.blocks.len() as u32 - 1))
    }

    fn unload(&self, block: BlockId) {
        self.state().blocks[block.0 as usize] = None;
    }

    fn reserve_kv(&self, layout: KvLayout) -> Result<(), DeviceError> {
        let mut state = self.state();
        state.layout = Some(layout);
        state.kv.clear();
        Ok(())
    }

    fn submit(&self, work: &Work) -> Result<Ticket, DeviceError> {
        self.log.lock().unwrap().push((self.profile.name.clone(), "submit", work.stream.0));
        let mut state = self.state();
        state.tickets += 1;
        let ticket = Ticket(state.tickets);
        if self.lazy {
            state.queue.push((ticket, work.clone()));
        } else {
            self.execute(&mut state, work)?;
        }
        Ok(ticket)
    }

    fn wait(&self, ticket: Ticket) -> Result<(), DeviceError> {
        let mut state = self.state();
        let Some(at) = state.queue.iter().position(|q| q.0 == ticket) else { return Ok(()) };
        let stream = state.queue[at].1.stream;
        self.log.lock().unwrap().push((self.profile.name.clone(), "wait", stream.0));
        let (due, rest) = std::mem::take(&mut state.queue)
            .into_iter()
            .partition::<Vec<_>, _>(|q| q.1.stream == stream && q.0.0 <= ticket.0);
        state.queue = rest;
        due.iter().try_for_each(|(_, work)| self.execute(&mut state, work))
    }

    /// A row of the stream is a hash in four 16-bit pieces.
    fn read_residual(&self, stream: StreamId, first: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        let state = self.state();
        for (row, x) in out.chunks_mut(4).zip(&state.streams[&stream][first..]) {
            row.iter_mut().enumerate().for_each(|(i, o)| *o = (x >> (16 * i) & 0xFFFF) as f32);
        }
        Ok(())
    }

    fn write_residual(&self, stream: StreamId, width: usize, rows: &[f32]) -> Result<(), DeviceError> {
        assert_eq!(width, 4);
        let hash = |row: &[f32]| row.iter().enumerate().map(|(i, v)| (*v as u64) << (16 * i)).sum();
        self.state().streams.insert(stream, rows.chunks(4).map(hash).collect());
        Ok(())
    }

    fn take_output(&self, stream: StreamId) -> Result<HeadOutput, DeviceError> {
        self.state().outputs.remove(&stream).ok_or_else(|| self.failed("no output"))
    }

    fn memory(&self) -> MemoryUse {
        let state = self.state();
        let weights = state.blocks.iter().flatten().flat_map(|b| b.weights()).map(|w| w.span.bytes).sum();
        MemoryUse { weights, ..MemoryUse::default() }
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        let kind = self.state().blocks[block.0 as usize].as_ref().map(Block::kind);
        vec![format!("{kind:?} fake")]
    }

    fn set_profiling(&self, _: bool) {}

    fn kernel_times(&self) -> Vec<KernelTime> {
        vec![]
    }
}

/// An engine with a tiny model on one plain fake device.
pub fn engine_of(options: crate::EngineOptions) -> crate::Engine {
    engine_on(FakeDevice::plain(), options)
}

pub fn engine_on(device: Arc<FakeDevice>, options: crate::EngineOptions) -> crate::Engine {
    let spec = tiny_spec(2);
    let placement = crate::Placement::single(&spec).unwrap();
    crate::Engine::new(&spec, &ZeroWeights, vec![device], placement, options, &mut |_| {}).unwrap()
}
