//! Timing a device once, with blocks of random weights in shapes that no known model has.
//!
//! Blocks of two sizes tell what grows with the weights from what each block costs anyway. Their weights together are larger than caches,
//! as those of a model are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use unicorn_cases::shapes::{self, Shape};
use unicorn_cases::synthetic::SyntheticSource;
use unicorn_core::{
    Batch, BatchLimits, Block, BlockId, BlockKind, CompletionQueue, Crossing, DeviceError, DeviceProfile,
    Instrument, KvType, ModelSpec, OutputRow, Roofline, Select, SequenceId, SharedBuffer, Slice, StateLayout,
    StreamId, TensorType, WeightSource, Work,
};

use unicorn_engine::planner::{Curve, Origin};

use super::figures::{Calibration, Points};

/// Numbers of rows that are timed. A vector path ends at 8 rows on some devices; 512 are a whole chunk of a prompt.
const ROWS: [usize; 6] = [1, 4, 8, 32, 128, 512];
/// Positions before the tokens of a sequence when attention is timed.
const PAST: usize = 1024;
/// Weights of one size together, on a device that shares the host's memory: for each of its workers, at least, and at most.
const POOL_WORKER_BYTES: u64 = 48 << 20;
const POOL_BYTES_MIN: u64 = 192 << 20;
const POOL_BYTES_MAX: u64 = 1 << 30;
/// On a device with memory of its own, whose caches hold some 100 MB.
const POOL_BYTES_APART: u64 = 768 << 20;
/// Blocks of one submission at most.
const BLOCKS_MAX: usize = 64;
/// A row count is left out where it is expected to take longer than this; the curve goes on from what was timed.
const ONE_SECONDS_MAX: f64 = 0.7;
/// A measurement is repeated until it has taken this long, but not more often than a few times.
const ENOUGH: Duration = Duration::from_millis(60);
const REPETITIONS: usize = 8;
/// Rows of which a card's clock may not last, and for how long they are run then.
const TIRING_ROWS: usize = 32;
const ENOUGH_TO_TIRE: Duration = Duration::from_millis(160);
/// What takes longer than this is not timed again.
const AGAIN: Duration = Duration::from_millis(1500);

const LARGE: Shape = Shape {
    name: "large",
    width: 2048,
    hidden: 5632,
    layers: 1,
    heads: 16,
    kv_heads: 4,
    vocab: 65_536,
    tied: false,
};
/// [`LARGE`] where memory is the device's own: so fast a device is still ramping up when the products of that one end.
const LARGE_APART: Shape =
    Shape { name: "large", width: 4096, hidden: 12_288, heads: 32, kv_heads: 8, ..LARGE };
const SMALL: Shape = Shape {
    name: "small",
    width: 512,
    hidden: 1280,
    layers: 1,
    heads: 8,
    kv_heads: 2,
    vocab: 4096,
    tied: false,
};

/// For heads: the rows of small models are short, and there are many of them.
const HEAD: Shape = Shape { name: "head", vocab: 131_072, ..SMALL };

const STREAM: StreamId = StreamId(0);
const PAGE_TOKENS: usize = 64;
/// Streams that cross faster than this cross at no cost.
const CROSSING_MAX: f64 = 1e13;

/// Times what is missing in `known` for these types of weights. The first of them is taken for everything that does not depend on the type.
///
/// Errors when the device has no kernel for one of them, or fails.
pub fn calibrate(
    device: &dyn Instrument,
    roof: &Roofline,
    known: Option<Calibration>,
    types: &[TensorType],
) -> Result<Calibration, DeviceError> {
    let mut types = types.iter().copied();
    let mut calibration = match known {
        Some(known) => known,
        None => match types.next() {
            Some(ty) => whole(device, roof, ty)?,
            None => Calibration::default(),
        },
    };
    for ty in types {
        if calibration.products.contains_key(ty.name()) {
            continue;
        }
        let products = products(device, ty, &calibration.ffn)?;
        let logit = logit(device, ty, &products)?;
        calibration.products.insert(ty.name().to_owned(), products);
        calibration.logits.insert(ty.name().to_owned(), logit);
    }
    Ok(calibration)
}

