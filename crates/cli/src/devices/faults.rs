//! A layer around a real device in which things go wrong: to see, without a broken driver, what becomes of the work.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::wrong::{Layer, Wrong};
use unicorn_core::{
    Block, BlockId, Device, DeviceError, DeviceOptions, DeviceProfile, Instrument, KernelTime, MemoryNeed,
    MemoryRoom, MemoryUse, RateKind, Roofline, SharedBuffer, Sharing, StateCopy, StateLayout, StreamId,
    TensorType, WeightSource, Work, Workload,
};

/// What goes wrong, and when: `UNICORN_FAULTS=lose@40,vulkan:0/memory@90`. The number counts the work that devices of that name, or all of
/// them together, were given since the program started. `wrong-lane@40`, `wrong-tile:attention@40`, `wrong-type:q4_0@40`: a kernel of the device
/// that is opened first is wrong from that work of a device on, see [`super::wrong`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Faults(Vec<Fault>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Fault {
    /// `None` for any.
    device: Option<String>,
    kind: Kind,
    at: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    /// The device is lost.
    Lose,
    /// There is no memory for the work.
    Memory,
    /// The thread that gives the work panics, as a fault of the program would have it.
    Panic,
    /// A kernel computes wrong.
    Wrong(Wrong),
}

/// Work that was given so far, by device; the empty name stands for all.
static GIVEN: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);

impl Faults {
    /// What cannot be read goes wrong at once: whoever set it wants to know.
    pub fn parse(text: &str) -> Faults {
        let fault = |text: &str| {
            let (device, fault) = text.split_once('/').map_or((None, text), |(d, f)| (Some(d.to_owned()), f));
            let (kind, at) = fault.split_once('@')?;
            let kind = match kind {
                "lose" => Kind::Lose,
                "memory" => Kind::Memory,
                "panic" => Kind::Panic,
                other => Kind::Wrong(Wrong::parse(other.strip_prefix("wrong-")?)?),
            };
            Some(Fault { device, kind, at: at.parse().ok()? })
        };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Faults(
            parts
                .map(|part| fault(part).unwrap_or(Fault { device: None, kind: Kind::Lose, at: 1 }))
                .collect(),
        )
    }

    /// The device with what shall go wrong; the device itself where nothing shall.
    pub fn around(&self, device: Arc<dyn Instrument>) -> Arc<dyn Instrument> {
        if self.0.is_empty() {
            return device;
        }
        let wrong = self.0.iter().find_map(|fault| match &fault.kind {
            Kind::Wrong(wrong) if fault.device.as_ref().is_none_or(|name| *name == device.profile().name) => {
                Some(Layer::new(device.clone(), wrong.clone(), fault.at))
            }
            _ => None,
        });
        Arc::new(Faulty { device, faults: self.clone(), lost: AtomicBool::new(false), wrong })
    }

    /// What happens to the next work of a device.
    fn next(&self, name: &str) -> Option<Kind> {
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        let given = given.get_or_insert_default();
        let mut count = |name: &str| {
            let count = given.entry(name.to_owned()).or_default();
            *count += 1;
            *count
        };
        let (of_it, of_all) = (count(name), count(""));
        let now = |fault: &&Fault| match &fault.device {
            Some(device) => device == name && fault.at == of_it,
            None => fault.at == of_all,
        };
        self.0.iter().find(now).map(|fault| fault.kind.clone())
    }
}

struct Faulty {
    device: Arc<dyn Instrument>,
    faults: Faults,
    lost: AtomicBool,
    wrong: Option<Layer>,
}

