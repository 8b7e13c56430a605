//! The case table on the devices of this crate, and proof that the table can fail.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use unicorn_cases::{CaseError, judge, run, select};
use unicorn_core::{
    Activation, Batch, BatchLimits, Block, BlockId, Device, DeviceError, DeviceProfile, KvType, MemoryUse,
    RopeStyle, SharedBuffer, Sharing, Slice, StateLayout, StateSpec, StreamId, WeightSource, Work,
    run_to_end,
};
use unicorn_cpu::ReferenceDevice;

/// A new seed for every run; failures print it.
fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64)
}

/// Runs all cases that match and panics with the list of those that failed.
fn check(device: &dyn Device, filter: &str) {
    let (oracle, seed) = (ReferenceDevice::new(), fresh_seed());
    let cases = select(filter);
    assert!(!cases.is_empty(), "no case matches {filter:?}");
    let mut failures = Vec::new();
    for case in &cases {
        match judge(case, device, &oracle, seed) {
            Ok(outcome) if outcome.passed() => {}
            Ok(outcome) => failures.push(outcome.to_string()),
            Err(error) => failures.push(error.to_string()),
        }
    }
    let name = &device.profile().name;
    assert!(failures.is_empty(), "{name}: {} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn the_order_of_cases_changes_nothing() {
    // A cache in Q8_0, which heads of 80 cannot have, comes before them.
    let device = ReferenceDevice::new();
    for filter in ["kv-q8_0 decodes", "dim80"] {
        check(&device, filter);
    }
}

#[test]
fn reference_equals_itself() {
    // Proves that the table runs: pages are valid, shapes agree, no input gives values that are not finite.
    check(&ReferenceDevice::new(), "");
}

/// A reference device with one thing wrong.
struct Flawed {
    inner: ReferenceDevice,
    block: fn(&mut Block),
    slice: fn(&mut Slice),
    residual: fn(&mut [f32]),
    /// What the block at hand keeps, flaw included.
    state: Mutex<Option<StateSpec>>,
    shared: Mutex<Option<Arc<SharedBuffer>>>,
}

impl Flawed {
    fn new() -> Flawed {
        Flawed {
            inner: ReferenceDevice::new(),
            block: |_| {},
            slice: |_| {},
            residual: |_| {},
            state: Mutex::new(None),
            shared: Mutex::new(None),
        }
    }

    /// The layout as the flawed block needs it.
    fn layout(&self, layout: &StateLayout) -> StateLayout {
        let mut layout = layout.clone();
        if let Some(spec) = *self.state.lock().unwrap() {
            layout.groups.iter_mut().for_each(|g| g.spec = spec);
        }
        layout
    }
}

impl Device for Flawed {
    fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError> {
        let mut block = block.clone();
        (self.block)(&mut block);
        *self.state.lock().unwrap() = block.state();
        // What was reserved before was for the block without the flaw.
        if let Some(spec) = block.state() {
            let mut layout = StateLayout::paged(32, 1, 32, KvType::F16);
            layout.groups[0].spec = spec;
            self.inner.reserve(&layout)?;
        }
        self.inner.load(&block, source)
    }
    fn submit(&self, work: Work) {
        let mut slices = work.batch.slices().to_vec();
        slices.iter_mut().for_each(self.slice);
        let limits = BatchLimits {
            state: work.batch.limits().state.as_ref().map(|layout| self.layout(layout)),
            ..BatchLimits::clone(work.batch.limits())
        };
        let batch = Batch::new(slices, work.batch.outputs().to_vec(), &Arc::new(limits)).unwrap();
        let batch = Arc::new(batch);
        let ran = run_to_end(&self.inner, work.stream, &work.blocks, &batch, work.crossing);
        if let Some(shared) = &*self.shared.lock().unwrap() {
            let mut rows = vec![0.0; batch.rows() * shared.width()];
            shared.read(&mut rows);
            (self.residual)(&mut rows);
            shared.write(&rows);
        }
        work.done.give(ran.map_err(Arc::new));
    }
    fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError> {
        *self.shared.lock().unwrap() = Some(residual.clone());
        self.inner.attach(stream, residual)
    }
    fn profile(&self) -> &DeviceProfile {
        self.inner.profile()
    }
    fn unload(&self, block: BlockId) {
        self.inner.unload(block)
    }
    fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
        self.inner.reserve(&self.layout(layout))
    }
    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }
    fn describe(&self, block: BlockId) -> Vec<String> {
        self.inner.describe(block)
    }
}

/// Every matching case must notice the flaw.
fn must_fail(flaw: &str, filter: &str, device: &Flawed) {
    let (oracle, seed) = (ReferenceDevice::new(), fresh_seed());
    let cases = select(filter);
    assert!(!cases.is_empty(), "no case matches {filter:?}");
    for case in cases {
        match run(&case, device, &oracle, seed) {
            Ok(outcome) => assert!(!outcome.passed(), "{flaw} went unnoticed: {outcome}"),
            Err(CaseError::Contract { .. }) => {}
            Err(error) => panic!("{flaw}: {error}"),
        }
    }
}

/// What is wrong, which cases must notice, and the edit that makes it so.
type Flaw = (&'static str, &'static str, fn(&mut Block));

/// An edit of an attention block; others are left alone.
macro_rules! attention {
    (|$spec:ident, $weights:ident| $edit:expr) => {
        |block| {
            #[allow(unused_variables)]
            if let Block::Attention { spec: $spec, weights: $weights } = block {
                $edit;
            }
        }
    };
}

