//! The device seam: one compute unit behind an object-safe trait.

use std::sync::Arc;

use crate::{Batch, Block, DeviceError, HeadOutput, TensorType, WeightSource};

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
    /// Concurrent workers: threads of a CPU, compute units of a GPU.
    pub workers: usize,
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

/// Element type of the KV cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[allow(missing_docs)]
pub enum KvType {
    F32,
    #[default]
    F16,
    Q8_0,
}

impl KvType {
    /// Parses `f32`, `f16` or `q8_0`, in any case.
    pub fn parse(name: &str) -> Option<KvType> {
        [KvType::F32, KvType::F16, KvType::Q8_0]
            .into_iter()
            .find(|t| t.tensor_type().name().eq_ignore_ascii_case(name))
    }

    /// The equivalent tensor type.
    pub fn tensor_type(self) -> TensorType {
        match self {
            KvType::F32 => TensorType::F32,
            KvType::F16 => TensorType::F16,
            KvType::Q8_0 => TensorType::Q8_0,
        }
    }
}

/// Geometry of the KV cache, the same for every mixer on every device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvLayout {
    /// Positions per page; a multiple of 32.
    pub page_tokens: usize,
    /// Pages in the pool.
    pub pages: usize,
    /// Positions of one sequence, at most.
    pub positions: usize,
    /// Element type.
    pub ty: KvType,
}

/// A block loaded on a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockId(pub u32);

/// A residual stream `f32 [rows, width]` that a device owns. Independent streams may be in flight at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamId(pub u32);

/// Names submitted work until it was waited for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ticket(pub u64);

/// Consecutive blocks to run over one batch.
#[derive(Clone, Debug)]
pub struct Work {
    /// Residual stream to read and write. An embedding block writes it anew.
    pub stream: StreamId,
    /// Blocks in order, all on this device.
    pub blocks: Vec<BlockId>,
    /// The batch.
    pub batch: Arc<Batch>,
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
    /// Bytes copied between memories since the device was opened, loading included.
    pub copied: u64,
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

/// One compute unit. Implementations are internally synchronized: any method may be called from any thread.
pub trait Device: Send + Sync {
    /// What the device is.
    fn profile(&self) -> &DeviceProfile;

    /// Measures the device's limits; takes up to a second.
    fn measure(&self) -> Result<Roofline, DeviceError>;

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

    /// Reads a block's weights from `source` into the form that the kernels want. Weights with equal spans are kept once, as long as
    /// they come from the same source: one device serves one model at a time.
    ///
    /// Errors when a kernel is missing, memory is short, or a read fails; nothing is kept then.
    fn load(&self, block: &Block, source: &dyn WeightSource) -> Result<BlockId, DeviceError>;

    /// Frees a block, its KV cache and the weights that nothing else uses.
    fn unload(&self, block: BlockId);

    /// Gives every loaded mixer a KV cache of this geometry. Earlier content is lost.
    fn reserve_kv(&self, layout: KvLayout) -> Result<(), DeviceError>;

    /// Starts work. Work on one stream runs in submission order. May return before or after the work is done.
    fn submit(&self, work: &Work) -> Result<Ticket, DeviceError>;

    /// Waits until the work is done, and reports its failure.
    fn wait(&self, ticket: Ticket) -> Result<(), DeviceError>;

    /// Copies rows `first ..` of a stream out; `out` is `[rows, width]`. Call after [`Device::wait`].
    fn read_residual(&self, stream: StreamId, first: usize, out: &mut [f32]) -> Result<(), DeviceError>;

    /// Makes the stream `rows.len() / width` rows long, with this content.
    fn write_residual(&self, stream: StreamId, width: usize, rows: &[f32]) -> Result<(), DeviceError>;

    /// Takes what the last head block on this stream produced. Call after [`Device::wait`].
    fn take_output(&self, stream: StreamId) -> Result<HeadOutput, DeviceError>;

    /// Memory held now.
    fn memory(&self) -> MemoryUse;

    /// The kernels selected for a loaded block, one line each.
    fn describe(&self, block: BlockId) -> Vec<String>;

    /// Switches per-kernel timing on or off and clears it.
    fn set_profiling(&self, on: bool);

    /// Per-kernel times since [`Device::set_profiling`].
    fn kernel_times(&self) -> Vec<KernelTime>;
}
