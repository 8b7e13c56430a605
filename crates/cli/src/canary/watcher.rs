//! The canary as the engine knows it, and the thread that computes rows again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context;
use unicorn_cases::{Oracles, replay};
use unicorn_core::{
    BlockKind, Canary, CanaryCounts, Device, DeviceKind, DeviceOptions, DeviceProfile, Doubt, Instrument,
    KvType, Launch, ModelSpec, Pick, Sample, WeightSource,
};

use super::book::{Book, Evidence};
use crate::devices::cache::Key;
use crate::devices::{DeviceChoice, Faults, OpenOptions};
use crate::exit::describe;
use crate::open_device::Opened;
use crate::output::say;

/// What is asked of a canary.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Of the time in which the model works, what it may cost; `None` where nobody said.
    pub share: Option<f64>,
    /// Where the canaries of one model keep what outlives them.
    pub coop: Arc<Coop>,
}

/// What the canaries of a model have found, also those of engines that are gone.
#[derive(Default)]
pub struct Coop {
    counts: Mutex<CanaryCounts>,
    /// Not settled yet.
    pub(super) cases: Mutex<Vec<Found>>,
}

impl std::fmt::Debug for Coop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Coop({:?})", self.counts())
    }
}

impl Coop {
    fn counts(&self) -> MutexGuard<'_, CanaryCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many kernels more are not used any more.
    pub(super) fn quarantined(&self, kernels: usize) {
        self.counts().quarantined += kernels as u64;
    }
}

/// What was found, with what it takes to find the kernels to blame.
pub(super) struct Found {
    pub evidence: Evidence,
    pub device: Suspect,
    pub spec: Arc<ModelSpec>,
    pub source: Arc<dyn WeightSource>,
    pub kv: KvType,
}

/// A device that is looked at, without the device.
#[derive(Clone)]
pub(super) struct Suspect {
    pub choice: DeviceChoice,
    pub key: Key,
    pub options: DeviceOptions,
    pub kind: DeviceKind,
}

/// What the engine's side and the thread share.
struct Shared {
    book: Mutex<Book>,
    certain: AtomicBool,
    coop: Arc<Coop>,
    devices: Vec<Suspect>,
    spec: Arc<ModelSpec>,
    source: Arc<dyn WeightSource>,
    kv: KvType,
    processors: u32,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Watcher {
    shared: Arc<Shared>,
    /// To the thread; `None` where there is none, because nothing is looked at any more.
    samples: Option<SyncSender<Sample>>,
}

/// A canary for a model on these devices; `None` where it is not wanted, or where there is nothing to compare with: the plain loops of the
/// processor are what others are compared with.
pub fn start(
    wish: &Wish,
    opened: &[Opened],
    spec: &ModelSpec,
    source: &Arc<dyn WeightSource>,
    kv: KvType,
    talks: bool,
) -> anyhow::Result<Option<Arc<dyn Canary>>> {
    let Some(share) = wish.share.filter(|share| *share > 0.0) else { return Ok(None) };
    let looked_at = |opened: &Opened| {
        let profile = opened.device.profile();
        if is_plain(profile) && talks {
            say!(
                "--canary: {} runs the plain kernels that others are compared with; it is not looked at",
                profile.name
            );
        }
        !is_plain(profile)
    };
    let devices: Vec<bool> = opened.iter().map(looked_at).collect();
    let looks = devices.contains(&true);
    if !looks && wish.coop.counts().samples == 0 {
        return Ok(None);
    }
    let suspect = |o: &Opened| Suspect {
        choice: o.choice.clone(),
        key: o.key.clone(),
        options: o.options.clone(),
        kind: o.device.profile().kind,
    };
    // Not the same rows after each start.
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let shared = Arc::new(Shared {
        book: Mutex::new(Book::new(share, devices, seed)),
        certain: AtomicBool::new(false),
        coop: wish.coop.clone(),
        devices: opened.iter().map(suspect).collect(),
        spec: Arc::new(spec.clone()),
        source: source.clone(),
        kv,
        processors: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
    });
    if !looks {
        // What was found on devices that are not used any more is still told.
        return Ok(Some(Arc::new(Watcher { shared, samples: None })));
    }
    // One sample is picked at a time.
    let (samples, received) = sync_channel(1);
    let running = shared.clone();
    let run = move || check_all(&running, &received);
    std::thread::Builder::new().name("canary".into()).spawn(run).context("cannot start the canary")?;
    Ok(Some(Arc::new(Watcher { shared, samples: Some(samples) })))
}

/// The reference, and the processor without any instruction set beyond its basic one.
fn is_plain(profile: &DeviceProfile) -> bool {
    profile.kind == DeviceKind::Cpu && profile.features.is_empty()
}

impl Canary for Watcher {
    fn looks(&self) -> bool {
        self.samples.is_some()
    }