impl Device for Faulty {
    fn submit(&self, work: Work) {
        let kind = self.faults.next(&self.profile().name);
        if kind == Some(Kind::Lose) {
            self.lost.store(true, Ordering::Release);
        }
        let device = self.profile().name.clone();
        if self.lost.load(Ordering::Acquire) {
            let lost = DeviceError::Lost { device, what: "a batch (UNICORN_FAULTS)".into() };
            return work.done.give(Err(Arc::new(lost)));
        }
        match kind {
            Some(Kind::Panic) => panic!("{device} was to panic (UNICORN_FAULTS)"),
            Some(Kind::Memory) => {
                let (what, requested) = ("a batch (UNICORN_FAULTS)".into(), work.batch.rows() as u64);
                let short = DeviceError::OutOfMemory { device, what, requested, free: 0 };
                work.done.give(Err(Arc::new(short)));
            }
            _ => match &self.wrong {
                Some(wrong) => wrong.submit(work),
                None => self.device.submit(work),
            },
        }
    }

    fn profile(&self) -> &DeviceProfile {
        self.device.profile()
    }
    fn needs(&self, blocks: &[&Block], workload: &Workload) -> Result<MemoryNeed, DeviceError> {
        self.wrong.iter().for_each(|wrong| wrong.needs(workload.rows));
        self.device.needs(blocks, workload)
    }
    fn load(&self, block: &Block, source: &Arc<dyn WeightSource>) -> Result<BlockId, DeviceError> {
        let id = self.device.load(block, source)?;
        self.wrong.iter().for_each(|wrong| wrong.loaded(id, block));
        Ok(id)
    }
    fn unload(&self, block: BlockId) {
        self.wrong.iter().for_each(|wrong| wrong.unloaded(block));
        self.device.unload(block);
    }
    fn reserve(&self, layout: &StateLayout) -> Result<(), DeviceError> {
        self.device.reserve(layout)
    }
    fn attach(&self, stream: StreamId, residual: &Arc<SharedBuffer>) -> Result<Sharing, DeviceError> {
        let sharing = self.device.attach(stream, residual)?;
        self.wrong.iter().for_each(|wrong| wrong.attached(stream, residual));
        Ok(sharing)
    }
    fn crosses_by(&self) -> Option<String> {
        self.device.crosses_by()
    }
    fn copy_state(&self, copy: StateCopy) {
        self.device.copy_state(copy);
    }
    fn memory(&self) -> MemoryUse {
        self.device.memory()
    }
    fn describe(&self, block: BlockId) -> Vec<String> {
        self.device.describe(block)
    }
}

impl Instrument for Faulty {
    fn measure(&self) -> Result<Roofline, DeviceError> {
        self.device.measure()
    }
    fn room(&self) -> Option<MemoryRoom> {
        self.device.room()
    }
    fn rate_kind(&self, ty: TensorType) -> RateKind {
        self.device.rate_kind(ty)
    }
    fn configure(&self, options: &DeviceOptions) -> Result<(), DeviceError> {
        self.device.configure(options)
    }
    fn set_profiling(&self, on: bool) {
        self.device.set_profiling(on);
    }
    fn kernel_times(&self) -> Vec<KernelTime> {
        self.device.kernel_times()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_come_when_they_are_to() {
        // Other tests of this process count too where no device is named.
        let faults = Faults::parse("here/lose@1, there/memory@2, there/panic@9");
        let seen: Vec<Option<Kind>> = ["there", "here", "there"].map(|name| faults.next(name)).into();
        assert_eq!(seen, [None, Some(Kind::Lose), Some(Kind::Memory)]);
        assert_eq!(Faults::parse(""), Faults::default());
        assert_eq!(Faults::parse("nonsense").0[0].at, 1);
        for (text, right) in [
            ("lane", true),
            ("tile:attention", true),
            ("lane:head", true),
            ("type:q4_0", true),
            ("type", false),
            ("type:q9", false),
            ("tile:embedding", false),
            ("row", false),
        ] {
            assert_eq!(Wrong::parse(text).is_some(), right, "{text}");
            let parsed = Faults::parse(&format!("wrong-{text}@7"));
            assert_eq!(parsed.0[0].at == 7, right, "{text}");
        }
    }
}
