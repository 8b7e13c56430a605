//! The device seam: one compute unit behind an object-safe trait.

use std::sync::Arc;

use crate::{
    Batch, Block, CompletionQueue, DeviceError, Fence, HeadOutput, MemoryNeed, MemoryRoom, PageId,
    SharedBuffer, Signal, StateLayout, TensorType, WeightSource, Workload,
};

/// Kind of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceKind {
    /// Processor cores.
    Cpu,
    /// A GPU through Vulkan.
    Vulkan,
    /// A neural processing unit.
    Npu,
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Vulkan => "vulkan",
            DeviceKind::Npu => "npu",
        })
    }
}

/// What a device is, known without running anything.
#[derive(Clone, Debug)]
pub struct DeviceProfile {
    /// Name on the command line, for example `cpu`.
    pub name: String,
    /// Kind.
    pub kind: DeviceKind,
    /// For people, for example the processor's brand string.
    pub description: String,
    /// Memory the device can use, in bytes.
    pub memory_bytes: u64,
    /// True where the host's memory is the device's memory.
    pub unified_memory: bool,
    /// True where the host's cores do its work: processors, and software drivers in the place of a GPU.
    pub on_host: bool,
    /// Concurrent workers: threads of a CPU, compute units of a GPU.
    pub workers: usize,
    /// Results may come sooner than a sleeping thread wakes, and the host's cores have nothing else to do: who waits stays awake.
    pub wait_awake: bool,
    /// Instruction sets or extensions that kernels were selected by.
    pub features: Vec<String>,
}

/// Which arithmetic rate bounds a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RateKind {
    /// Integer dot products.
    Integer,
    /// Floating-point multiply-adds.
    Float,
    /// Multiply-adds of matrix units.
    Matrix,
}

impl std::fmt::Display for RateKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            RateKind::Integer => "integer",
            RateKind::Float => "float",
            RateKind::Matrix => "matrix",
        })
    }
}

/// Measured limits of a device.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Roofline {
    /// Bytes per second when reading memory larger than every cache.
    pub read_bytes_per_second: f64,
    /// Integer multiply and add operations per second (two per multiply-add).
    pub integer_ops_per_second: f64,
    /// Floating-point operations per second (two per multiply-add).
    pub float_ops_per_second: f64,
    /// Operations per second of matrix units, f16 products summed in f32; `None` where there are none or nothing uses them.
    pub matrix_ops_per_second: Option<f64>,
    /// Bytes read plus bytes written per second when copying within the device's memory; `None` where it was not measured.
    pub copy_bytes_per_second: Option<f64>,
}

impl Roofline {
    /// The rate that bounds kernels of this kind, operations per second.
    pub fn rate(&self, kind: RateKind) -> f64 {
        match kind {
            RateKind::Integer => self.integer_ops_per_second,
            RateKind::Float => self.float_ops_per_second,
            RateKind::Matrix => self.matrix_ops_per_second.unwrap_or(self.float_ops_per_second),
        }
    }

    /// The fastest rate at which a product can be done whose kernels are bound by `kind` or use matrix units.
    pub fn best_rate(&self, kind: RateKind) -> f64 {
        self.rate(kind).max(self.matrix_ops_per_second.unwrap_or(0.0))
    }
}

/// How a device is to choose its kernels. The default suits everyone; the rest is for measuring and for drivers with faults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceOptions {
    /// Gate, up, activation and multiply of a feed-forward block in one kernel where there is one; otherwise each on its own.
    pub fused_ffn: bool,
    /// Kernels never to run, as [`KernelTime::kernel`] names them. Another one takes their place, or loading fails.
    pub avoid: Vec<String>,
    /// A sequence's results never depend on what it is batched with, on how its prompt is cut or on which blocks are submitted together. A
    /// device where that holds anyway takes this and changes nothing; elsewhere it costs speed.
    pub batch_invariant: bool,
}

impl Default for DeviceOptions {
    fn default() -> DeviceOptions {
        DeviceOptions { fused_ffn: true, avoid: Vec::new(), batch_invariant: false }
    }
}

/// A block loaded on a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockId(pub u32);

/// A residual stream `f32 [rows, width]` that a device owns. Independent streams may be in flight at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamId(pub u32);

/// Consecutive blocks to run over one batch.
pub struct Work {
    /// Residual stream to read and write. An embedding block writes it anew.
    pub stream: StreamId,
    /// Blocks in order, all on this device.
    pub blocks: Vec<BlockId>,
    /// The batch.
    pub batch: Arc<Batch>,
    /// Which ways the residual stream crosses.
    pub crossing: Crossing,
    /// Work that must have ended well before this starts. Earlier work on the same stream of the same device always comes first.
    pub after: Vec<Fence>,
    /// Given when the work has ended, with what a head block at its end produced.
    pub done: Signal,
}

/// Whether a residual stream comes from another device, and whether one is waiting for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Crossing {
    /// Another device wrote it: it is in the stream's shared buffer.
    pub import: bool,
    /// Another device goes on with it: it has to be in the stream's shared buffer when the work ends.
    pub export: bool,
}

/// Pages of one mixer's state to copy.
///
/// On the host a page is a row of [`crate::AttentionSpec::page_words`] words: all keys, then all values, each `[kv head][position][head_dim]` as
/// stored; with `Q8_0` a head has the bytes of all its positions first and then their scales, f16 `[position][head_dim / 32]`.
pub struct StateCopy {
    /// Whose pages.
    pub mixer: BlockId,
    /// The pages: the `i`-th is row `i` on the host.
    pub pages: Vec<PageId>,
    /// From where to where.
    pub way: StateWay,
    /// Work and copies that must have ended well before this starts.
    pub after: Vec<Fence>,
    /// Given when the pages are copied.
    pub done: Signal,
}

