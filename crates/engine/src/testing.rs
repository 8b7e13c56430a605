//! A fake device for tests: a tiny language model made of hashes, whose K and V go through real pages. Wrong pages, positions,
//! order or leftovers of other sequences change its tokens.

pub mod store;

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use unicorn_core::*;

pub const VOCAB: usize = 64;

/// [`tiny_spec`] whose mixers of odd layers see a sliding window.
pub fn sliding_spec(layers: usize, window: usize) -> ModelSpec {
    let mut spec = tiny_spec(layers);
    let mixers = spec.blocks.iter_mut().filter_map(|b| match b {
        Block::Attention { spec, .. } => Some(spec),
        _ => None,
    });
    mixers.skip(1).step_by(2).for_each(|spec| spec.window = Some(window));
    spec
}

/// [`tiny_spec`] whose mixers of odd layers are short convolutions.
pub fn recurrent_spec(layers: usize) -> ModelSpec {
    let mut spec = tiny_spec(layers);
    let mixers = spec.blocks.iter_mut().filter(|b| b.kind() == BlockKind::Mixer);
    for block in mixers.skip(1).step_by(2) {
        let Block::Attention { spec, weights } = &block else { continue };
        let spec = ShortConvSpec { width: spec.width, kernel: 3, norm: spec.norm };
        let reshaped = |weight: &Weight, rows: usize, cols: usize| {
            let span = WeightSpan { bytes: (rows * cols * 4) as u64, ..weight.span };
            Weight { rows, cols, span, ..weight.clone() }
        };
        let weights = ShortConvWeights {
            norm: weights.norm.clone(),
            input: reshaped(&weights.q, 12, 4),
            conv: reshaped(&weights.v, 4, 3),
            output: weights.o.clone(),
        };
        *block = Block::ShortConv { spec, weights: Box::new(weights) };
    }
    spec
}

/// [`tiny_spec`] whose head multiplies with the embedding's table.
pub fn tied_spec(layers: usize) -> ModelSpec {
    let mut spec = tiny_spec(layers);
    let Some(Block::Embedding { table, .. }) = spec.blocks.first().cloned() else { return spec };
    if let Some(Block::Head { weight, .. }) = spec.blocks.last_mut() {
        *weight = table;
    }
    spec
}

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

/// One piece of work as it ran.
#[derive(Clone, Debug)]
pub struct Ran {
    pub device: String,
    pub start: Instant,
    pub end: Instant,
}

/// Everything that ran, on all devices that share the log.
pub type Log = Arc<Mutex<Vec<Ran>>>;

/// What a fake device does wrong.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Work with this token fails.
    pub token: Option<u32>,
    /// Work with more rows than this fails.
    pub rows: Option<usize>,
    /// For work with more rows than this there is no memory.
    pub memory: Option<usize>,
    /// So much work from now on fails.
    pub next: usize,
    /// All work fails, the device being lost.
    pub lost: bool,
    /// Loading the block with this number of blocks loaded before fails.
    pub load: Option<usize>,
    /// Logits come back as NaN.
    pub nan: bool,
    /// There is no kernel for weights of this type.
    pub lacks: Option<TensorType>,
    /// So many copies of state from now on fail.
    pub copies: usize,
    /// Copies of state take so long, each on a lane of its own.
    pub copy_time: Duration,
    /// Copies out of the device take this long, beside other work.
    pub late: Option<Duration>,
}

/// When a fake device works.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pace {
    /// On the thread that makes work ready, before submission returns where nothing is to be waited for.
    Eager,
    /// On a thread of its own, in the order in which work becomes ready, each taking this long.
    Lazy(Duration),
    /// As lazy, each work taking a time that grows with the rows of its batch.
    Rows { work: Duration, row: Duration },
}

impl Pace {
    /// How long work over so many rows takes.
    pub fn time(self, rows: usize) -> Duration {
        match self {
            Pace::Eager => Duration::ZERO,
            Pace::Lazy(time) => time,
            Pace::Rows { work, row } => work + row * rows as u32,
        }
    }
}

#[derive(Default)]
struct State {
    blocks: Vec<Option<Block>>,
    layout: Option<StateLayout>,
    kv: HashMap<(u32, PageId), Vec<u64>>,
    streams: HashMap<StreamId, Vec<u64>>,
    slots: Vec<u32>,
    shared: HashMap<StreamId, Arc<SharedBuffer>>,
    faults: Faults,
    rows_max: usize,
    outputs_max: usize,
    rows_read: usize,
    memory: MemoryUse,
}

struct Inner {
    profile: DeviceProfile,
    state: Mutex<State>,
    log: Log,
}