    fn pick(&self, launch: &Launch<'_>) -> Option<Pick> {
        self.shared.book().pick(launch, Instant::now())
    }

    fn sample(&self, sample: Sample) {
        // A thread that is gone looks at nothing any more.
        if self.samples.as_ref().is_none_or(|thread| thread.try_send(sample).is_err()) {
            self.missed();
        }
    }

    fn missed(&self) {
        self.shared.book().missed();
    }

    fn doubt(&self) -> Option<Doubt> {
        let certain = self.shared.certain.load(Ordering::Acquire);
        certain.then(|| self.shared.book().doubt().cloned()).flatten()
    }

    fn counts(&self) -> CanaryCounts {
        *self.shared.coop.counts()
    }
}

/// What computes rows again.
struct Bench {
    /// For GPUs: the processor's best kernels.
    best: Arc<dyn Instrument>,
    /// For the processor: its plain ones.
    plain: Arc<dyn Instrument>,
    exact: Arc<dyn Instrument>,
}

impl Bench {
    fn open() -> anyhow::Result<Bench> {
        let options = OpenOptions {
            threads: Some(1),
            tier: None,
            small: false,
            faults: &Faults::default(),
            cache_folder: None,
            note: &|_| {},
        };
        let open = |name: &str| {
            let choice: DeviceChoice = name.parse().map_err(anyhow::Error::msg)?;
            choice.open(&options)
        };
        Ok(Bench { best: open("cpu")?, plain: open("cpu:scalar")?, exact: open("reference")? })
    }
}

/// Until the engine is gone.
fn check_all(shared: &Shared, samples: &Receiver<Sample>) {
    lower_priority();
    let mut bench: Option<Bench> = None;
    while let Ok(sample) = samples.recv() {
        let began = Instant::now();
        let open = match &bench {
            Some(bench) => bench,
            None => match Bench::open() {
                // Their threads are as patient as this one.
                Ok(opened) => bench.insert(opened),
                Err(error) => {
                    say!("the canary looks at nothing: {}", describe(&error));
                    return shared.book().missed();
                }
            },
        };
        check(shared, open, &sample, began);
    }
}

fn check(shared: &Shared, bench: &Bench, sample: &Sample, began: Instant) {
    let (Some(block), Some(device)) =
        (shared.spec.blocks.get(sample.watched.block), shared.devices.get(sample.watched.device))
    else {
        return shared.book().missed();
    };
    let near: &dyn Device = if device.kind == DeviceKind::Cpu { &*bench.plain } else { &*bench.best };
    let judged = replay(sample, block, &shared.source, device.kind, &Oracles { near, exact: &*bench.exact });
    let mut book = shared.book();
    match judged {
        // Another kernel, type or size than the processor has: that is no fault.
        Err(_) => book.beyond(sample),
        Ok(judged) => {
            let name = format!("{} (block {})", kind_name(block.kind()), sample.watched.block);
            let took = began.elapsed();
            let mut counts = shared.coop.counts();
            counts.seconds += (took + sample.took).as_secs_f64();
            // One processor of several is busy with it; a device that waits for a row to be copied is idle as a whole.
            let cost = took / shared.processors + sample.took;
            let evidence = book.judged(sample, judged, cost, &name, &mut counts);
            drop(counts);
            if let Some(evidence) = evidence {
                let (device, spec, source) = (device.clone(), shared.spec.clone(), shared.source.clone());
                let found = Found { evidence, device, spec, source, kv: shared.kv };
                shared.coop.cases.lock().unwrap_or_else(PoisonError::into_inner).push(found);
                shared.certain.store(true, Ordering::Release);
            }
        }
    }
}

fn kind_name(kind: BlockKind) -> &'static str {
    match kind {
        BlockKind::Embedding => "the embedding",
        BlockKind::Mixer => "attention",
        BlockKind::Ffn => "a feed-forward block",
        BlockKind::Head => "the head",
    }
}

/// Lets this thread, and those that it starts, run when nobody else wants to.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        // Elsewhere this would be about the whole process. Without it the canary is only less polite.
        let _ = rustix::process::nice(19);
    }
}