#[test]
fn wrong_attention_fails() {
    let flaws: [Flaw; 14] = [
        ("window off by one", "attention/f32 /window", attention!(|s, w| s.window = s.window.map(|n| n + 1))),
        (
            "the other pairing",
            "attention/f32 rope",
            attention!(|s, w| s.rope.style = match s.rope.style {
                RopeStyle::Normal => RopeStyle::Neox,
                RopeStyle::Neox => RopeStyle::Normal,
            }),
        ),
        (
            "one pair too few",
            "attention/f32 rope-normal",
            attention!(|s, w| s.rope.frequencies = s.rope.frequencies[1..].into()),
        ),
        ("no magnitude", "rope-yarn", attention!(|s, w| s.rope.magnitude = 1.0)),
        ("scale off by 1 %", "attention/f32 kv-f32/gqa", attention!(|s, w| s.scale *= 1.01)),
        ("scale off by 20 %", "attention/ mixed", attention!(|s, w| s.scale *= 1.2)),
        ("no soft cap", "attention/ /cap", attention!(|s, w| s.soft_cap = None)),
        (
            "norms of q and k swapped",
            "qk-norm",
            attention!(|s, w| {
                let w = w.as_mut();
                std::mem::swap(&mut w.q_norm, &mut w.k_norm)
            }),
        ),
        ("no bias on q", "/bias", attention!(|s, w| w.q_bias = None)),
        ("no bias on k", "/bias", attention!(|s, w| w.k_bias = None)),
        ("no bias on v", "/bias", attention!(|s, w| w.v_bias = None)),
        ("no bias on o", "/bias-all", attention!(|s, w| w.o_bias = None)),
        ("no post norm", "attention/ /post", attention!(|s, w| (s.post_norm, w.post_norm) = (None, None))),
        ("no offset", "attention/ /offset", attention!(|s, w| s.norm.weight_offset = 0.0)),
    ];
    for (flaw, filter, block) in flaws {
        must_fail(flaw, filter, &Flawed { block, ..Flawed::new() });
    }
}

#[test]
fn wrong_cache_use_fails() {
    let wrong_page: fn(&mut Slice) = |slice| {
        if slice.start > 0 {
            slice.tables[0].rotate_left(1);
        }
    };
    must_fail("pages out of order", "attention/f32 past512", &Flawed { slice: wrong_page, ..Flawed::new() });
    // A shift of all positions alike is invisible to rotary scores; one of new positions alone is not.
    let late: fn(&mut Slice) = |slice| {
        if slice.start > 0 && slice.tokens.len() == 1 {
            slice.start -= 1;
        }
    };
    must_fail("position off by one", "attention/f32 past31/", &Flawed { slice: late, ..Flawed::new() });
}

#[test]
fn wrong_ffn_fails() {
    let swapped: fn(&mut Block) = |block| {
        if let Block::Ffn { weights, .. } = block {
            let weights = weights.as_mut();
            std::mem::swap(&mut weights.gate, &mut weights.up);
        }
    };
    must_fail("gate and up swapped", "ffn/ t4", &Flawed { block: swapped, ..Flawed::new() });
    let relabelled: fn(&mut Block) = |block| {
        if let Block::Ffn { spec, .. } = block {
            spec.activation = match spec.activation {
                Activation::Silu => Activation::GeluTanh,
                Activation::GeluTanh => Activation::Silu,
            };
        }
    };
    must_fail("the other activation", "ffn/", &Flawed { block: relabelled, ..Flawed::new() });
    let no_post: fn(&mut Block) = |block| {
        if let Block::Ffn { spec, weights } = block {
            (spec.post_norm, weights.post_norm) = (None, None);
        }
    };
    must_fail("no post norm", "ffn/ post", &Flawed { block: no_post, ..Flawed::new() });
    let nan: fn(&mut [f32]) = |rows| rows[0] = f32::NAN;
    must_fail("one value is no number", "ffn/ t1/", &Flawed { residual: nan, ..Flawed::new() });
    let noisy: fn(&mut [f32]) = |rows| {
        let last = rows.len() - 1;
        rows[last] += 1.0;
    };
    must_fail("one value is off", "ffn/ t33", &Flawed { residual: noisy, ..Flawed::new() });
}

#[test]
fn wrong_head_and_embedding_fail() {
    let no_cap: fn(&mut Block) = |block| {
        if let Block::Head { spec, .. } = block {
            spec.soft_cap = None;
        }
    };
    must_fail("no soft cap", "linear/ /cap", &Flawed { block: no_cap, ..Flawed::new() });
    let eps: fn(&mut Block) = |block| {
        if let Block::Head { spec, .. } = block {
            spec.norm.eps = 0.1;
        }
    };
    must_fail("epsilon of 0.1", "linear/ x1536", &Flawed { block: eps, ..Flawed::new() });
    let scale: fn(&mut Block) = |block| {
        if let Block::Embedding { spec, .. } = block {
            spec.scale *= 1.0001;
        }
    };
    must_fail("scale off by 0.01 %", "embedding/", &Flawed { block: scale, ..Flawed::new() });
}

#[test]
fn a_seed_names_a_comparison() {
    let case = select("ffn/f32").remove(0);
    let noisy: fn(&mut [f32]) = |rows| rows.iter_mut().for_each(|v| *v *= 1.000_001);
    let device = Flawed { residual: noisy, ..Flawed::new() };
    let at = |seed| run(&case, &device, &ReferenceDevice::new(), seed).unwrap();
    assert_eq!(at(7), at(7));
    assert_ne!(at(7).nrmse, at(8).nrmse);
}