/// What a device was asked to do.
enum Job {
    Work(Work),
    Copy(StateCopy),
}

/// See the module's documentation.
pub struct FakeDevice {
    inner: Arc<Inner>,
    /// Of a lazy device: what is ready goes here.
    worker: Option<Sender<Job>>,
}

pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.rotate_left(23) ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 32)
}

impl FakeDevice {
    pub fn new(name: &str, pace: Pace, log: Log) -> FakeDevice {
        let profile = DeviceProfile {
            name: name.into(),
            kind: DeviceKind::Cpu,
            description: "fake".into(),
            memory_bytes: 1 << 30,
            unified_memory: true,
            on_host: true,
            workers: 1,
            wait_awake: false,
            features: vec![],
        };
        let inner = Arc::new(Inner { profile, state: Mutex::new(State::default()), log });
        let worker = match pace {
            Pace::Eager => None,
            Pace::Lazy(_) | Pace::Rows { .. } => {
                let (sender, ready) = channel::<Job>();
                let inner = inner.clone();
                std::thread::spawn(move || ready.iter().for_each(|job| inner.run(job, pace)));
                Some(sender)
            }
        };
        FakeDevice { inner, worker }
    }

    pub fn plain() -> Arc<FakeDevice> {
        Arc::new(FakeDevice::new("fake", Pace::Eager, Log::default()))
    }

    pub fn set_faults(&self, faults: Faults) {
        self.inner.state().faults = faults;
    }

    pub fn loaded(&self) -> usize {
        self.inner.state().blocks.iter().flatten().count()
    }

    /// The most rows of any work so far.
    pub fn rows_max(&self) -> usize {
        self.inner.state().rows_max
    }

    /// Rows that went through the model.
    pub fn rows_read(&self) -> usize {
        self.inner.state().rows_read
    }