/// Seconds per element of a matrix of this type, where it is known what an ffn takes beside its products.
fn products(device: &dyn Instrument, ty: TensorType, beside: &Points) -> Result<Points, DeviceError> {
    let large = Bench::new(device, large(device), ty, &[BlockKind::Ffn])?;
    let elements = large.elements(BlockKind::Ffn);
    let curve = Curve::new(beside, Origin::Measured);
    let beside = |rows: usize| curve.as_ref().map_or(0.0, |curve| curve.at(rows));
    let [times] = large.over_rows([BlockKind::Ffn])?;
    Ok(times.iter().map(|(rows, seconds)| (*rows, (seconds - beside(*rows)).max(0.0) / elements)).collect())
}

/// Everything, with weights of one type.
fn whole(device: &dyn Instrument, roof: &Roofline, ty: TensorType) -> Result<Calibration, DeviceError> {
    let kinds = [BlockKind::Mixer, BlockKind::Ffn];
    let small = Bench::new(device, &SMALL, ty, &kinds)?;
    let [small_ffn, small_mixer] = small.over_rows([BlockKind::Ffn, BlockKind::Mixer])?;
    let latency = small.latency()?;
    let [few, small_mixers] = [BlockKind::Ffn, BlockKind::Mixer].map(|kind| small.elements(kind));
    drop(small);
    let large = Bench::new(device, large(device), ty, &kinds)?;
    let [large_ffn] = large.over_rows([BlockKind::Ffn])?;
    let many = large.elements(BlockKind::Ffn);
    let attention = large.attention()?;
    let (crossing_seconds, crossing_bytes_per_second) = large.crossing()?;
    drop(large);
    let (mut products, mut ffn, mut mixer) = (Points::new(), Points::new(), Points::new());
    for ((rows, large), (_, small)) in large_ffn.iter().zip(&small_ffn) {
        // Two sizes, two unknowns: what each element takes and what the block takes anyway.
        let each = ((large - small) / (many - few)).clamp(0.0, large / many);
        products.push((*rows, each));
        ffn.push((*rows, (small - few * each).max(0.0)));
    }
    let scores = |rows: usize| {
        let flops = 4 * (rows * (rows + 1) / 2) * SMALL.width;
        let each = attention.iter().rev().find(|a| a.0 <= rows).or(attention.first()).map_or(0.0, |a| a.1);
        flops as f64 * each
    };
    for ((rows, seconds), (_, each)) in small_mixer.iter().zip(&products) {
        mixer.push((*rows, (seconds - small_mixers * each - scores(*rows)).max(0.0)));
    }
    let logit = logit(device, ty, &products)?;
    Ok(Calibration {
        read_bytes_per_second: roof.read_bytes_per_second,
        products: [(ty.name().to_owned(), products)].into(),
        attention,
        mixer,
        ffn,
        logits: [(ty.name().to_owned(), logit)].into(),
        latency_seconds: latency,
        crossing_seconds,
        crossing_bytes_per_second,
    })
}

/// Seconds per logit of a head that gives the best token of one row, beside its product.
fn logit(device: &dyn Instrument, ty: TensorType, products: &Points) -> Result<f64, DeviceError> {
    let bench = Bench::new(device, &HEAD, ty, &[BlockKind::Head])?;
    let seconds = bench.time(BlockKind::Head, 1, 0, true, Crossing::default())?;
    let product = bench.elements(BlockKind::Head) * products.first().map_or(0.0, |p| p.1);
    Ok((seconds - product).max(0.0) / HEAD.vocab as f64)
}

