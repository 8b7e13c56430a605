//! The loop from a wrong kernel to its name, on a device that is wrong on purpose.

use std::sync::Mutex;

use unicorn_cases::select;
use unicorn_core::{
    Activation, Block, BlockId, DeviceProfile, HeadOutput, KernelTime, KvLayout, MemoryUse, RateKind,
    Roofline, StreamId, TensorType, Ticket, WeightSource, Work,
};
use unicorn_cpu::ReferenceDevice;

use super::*;

/// Computes feed-forward blocks with a gate in Q4_0 with the wrong activation, and says which kernels it would have used.
struct Flawed {
    inner: ReferenceDevice,
    ran: Mutex<Option<Vec<String>>>,
}

impl Device for Flawed {
    fn load(&self, block: &Block, source: &dyn WeightSource) -> Result<BlockId, DeviceError> {
        let mut block = block.clone();
        let mut kernels = vec!["norm norm".to_owned()];
        if let Block::Ffn { spec, weights } = &mut block {
            kernels.push(format!("ffn_gate_up {}", weights.gate.ty));
            kernels.push(format!("ffn_down {}", weights.down.ty));
            if weights.gate.ty == TensorType::Q4_0 {
                spec.activation = match spec.activation {
                    Activation::Silu => Activation::GeluTanh,
                    Activation::GeluTanh => Activation::Silu,
                };
            }
        }
        if let Some(ran) = self.ran.lock().unwrap().as_mut() {
            ran.extend(kernels);
        }
        self.inner.load(&block, source)
    }
    fn kernel_times(&self) -> Vec<KernelTime> {
        let ran = self.ran.lock().unwrap().clone().unwrap_or_default();
        let time =
            |kernel| KernelTime { kernel, calls: 1, seconds: 0.0, bytes: 0, flops: 0, rate: RateKind::Float };
        ran.into_iter().map(time).collect()
    }
    fn set_profiling(&self, on: bool) {
        *self.ran.lock().unwrap() = on.then(Vec::new);
    }
    fn profile(&self) -> &DeviceProfile {
        self.inner.profile()
    }
    fn measure(&self) -> Result<Roofline, DeviceError> {
        self.inner.measure()
    }
    fn rate_kind(&self, ty: TensorType) -> RateKind {
        self.inner.rate_kind(ty)
    }
    fn unload(&self, block: BlockId) {
        self.inner.unload(block)
    }
    fn reserve_kv(&self, layout: KvLayout) -> Result<(), DeviceError> {
        self.inner.reserve_kv(layout)
    }
    fn submit(&self, work: &Work) -> Result<Ticket, DeviceError> {
        self.inner.submit(work)
    }
    fn wait(&self, ticket: Ticket) -> Result<(), DeviceError> {
        self.inner.wait(ticket)
    }
    fn read_residual(&self, stream: StreamId, first: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        self.inner.read_residual(stream, first, out)
    }
    fn write_residual(&self, stream: StreamId, width: usize, rows: &[f32]) -> Result<(), DeviceError> {
        self.inner.write_residual(stream, width, rows)
    }
    fn take_output(&self, stream: StreamId) -> Result<HeadOutput, DeviceError> {
        self.inner.take_output(stream)
    }
    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }
    fn describe(&self, block: BlockId) -> Vec<String> {
        self.inner.describe(block)
    }
}

#[test]
fn a_wrong_kernel_is_named_and_no_other() {
    let device = Flawed { inner: ReferenceDevice::new(), ran: Mutex::new(None) };
    let cases: Vec<Case> =
        ["ffn/q4_0", "ffn/q8_0", "linear/q4_0 t1"].iter().flat_map(|f| select(f)).collect();
    let mut lines = Vec::new();
    let mut tell = |line: &str, important: bool| {
        lines.push((line.to_owned(), important));
        Ok(())
    };
    let checked = check(&cases, &device, &ReferenceDevice::new(), 1, &mut tell).unwrap();
    let names: Vec<&str> = checked.wrong.iter().map(|w| w.kernel.as_str()).collect();
    assert!(names.contains(&"ffn_gate_up Q4_0"), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("Q8_0") || n.contains("norm")), "{names:?}");
    assert!(checked.faults > 0 && checked.right > 0 && checked.wrong[0].cases[0].starts_with("ffn/q4_0"));
    assert_eq!(checked.right + checked.faults + checked.unsupported, cases.len());
    assert!(lines.iter().any(|(line, important)| *important && line.contains("FAILED")));
}