    /// The most rows that were read of any work so far.
    pub fn outputs_max(&self) -> usize {
        self.inner.state().outputs_max
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn failed(&self, reason: &str) -> DeviceError {
        DeviceError::Failed { device: self.profile.name.clone(), what: "work".into(), reason: reason.into() }
    }

    fn dependency(&self, source: Arc<DeviceError>) -> DeviceError {
        DeviceError::Dependency { device: self.profile.name.clone(), source }
    }

    fn ready(self: &Arc<Self>, job: Job, worker: Option<Sender<Job>>) {
        let copy_time = self.state().faults.copy_time;
        if matches!(job, Job::Copy(_)) && !copy_time.is_zero() {
            let inner = self.clone();
            std::thread::spawn(move || {
                std::thread::sleep(copy_time);
                inner.run(job, Pace::Eager);
            });
            return;
        }
        match worker {
            None => self.run(job, Pace::Eager),
            Some(worker) => worker.send(job).expect("the worker lives as long as the device"),
        }
    }

    /// Does what is ready, and tells how it ended.
    fn run(&self, job: Job, pace: Pace) {
        let mut work = match job {
            Job::Work(work) => work,
            Job::Copy(copy) => {
                let result = self.copy(&mut self.state(), &copy);
                return copy.done.give(result.map(|()| None).map_err(Arc::new));
            }
        };
        let time = pace.time(work.batch.rows());
        let start = Instant::now();
        work.done.begin(start);
        let result = self.execute(&mut self.state(), &work);
        while start.elapsed() < time {
            std::thread::sleep(time.saturating_sub(start.elapsed()));
        }
        let end = Instant::now();
        let ran = Ran { device: self.profile.name.clone(), start, end };
        self.log.lock().unwrap().push(ran);
        // As a device tells that copies residual streams beside its work.
        if work.crossing.import {
            work.done.arrived(start);
        }
        if work.crossing.export {
            work.done.worked(end);
        }
        work.done.give(result.map_err(Arc::new));
    }

    fn late(&self, copy: &StateCopy) -> Option<Duration> {
        let out = matches!(copy.way, StateWay::Save(_));
        self.state().faults.late.filter(|_| out)
    }

    /// What it copies is what is there at the end.
    fn copy_late(&self, mut copy: StateCopy, time: Duration) {
        copy.done.begin(Instant::now());
        std::thread::sleep(time);
        let result = self.copy(&mut self.state(), &copy);
        copy.done.give(result.map(|()| None).map_err(Arc::new));
    }

    /// A position takes two words of a page on the host, and the other two stay as they are.
    fn copy(&self, state: &mut State, copy: &StateCopy) -> Result<(), DeviceError> {
        if state.faults.copies > 0 {
            state.faults.copies -= 1;
            return Err(self.failed("a copy"));
        }
        let layout = state.layout.as_ref().expect("state is reserved");
        let spec = state.blocks[copy.mixer.0 as usize].as_ref().and_then(Block::state).expect("a mixer");
        let len = page_len(spec, layout);
        for (row, page) in copy.pages.iter().enumerate() {
            let held = state.kv.entry((copy.mixer.0, *page)).or_insert_with(|| vec![0xBAD; len]);
            let mut bytes = vec![0; len * 8];
            match &copy.way {
                StateWay::Save(host) => {
                    bytes
                        .chunks_exact_mut(8)
                        .zip(held)
                        .for_each(|(b, h)| b.copy_from_slice(&h.to_ne_bytes()));
                    host.write_part(row, 0, &bytes);
                }
                StateWay::Restore(host) => {
                    host.read_part(row, 0, &mut bytes);
                    let word = |b: &[u8]| u64::from_ne_bytes(b.try_into().expect("eight bytes"));
                    held.iter_mut().zip(bytes.chunks_exact(8)).for_each(|(h, b)| *h = word(b));
                }
            }
            state.memory.copied += bytes.len() as u64;
        }
        Ok(())
    }

    fn execute(&self, state: &mut State, work: &Work) -> Result<Option<HeadOutput>, DeviceError> {
        let batch = &work.batch;
        let faults = state.faults;
        state.rows_max = state.rows_max.max(batch.rows());
        state.outputs_max = state.outputs_max.max(batch.outputs().len());
        if faults.lost {
            return Err(DeviceError::Lost { device: self.profile.name.clone(), what: "work".into() });
        }
        if batch.slices().iter().any(|s| s.tokens.iter().any(|t| Some(*t) == faults.token)) {
            return Err(self.failed("poisoned token"));
        }
        if faults.next > 0 {
            state.faults.next -= 1;
            return Err(self.failed("this time"));
        }
        if faults.rows.is_some_and(|max| batch.rows() > max) {
            return Err(self.failed("too many rows"));
        }
        if faults.memory.is_some_and(|max| batch.rows() > max) {
            let (device, what) = (self.profile.name.clone(), "the batch".into());
            return Err(DeviceError::OutOfMemory { device, what, requested: batch.rows() as u64, free: 0 });
        }
        if work.crossing.import {
            import(state, work);
        }
        let mut output = None;
        for id in &work.blocks {
            let block = state.blocks[id.0 as usize].clone().expect("block is loaded");
            let salt = block.weights().first().map_or(0, |w| w.span.offset) + 1;
            match block {
                Block::Embedding { .. } => {
                    state.rows_read += batch.rows();
                    let tokens = batch.row_tokens(&state.slots).into_iter();
                    let rows = tokens.map(|t| mix(salt, t as u64)).collect();
                    state.streams.insert(work.stream, rows);
                }
                Block::Attention { spec, .. } => attend(state, work, id.0, salt, spec.state()),
                Block::ShortConv { spec, .. } => fold(state, work, id.0, salt, spec.state()),
                Block::Ffn { .. } | Block::EncoderFfn { .. } => {
                    let x = state.streams.get_mut(&work.stream).expect("stream");
                    x.iter_mut().for_each(|x| *x = mix(*x, salt));
                }
                Block::Head { .. } => {
                    output = Some(head(&state.streams[&work.stream], batch, faults.nan));
                }
                Block::EncoderEmbedding { .. } => {
                    assert!(batch.whole().is_some(), "parts of sequences");
                    let positions = batch.slices().iter().flat_map(|s| 0..s.tokens.len() as u64);
                    let tokens = batch.row_tokens(&[]).into_iter().zip(positions);
                    let rows = tokens.map(|(t, p)| mix(mix(salt, t as u64), p)).collect();
                    state.streams.insert(work.stream, rows);
                }
                Block::EncoderAttention { .. } => {
                    let mut rest = &mut state.streams.get_mut(&work.stream).expect("stream")[..];
                    for slice in batch.slices() {
                        let (rows, others) = rest.split_at_mut(slice.tokens.len());
                        let all = rows.iter().fold(salt, |h, x| mix(h, *x));
                        rows.iter_mut().for_each(|x| *x = mix(*x, all));
                        rest = others;
                    }
                }
                Block::EncoderHead { .. } => {
                    output = Some(head(&state.streams[&work.stream], batch, faults.nan));
                }
            }
        }
        if let Some(output) = &output {
            // Garbage where nothing was kept shows what is read too early.
            state.slots.resize(SLOTS, VOCAB as u32 - 1);
            output.kept(batch).for_each(|(slot, token)| state.slots[slot] = token);
        }
        if work.crossing.export {
            export(state, work);
        }
        Ok(output.filter(|_| !batch.outputs().is_empty()))
    }
}

/// A row that crosses is a hash in four 16-bit pieces.
fn import(state: &mut State, work: &Work) {
    let mut values = vec![0.0; work.batch.rows() * 4];
    state.shared[&work.stream].read(&mut values);
    let hash = |row: &[f32]| row.iter().enumerate().map(|(i, v)| (*v as u64) << (16 * i)).sum();
    state.memory.shared += values.len() as u64 * 4;
    state.streams.insert(work.stream, values.chunks(4).map(hash).collect());
}

fn export(state: &mut State, work: &Work) {
    let values: Vec<f32> = state.streams[&work.stream].iter().flat_map(pieces).collect();
    state.shared[&work.stream].write(&values);
}

fn pieces(x: &u64) -> [f32; 4] {
    [0, 16, 32, 48].map(|shift| (x >> shift & 0xFFFF) as f32)
}

fn head(x: &[u64], batch: &Batch, nan: bool) -> HeadOutput {
    let mut output = HeadOutput::default();
    for asked in batch.outputs() {
        let logit = |v: usize| (mix(x[asked.row as usize], v as u64) >> 40) as f32 / 2e6;
        let mut row: Vec<f32> = (0..VOCAB).map(|v| if nan { f32::NAN } else { logit(v) }).collect();
        asked.edits.apply(0, &mut row);
        match asked.select {
            Select::Logits => output.logits.extend(row),
            Select::Top(k) => output.top.push(top(&row, k)),
            Select::Hidden if nan => output.hidden.extend([f32::NAN; 4]),
            Select::Hidden => output.hidden.extend(pieces(&x[asked.row as usize])),
        }
    }
    output
}

fn attend(state: &mut State, work: &Work, block: u32, salt: u64, spec: StateSpec) {
    let layout = state.layout.clone().expect("state is reserved");
    assert_eq!(work.batch.limits().state.as_ref(), Some(&layout));
    let group = layout.group(spec).expect("the group is reserved");
    let x = state.streams.get_mut(&work.stream).expect("stream");
    assert_eq!(x.len(), work.batch.rows());
    let mut row = 0;
    for slice in work.batch.slices() {
        let (start, end) = (slice.start as usize, slice.end());
        let table = &slice.tables[group];
        let place = |p: usize| ((block, table[p / layout.page_tokens]), p % layout.page_tokens);
        for p in start..end {
            let (key, slot) = place(p);
            let page = state.kv.entry(key).or_insert_with(|| vec![0xBAD; layout.page_tokens]);
            page[slot] = mix(x[row + p - start], p as u64);
        }
        for p in start..end {
            let seen = |q: usize| state.kv.get(&place(q).0).map_or(0xBAD, |page| page[place(q).1]);
            let sum = (spec.first_seen(p)..=p).fold(salt, |h, q| mix(h, seen(q)));
            x[row] = mix(x[row], sum);
            row += 1;
        }
    }
}

/// A hash of all rows so far: a state of one word, in the first slot of a page.
fn fold(state: &mut State, work: &Work, block: u32, salt: u64, spec: StateSpec) {
    let layout = state.layout.clone().expect("state is reserved");
    assert_eq!(work.batch.limits().state.as_ref(), Some(&layout));
    let group = layout.group(spec).expect("the group is reserved");
    let x = state.streams.get_mut(&work.stream).expect("stream");
    let mut rows = x.iter_mut();
    for slice in work.batch.slices() {
        let read = |page| state.kv.get(&(block, page)).map_or(0xBAD, |page| page[0]);
        let mut all = slice.state_before(group).map_or(salt, read);
        let mut writes = slice.states_after(group).peekable();
        for (i, x) in rows.by_ref().take(slice.tokens.len()).enumerate() {
            all = mix(all, *x);
            *x = mix(*x, all);
            if let Some((_, page)) = writes.next_if(|w| w.0 == i + 1) {
                state.kv.insert((block, page), vec![all]);
            }
        }
    }
}

/// Words of a page: a hash for each position, or one for a state.
fn page_len(spec: StateSpec, layout: &StateLayout) -> usize {
    if spec.is_recurrent() { 1 } else { layout.page_tokens }
}

/// A hash for each position and mixer.
fn kv_bytes(block: &Block, layout: &StateLayout) -> u64 {
    block.state().map_or(0, |spec| (layout.pages(spec) * page_len(spec, layout) * 8) as u64)
}

fn top(logits: &[f32], k: usize) -> Vec<TopEntry> {
    let mut all: Vec<TopEntry> =
        logits.iter().enumerate().map(|(i, &logit)| TopEntry { token: i as u32, logit }).collect();
    all.retain(TopEntry::is_choosable);
    all.sort_by(TopEntry::rank);
    all.truncate(k);
    all
}

impl Device for FakeDevice {
    fn profile(&self) -> &DeviceProfile {
        &self.inner.profile
    }

