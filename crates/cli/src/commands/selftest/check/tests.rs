//! The loop from a wrong kernel to its name, on a device that is wrong on purpose.

use std::sync::Mutex;

use unicorn_cases::{select, table};
use unicorn_core::{
    Activation, Block, BlockId, DeviceProfile, HeadOutput, KernelTime, KvLayout, MemoryUse, RateKind,
    Roofline, StreamId, TensorType, Ticket, WeightSource, Work,
};
use unicorn_cpu::ReferenceDevice;

use super::*;

/// What a device is wrong in.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    /// Feed-forward blocks with a gate in Q4_0 get the wrong activation.
    GateQ4_0,
    /// All feed-forward blocks do.
    EveryGate,
    /// Norms, of feed-forward blocks and heads.
    Norm,
}

/// Is wrong in one way, and says which kernels it would have used.
struct Flawed {
    inner: ReferenceDevice,
    flaw: Flaw,
    ran: Mutex<Option<Vec<String>>>,
}

impl Flawed {
    fn new(flaw: Flaw) -> Flawed {
        Flawed { inner: ReferenceDevice::new(), flaw, ran: Mutex::new(None) }
    }
}

impl Device for Flawed {
    fn load(&self, block: &Block, source: &dyn WeightSource) -> Result<BlockId, DeviceError> {
        let mut block = block.clone();
        let mut kernels = Vec::new();
        if matches!(block, Block::Ffn { .. } | Block::Head { .. }) {
            kernels.push("norm norm".to_owned());
        }
        if let Block::Ffn { spec, weights } = &mut block {
            kernels.push(format!("ffn_gate_up {}", weights.gate.ty));
            kernels.push(format!("ffn_down {}", weights.down.ty));
            let gate_q4_0 = self.flaw == Flaw::GateQ4_0 && weights.gate.ty == TensorType::Q4_0;
            if gate_q4_0 || self.flaw == Flaw::EveryGate {
                spec.activation = match spec.activation {
                    Activation::Silu => Activation::GeluTanh,
                    Activation::GeluTanh => Activation::Silu,
                };
            }
        }
        if self.flaw == Flaw::Norm {
            match &mut block {
                Block::Ffn { spec, .. } => spec.norm.eps += 1.0,
                Block::Head { spec, .. } => spec.norm.eps += 1.0,
                Block::Embedding { .. } | Block::Attention { .. } => {}
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

/// Names of the kernels that are blamed, what was checked, and the lines that were told.
fn outcome(flaw: Flaw, only: &[&str]) -> (Vec<String>, Checked, Vec<(String, bool)>) {
    let cases: Vec<Case> = only.iter().flat_map(|f| select(f)).collect();
    assert!(!cases.is_empty());
    let mut lines = Vec::new();
    let mut tell = |line: &str, important: bool| {
        lines.push((line.to_owned(), important));
        Ok(())
    };
    let checked = check(&cases, &table(), &Flawed::new(flaw), &ReferenceDevice::new(), 1, &mut tell).unwrap();
    assert_eq!(checked.right + checked.faults + checked.unsupported, cases.len());
    (checked.wrong.iter().map(|w| w.kernel.clone()).collect(), checked, lines)
}

#[test]
fn a_wrong_kernel_is_named_and_no_other() {
    let (names, checked, lines) = outcome(Flaw::GateQ4_0, &["ffn/q4_0", "ffn/q8_0", "linear/q4_0 t1"]);
    assert_eq!(names, ["ffn_gate_up Q4_0"]);
    assert!(checked.faults > 0 && checked.right > 0 && checked.wrong[0].cases[0].starts_with("ffn/q4_0"));
    assert!(lines.iter().any(|(line, important)| *important && line.contains("FAILED")));
}

#[test]
fn where_all_of_a_narrow_choice_is_wrong_helpers_are_not_blamed() {
    let one = "ffn/q4_0/192x576/t1/silu";
    let (names, checked, lines) = outcome(Flaw::GateQ4_0, &[one]);
    assert_eq!(names, ["ffn_gate_up Q4_0"]);
    assert_eq!((checked.right, checked.faults), (0, 1), "further cases are no part of the test");
    assert_eq!(checked.wrong[0].cases, [one]);
    let further = lines.iter().filter(|(line, _)| line.starts_with("to find the kernel")).count();
    assert!((1..=32).contains(&further), "{further}");

    // Other kinds of block clear the norm where every block of the kind is wrong.
    let (names, ..) = outcome(Flaw::EveryGate, &["ffn/q4_0"]);
    assert!(names.contains(&"ffn_gate_up Q4_0".to_owned()), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("norm")), "{names:?}");
}

#[test]
fn a_helper_that_is_wrong_is_blamed() {
    let (names, checked, _) = outcome(Flaw::Norm, &["ffn/q4_0/192x576/t1/silu"]);
    assert_eq!(checked.faults, 1);
    assert!(names.contains(&"norm norm".to_owned()), "{names:?}");
}

#[test]
fn what_is_right_needs_no_further_cases() {
    let (names, checked, lines) = outcome(Flaw::GateQ4_0, &["ffn/q8_0"]);
    assert!(names.is_empty() && checked.faults == 0);
    assert!(!lines.iter().any(|(line, _)| line.starts_with("to find the kernel")));
}
