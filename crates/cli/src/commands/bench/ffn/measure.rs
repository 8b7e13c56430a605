//! Timing a block: many of them in one submission, over weights that no cache holds.

use std::sync::Arc;
use std::time::Instant;

use unicorn_cases::Feed;
use unicorn_core::quant::Random;
use unicorn_core::{
    Batch, BatchLimits, BlockId, DeviceError, DeviceKind, Instrument, KernelTime, SequenceId, Slice, StreamId,
};

/// One submission takes about this long, so that submitting and waiting do not count; not longer, since integrated GPUs are reset after
/// about two seconds.
const SUBMIT_SECONDS: f64 = 0.1;
/// Most blocks in one submission.
const BLOCKS_MAX: usize = 256;

/// What was measured of one block over the whole batch, in seconds.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// Wall time of each repetition.
    pub wall: Vec<f64>,
    /// The GPU's own time of each repetition: the sum over its kernels, which run one by one then. Empty where there are no timestamps.
    pub gpu: Vec<f64>,
    /// Blocks in one submission.
    pub blocks: usize,
    /// Times of the kernels, over all timed blocks.
    pub kernels: Vec<KernelTime>,
}

/// Times a batch of `tokens` tokens through the loaded blocks in turn.
pub fn measure(
    device: &Arc<dyn Instrument>,
    ids: &[BlockId],
    tokens: usize,
    width: usize,
    repetitions: usize,
) -> Result<Measured, DeviceError> {
    let run = Run::new(&**device, tokens, width)?;
    run.once(ids)?;
    let one = run.once(ids)? / ids.len() as f64;
    let blocks = ((SUBMIT_SECONDS / one.max(1e-9)) as usize).clamp(1, BLOCKS_MAX);
    let turn: Vec<BlockId> = ids.iter().copied().cycle().take(blocks).collect();
    run.once(&turn)?;
    let wall = (0..repetitions).map(|_| Ok(run.once(&turn)? / blocks as f64));
    let wall: Vec<f64> = wall.collect::<Result<_, DeviceError>>()?;
    let (gpu, kernels) = timed(&run, &turn, repetitions)?;
    Ok(Measured { wall, gpu, blocks, kernels })
}

/// Times every kernel by itself. A GPU has timestamps of its own, which count as measured times; those of a processor only say how the
/// parts of a block compare.
fn timed(
    run: &Run<'_>,
    turn: &[BlockId],
    repetitions: usize,
) -> Result<(Vec<f64>, Vec<KernelTime>), DeviceError> {
    let gpu = run.device.profile().kind == DeviceKind::Vulkan;
    let mut seconds = Vec::new();
    let mut measure = || {
        run.device.set_profiling(true);
        run.once(turn)?;
        for _ in 0..if gpu { repetitions } else { 1 } {
            run.device.set_profiling(true);
            run.once(turn)?;
            let all: f64 = run.device.kernel_times().iter().map(|k| k.seconds).sum();
            seconds.push(all / turn.len() as f64);
        }
        Ok(run.device.kernel_times())
    };
    let kernels = measure();
    run.device.set_profiling(false);
    let kernels = kernels?;
    let timestamps = gpu && seconds.iter().all(|s| *s > 0.0);
    Ok((if timestamps { seconds } else { Vec::new() }, kernels))
}

struct Run<'a> {
    device: &'a dyn Instrument,
    feed: Feed<'a>,
    batch: Arc<Batch>,
    width: usize,
    /// `[tokens, width]`.
    residual: Vec<f32>,
}

const STREAM: StreamId = StreamId(0);

impl<'a> Run<'a> {
    fn new(device: &'a dyn Instrument, tokens: usize, width: usize) -> Result<Run<'a>, DeviceError> {
        let slice = Slice {
            sequence: SequenceId(0),
            tokens: vec![0; tokens],
            start: 0,
            tables: Vec::new(),
            snapshots: Vec::new(),
            slot: None,
        };
        let limits = Arc::new(BatchLimits { vocab: 1, state: None });
        let batch = Batch::new(vec![slice], Vec::new(), &limits).map_err(|e| DeviceError::Invalid {
            device: device.profile().name.clone(),
            what: e.to_string(),
        })?;
        let residual = Random::new(1).normals(tokens * width, 1.0);
        Ok(Run { device, feed: Feed::new(device, STREAM), batch: Arc::new(batch), width, residual })
    }

    /// Seconds of one submission. The residual stream comes from the host before it and goes back after it, which is little beside so
    /// many blocks; within it every block adds a little, which its norm takes out again.
    fn once(&self, blocks: &[BlockId]) -> Result<f64, DeviceError> {
        let start = Instant::now();
        self.feed.run(blocks, &self.batch, Some(&self.residual), self.width)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use unicorn_cases::synthetic::{SyntheticLayout, SyntheticSource};
    use unicorn_core::{TensorType, WeightSource};
    use unicorn_cpu::ReferenceDevice;

    use super::super::block::block;
    use super::*;

    #[test]
    fn a_block_runs_and_its_residual_does_not_grow() {
        let device: Arc<dyn Instrument> = Arc::new(ReferenceDevice::new());
        let block = block(&mut SyntheticLayout::default(), 32, 64, TensorType::F16).unwrap();
        let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(0));
        let id = device.load(&block, &source).unwrap();
        let run = Run::new(&*device, 3, 32).unwrap();
        let read = || run.feed.residual(3 * 32);
        assert!(run.once(&[id]).unwrap() > 0.0);
        let first = read();
        run.once(&[id]).unwrap();
        assert_eq!(first, read());
        assert_ne!(first, run.residual);
        let measured = measure(&device, &[id], 3, 32, 2).unwrap();
        assert_eq!((measured.wall.len(), measured.gpu.len()), (2, 0));
        assert!(measured.blocks >= 1 && !measured.kernels.is_empty());
    }
}