    fn needs(&self, blocks: &[&Block], workload: &Workload) -> Result<MemoryNeed, DeviceError> {
        let lacks = self.inner.state().faults.lacks;
        if let Some(ty) = blocks.iter().flat_map(|b| b.weights()).map(|w| w.ty).find(|ty| Some(*ty) == lacks)
        {
            return Err(DeviceError::NoKernel {
                device: self.inner.profile.name.clone(),
                op: "fake".into(),
                ty,
            });
        }
        let weights = blocks.iter().flat_map(|b| b.weights()).map(|w| w.span.bytes).sum();
        let kv = blocks.iter().map(|b| kv_bytes(b, &workload.layout)).sum();
        Ok(MemoryNeed { weights, kv, ..MemoryNeed::default() })
    }

    fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError> {
        let mut state = self.inner.state();
        if state.faults.load == Some(state.blocks.iter().flatten().count()) {
            return Err(self.inner.failed("load"));
        }
        for weight in block.weights() {
            let read = source.read(&weight.span, 0, &mut [0u8; 4]);
            read.map_err(|source| DeviceError::Weight { tensor: weight.name.clone(), source })?;
        }
        state.blocks.push(Some(block.clone()));
        Ok(BlockId(state.blocks.len() as u32 - 1))
    }

    fn unload(&self, block: BlockId) {
        self.inner.state().blocks[block.0 as usize] = None;
    }

    fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
        let mut state = self.inner.state();
        state.layout = Some(layout.clone());
        state.kv.clear();
        Ok(())
    }

    fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError> {
        self.inner.state().shared.insert(stream, residual.clone());
        Ok(Sharing::Copied)
    }

    fn submit(&self, work: Work) {
        let (inner, worker) = (self.inner.clone(), self.worker.clone());
        Fence::all(&work.after.clone(), None, move |outcome| match outcome {
            Err(source) => work.done.give(Err(Arc::new(inner.dependency(source)))),
            Ok(()) => inner.ready(Job::Work(work), worker),
        });
    }

    fn copy_state(&self, copy: StateCopy) {
        let (inner, worker) = (self.inner.clone(), self.worker.clone());
        Fence::all(&copy.after.clone(), None, move |outcome| match outcome {
            Err(source) => copy.done.give(Err(Arc::new(inner.dependency(source)))),
            Ok(()) => match inner.late(&copy) {
                None => inner.ready(Job::Copy(copy), worker),
                Some(time) => drop(std::thread::spawn(move || inner.copy_late(copy, time))),
            },
        });
    }

    fn memory(&self) -> MemoryUse {
        let state = self.inner.state();
        let blocks = || state.blocks.iter().flatten();
        let weights = blocks().flat_map(|b| b.weights()).map(|w| w.span.bytes).sum();
        let kv = state.layout.as_ref().map_or(0, |layout| blocks().map(|b| kv_bytes(b, layout)).sum());
        MemoryUse { weights, kv, ..state.memory }
    }

    fn describe(&self, block: BlockId) -> Vec<String> {
        let kind = self.inner.state().blocks[block.0 as usize].as_ref().map(Block::kind);
        vec![format!("{kind:?} fake")]
    }
}

impl Instrument for FakeDevice {
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

    fn set_profiling(&self, _: bool) {}

    fn kernel_times(&self) -> Vec<KernelTime> {
        vec![]
    }
}

/// [`ZeroWeights`] as devices take them.
pub fn zero_weights() -> Arc<dyn WeightSource> {
    Arc::new(ZeroWeights)
}

/// An engine with a tiny model on one plain fake device.
pub fn engine_of(options: crate::EngineOptions) -> crate::Engine {
    engine_on(FakeDevice::plain(), options)
}

pub fn engine_on(device: Arc<FakeDevice>, options: crate::EngineOptions) -> crate::Engine {
    engine_with(&tiny_spec(2), device, options)
}

pub fn engine_with(
    spec: &ModelSpec,
    device: Arc<FakeDevice>,
    options: crate::EngineOptions,
) -> crate::Engine {
    let placement = crate::Placement::single(spec).unwrap();
    crate::Engine::new(spec, &zero_weights(), vec![device], placement, options, &mut |_| {}).unwrap()
}