/// The way of a copy of state.
#[derive(Clone)]
pub enum StateWay {
    /// From the device to the host.
    Save(Arc<SharedBuffer>),
    /// From the host to the device.
    Restore(Arc<SharedBuffer>),
}

/// How a device uses a stream's shared buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// Blocks read and write it where it is.
    InPlace,
    /// The device copies from it and to it.
    Copied,
}

/// Memory that a device holds, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryUse {
    /// Weights.
    pub weights: u64,
    /// KV cache, as reserved.
    pub kv: u64,
    /// Everything else.
    pub scratch: u64,
    /// Bytes that were copied from one memory to another since the device was opened: weights on their way in, residual streams and pages
    /// of state that cross, outputs on their way out. Each copy counts once.
    pub copied: u64,
    /// Bytes of residual streams that crossed to this device without a copy.
    pub shared: u64,
}

/// Time spent in one kernel since profiling was switched on.
#[derive(Clone, PartialEq, Debug)]
pub struct KernelTime {
    /// Kernel name with its variant, for example `ffn_gate_up q4_k avx2`.
    pub kernel: String,
    /// Calls.
    pub calls: u64,
    /// Seconds in all.
    pub seconds: f64,
    /// Bytes of weights and KV read.
    pub bytes: u64,
    /// Arithmetic operations.
    pub flops: u64,
    /// The rate that bounds it.
    pub rate: RateKind,
}

/// One compute unit: what runs a model. Implementations are internally synchronized: any method may be called from any thread.
pub trait Device: Send + Sync {
    /// What the device is.
    fn profile(&self) -> &DeviceProfile;

    /// The memory that the device will take at most for these blocks and the largest work on them. Nothing is read and nothing is kept.
    ///
    /// Errors when loading or reserving would: a block contradicts itself or a kernel is missing.
    fn needs(&self, blocks: &[&Block], workload: &Workload) -> Result<MemoryNeed, DeviceError>;

    /// Reads a block's weights from `source` into the form that the kernels want. Weights with equal spans are kept once, as long as
    /// they come from the same source: one device serves one model at a time.
    ///
    /// Errors when the block contradicts itself, a kernel is missing, memory is short, or a read fails; nothing is kept then.
    fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError>;

    /// Frees a block, its state and the weights that nothing else uses.
    fn unload(&self, block: BlockId);

    /// Gives every loaded mixer the pages of its state group. Earlier content is lost.
    fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError>;

    /// Lets a stream cross to other devices and back through `residual`. Takes the place of an earlier buffer of the stream.
    ///
    /// Errors when work on the stream is under way or memory is short.
    fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError>;

    /// What copies residual streams that cross, for people; `None` where nothing copies, or nothing worth a word.
    fn crosses_by(&self) -> Option<String> {
        None
    }

    /// Starts work as soon as what it waits for has ended, in the order in which work becomes ready. Never waits for work itself, of this
    /// device or another. Every failure, a wrong request included, arrives through [`Work::done`].
    ///
    /// The batch must have been made for the reserved layout. A stream takes another batch once all work on the one before has ended.
    fn submit(&self, work: Work);

    /// Copies pages of state, as [`Device::submit`] starts work. No other work or copy that writes these pages may be under way, and none that
    /// reads them where the copy writes them.
    fn copy_state(&self, copy: StateCopy);

    /// Memory held now.
    fn memory(&self) -> MemoryUse;

    /// The kernels selected for a loaded block, one line each.
    fn describe(&self, block: BlockId) -> Vec<String>;
}

/// A device that can be measured, configured and profiled. What runs a model needs none of this.
pub trait Instrument: Device {
    /// Measures the device's limits; takes up to a second.
    fn measure(&self) -> Result<Roofline, DeviceError>;

    /// What can still be had of the device's memory; `None` where that is the host's, or nobody tells.
    fn room(&self) -> Option<MemoryRoom> {
        None
    }

    /// The rate that bounds matrix products with weights of this type here.
    fn rate_kind(&self, ty: TensorType) -> RateKind;

    /// Sets how kernels are chosen, for blocks loaded already too.
    ///
    /// Errors when the device has no such choice; nothing changes then.
    fn configure(&self, options: &DeviceOptions) -> Result<(), DeviceError> {
        let what = if !options.fused_ffn {
            "running the parts of a feed-forward block apart".to_owned()
        } else if let Some(kernel) = options.avoid.first() {
            format!("avoiding the kernel `{kernel}`")
        } else {
            return Ok(());
        };
        Err(DeviceError::Unsupported { device: self.profile().name.clone(), what })
    }

    /// Switches per-kernel timing on or off and clears it.
    fn set_profiling(&self, on: bool);

    /// Per-kernel times since [`Instrument::set_profiling`].
    fn kernel_times(&self) -> Vec<KernelTime>;
}

/// Runs blocks over a batch and waits for the end: for tests, measurements and tools that have one thing to do at a time.
pub fn run_to_end(
    device: &dyn Device,
    stream: StreamId,
    blocks: &[BlockId],
    batch: &Arc<Batch>,
    crossing: Crossing,
) -> Result<Option<HeadOutput>, DeviceError> {
    let queue = CompletionQueue::new();
    let done = queue.signal(0);
    let (blocks, batch) = (blocks.to_vec(), batch.clone());
    device.submit(Work { stream, blocks, batch, crossing, after: Vec::new(), done });
    queue.next().result.map_err(|e| Arc::try_unwrap(e).unwrap_or_else(DeviceError::Reported))
}