/// Blocks of one shape on a device, with room for a batch of them. Gone from the device when dropped.
struct Bench<'a> {
    device: &'a dyn Instrument,
    queue: CompletionQueue,
    shape: &'static Shape,
    spec: ModelSpec,
    blocks: Vec<(BlockKind, BlockId)>,
    limits: Arc<BatchLimits>,
    residual: Arc<SharedBuffer>,
}

fn large(device: &dyn Instrument) -> &'static Shape {
    if device.profile().unified_memory { &LARGE } else { &LARGE_APART }
}

/// Weights of one size together: more than caches hold, and a small part of the memory.
fn pool_bytes(profile: &DeviceProfile) -> u64 {
    let wanted = match profile.unified_memory {
        true => (POOL_WORKER_BYTES * profile.workers as u64).clamp(POOL_BYTES_MIN, POOL_BYTES_MAX),
        false => POOL_BYTES_APART,
    };
    wanted.min(profile.memory_bytes / 8)
}

impl<'a> Bench<'a> {
    /// Loads as many blocks of these kinds as no cache holds; of heads only one.
    fn new(
        device: &'a dyn Instrument,
        shape: &'static Shape,
        ty: TensorType,
        kinds: &[BlockKind],
    ) -> Result<Bench<'a>, DeviceError> {
        let one = shapes::of(shape, ty);
        let bytes = |b: &Block| b.weights().iter().map(|w| w.span.bytes).sum::<u64>();
        let layer: u64 = one.blocks.iter().filter(|b| kinds.contains(&b.kind())).map(bytes).sum();
        let layers = (pool_bytes(device.profile()) / layer.max(1)).clamp(2, 256) as usize;
        let spec = shapes::of(&Shape { layers, ..*shape }, ty);
        let out_of_memory = || DeviceError::OutOfMemory {
            device: "host".into(),
            what: "a residual stream".into(),
            requested: (ROWS[ROWS.len() - 1] * shape.width * 4) as u64,
            free: 0,
        };
        let residual = SharedBuffer::new(ROWS[ROWS.len() - 1], shape.width).ok_or_else(out_of_memory)?;
        let positions = PAST + ROWS[ROWS.len() - 1];
        let layout = StateLayout::paged(PAGE_TOKENS, positions / PAGE_TOKENS, positions, KvType::F16);
        let mut bench = Bench {
            device,
            queue: CompletionQueue::new(),
            shape,
            blocks: Vec::new(),
            limits: Arc::new(BatchLimits { vocab: shape.vocab, state: Some(layout.clone()) }),
            residual: Arc::new(residual),
            spec,
        };
        device.reserve(&layout)?;
        let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(7));
        for block in bench.spec.blocks.iter().filter(|b| kinds.contains(&b.kind())) {
            bench.blocks.push((block.kind(), device.load(block, &source)?));
        }
        device.reserve(&layout)?;
        device.attach(STREAM, &bench.residual)?;
        let noise = |i: usize| ((i * 2_654_435_761 % 4096) as f32 - 2048.0) / 1024.0;
        let values: Vec<f32> = (0..bench.residual.rows() * shape.width).map(noise).collect();
        bench.residual.write(&values);
        Ok(bench)
    }

    /// Elements of the matrices of a block.
    fn elements(&self, kind: BlockKind) -> f64 {
        let block = self.spec.blocks.iter().find(|b| b.kind() == kind);
        let weights = block.map_or(Vec::new(), |b| b.weights());
        weights.iter().filter(|w| w.rows > 1).map(|w| w.elements() as f64).sum()
    }

    fn batch(&self, rows: usize, past: usize, read: bool) -> Result<Arc<Batch>, DeviceError> {
        let pages = (past + rows).div_ceil(PAGE_TOKENS) as u32;
        let tables = vec![(0..pages).collect()];
        let (sequence, tokens, snapshots) = (SequenceId(0), vec![0; rows], Vec::new());
        let slice = Slice { sequence, tokens, start: past as u32, tables, snapshots, slot: None };
        let outputs = read.then_some(OutputRow::new(rows as u32 - 1, Select::Top(1))).into_iter().collect();
        let batch = Batch::new(vec![slice], outputs, &self.limits);
        batch.map(Arc::new).map_err(|e| DeviceError::Invalid {
            device: self.device.profile().name.clone(),
            what: e.to_string(),
        })
    }

    /// Seconds from submission until the end is known.
    fn once(&self, blocks: &[BlockId], batch: &Arc<Batch>, crossing: Crossing) -> Result<f64, DeviceError> {
        // As the engine waits.
        let awake = if self.device.profile().wait_awake { Duration::from_millis(10) } else { Duration::ZERO };
        let (blocks, batch, done) = (blocks.to_vec(), batch.clone(), self.queue.signal(0));
        let start = Instant::now();
        self.device.submit(Work { stream: STREAM, blocks, batch, crossing, after: Vec::new(), done });
        let ended = self.queue.next_awake(awake);
        let seconds = start.elapsed().as_secs_f64();
        ended.result.map_err(DeviceError::Reported)?;
        Ok(seconds)
    }

    /// Seconds of these blocks in one submission, after two that bring the residual stream in and warm up. The least of some, since whatever
    /// disturbs only lengthens; but a card with memory of its own lowers its clock after some time of work on many rows, which is what a
    /// prompt then meets: there it is the median of what comes later.
    fn several(
        &self,
        blocks: &[BlockId],
        batch: &Arc<Batch>,
        crossing: Crossing,
    ) -> Result<f64, DeviceError> {
        self.once(blocks, batch, Crossing { import: true, export: crossing.export })?;
        let tires = !self.device.profile().unified_memory && batch.rows() >= TIRING_ROWS;
        let (enough, most) = if tires { (ENOUGH_TO_TIRE, usize::MAX) } else { (ENOUGH, REPETITIONS) };
        let start = Instant::now();
        let mut times = vec![self.once(blocks, batch, crossing)?];
        // What takes long needs no repetition: little is in the way of it for all that time.
        while times.len() < most && times[0] <= ONE_SECONDS_MAX / 2.0 && start.elapsed() <= enough {
            times.push(self.once(blocks, batch, crossing)?);
        }
        let mut later = times.split_off(if tires { times.len() / 2 } else { 0 });
        later.sort_unstable_by(f64::total_cmp);
        Ok(later[if tires { later.len() / 2 } else { 0 }])
    }

    fn ids(&self, kind: BlockKind) -> Vec<BlockId> {
        self.blocks.iter().filter(|b| b.0 == kind).map(|b| b.1).collect()
    }

    /// Seconds of one block of a kind.
    fn time(
        &self,
        kind: BlockKind,
        rows: usize,
        past: usize,
        read: bool,
        crossing: Crossing,
    ) -> Result<f64, DeviceError> {
        let all = self.ids(kind);
        let batch = self.batch(rows, past, read)?;
        let one = self.several(&all[..1.min(all.len())], &batch, crossing)?;
        // Nothing comes behind a head.
        if kind == BlockKind::Head {
            return Ok(one);
        }
        // As many as there is time for, all in turn, so that no cache holds what comes next.
        let wanted = ((ENOUGH.as_secs_f64() / one.max(1e-9)) as usize).clamp(1, BLOCKS_MAX);
        if wanted < 4 {
            let few = &all[..wanted.clamp(1, all.len().max(1)).min(all.len())];
            return if few.len() < 2 {
                Ok(one)
            } else {
                Ok(self.several(few, &batch, crossing)? / few.len() as f64)
            };
        }
        let blocks: Vec<BlockId> = all.iter().copied().cycle().take(wanted).collect();
        let half = wanted / 2;
        // What a submission takes beside its blocks is in both.
        let [part, whole] =
            [&blocks[..half], &blocks[..]].map(|blocks| self.several(blocks, &batch, crossing));
        let (part, whole) = (part?, whole?);
        let each = (whole - part) / (wanted - half) as f64;
        // Where something disturbed the shorter one, the mean says more.
        Ok(if each > 0.0 { each.min(whole / wanted as f64) } else { whole / wanted as f64 })
    }

    /// Seconds of one block of each kind for each number of rows. All are timed twice, one after the other, unless that takes long: what
    /// disturbs comes and goes.
    fn over_rows<const N: usize>(&self, kinds: [BlockKind; N]) -> Result<[Points; N], DeviceError> {
        let mut points = [const { Points::new() }; N];
        let start = Instant::now();
        for (points, kind) in points.iter_mut().zip(kinds) {
            for rows in ROWS {
                let expected =
                    points.last().map_or(0.0, |(before, seconds)| seconds * rows as f64 / *before as f64);
                if rows > 8 && expected > ONE_SECONDS_MAX {
                    break;
                }
                points.push((rows, self.time(kind, rows, 0, false, Crossing::default())?));
            }
        }
        if start.elapsed() > AGAIN {
            return Ok(points);
        }
        for (points, kind) in points.iter_mut().zip(kinds) {
            for (rows, seconds) in points.iter_mut().filter(|p| p.1 < ONE_SECONDS_MAX / 4.0) {
                *seconds = seconds.min(self.time(kind, *rows, 0, false, Crossing::default())?);
            }
        }
        Ok(points)
    }

    /// Seconds of a submission beside its work: what a small block takes more alone than as one of several.
    fn latency(&self) -> Result<f64, DeviceError> {
        const SEVERAL: usize = 9;
        let all = self.ids(BlockKind::Ffn);
        let batch = self.batch(1, 0, false)?;
        let least = |blocks: &[BlockId]| -> Result<f64, DeviceError> {
            let mut least = self.several(blocks, &batch, Crossing::default())?;
            let start = Instant::now();
            while start.elapsed() < ENOUGH / 2 {
                least = least.min(self.once(blocks, &batch, Crossing::default())?);
            }
            Ok(least)
        };
        let [one, several] = [least(&all[..1.min(all.len())])?, least(&all[..SEVERAL.min(all.len())])?];
        let each = (several - one) / (SEVERAL - 1) as f64;
        Ok((one - each).max(0.0))
    }

    /// Seconds per operation of attention: what tokens take more with positions before them than without.
    fn attention(&self) -> Result<Points, DeviceError> {
        let mut points = Points::new();
        for tokens in [1, 32, 256] {
            let time = |past| self.time(BlockKind::Mixer, tokens, past, false, Crossing::default());
            let seconds = time(PAST)? - time(0)?;
            let flops = 4 * tokens * PAST * self.shape.width;
            points.push((tokens, (seconds / flops as f64).max(0.0)));
            if seconds > ONE_SECONDS_MAX / 4.0 {
                break;
            }
        }
        Ok(points)
    }

    /// Seconds that coming in and going out take, and bytes a second.
    fn crossing(&self) -> Result<(f64, f64), DeviceError> {
        let ids = self.ids(BlockKind::Ffn);
        let one = &ids[..1.min(ids.len())];
        let (few, many) = (1, ROWS[ROWS.len() - 2]);
        let hop = |rows: usize| -> Result<f64, DeviceError> {
            let batch = self.batch(rows, 0, false)?;
            let both = Crossing { import: true, export: true };
            let apart = self.several(one, &batch, Crossing::default())?;
            Ok(((self.several(one, &batch, both)? - apart) / 2.0).max(0.0))
        };
        let [least, most] = [hop(few)?, hop(many)?];
        let bytes = ((many - few) * self.shape.width * 4) as f64;
        Ok((least, (bytes / (most - least).max(1e-12)).min(CROSSING_MAX)))
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        self.blocks.iter().for_each(|(_, id)| self.device.unload(*id));
    }
}
