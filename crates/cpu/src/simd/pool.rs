//! Threads that compute one batch together and stay awake between batches that follow closely.
//!
//! The calling thread is worker 0. A region is one closure that every worker runs. All of them walk the same sequence of
//! [`Worker::step`]s; the parts of a step are claimed one by one, and a step begins once every part of the one before is done.
//! Nobody waits for a thread that holds no part: where the operating system has taken a thread's core away, the others do its
//! share, and the thread passes over what it missed when it comes back. Who waits spins for a bounded time and then sleeps, which
//! also leaves the core to a thread that was taken off another one.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker without a region stays awake. Longer than the time between two tokens' submissions.
const IDLE_BEFORE_SLEEP: Duration = Duration::from_micros(800);
/// How long a thread spins for a step: longer than threads that all have their core are apart, far less than a time slice.
const SPIN: Duration = Duration::from_micros(60);
/// Looks between two looks at the clock.
const LOOKS: u32 = 64;
/// How often the CPUs that the process may use are counted again.
const RECOUNT: Duration = Duration::from_millis(200);

/// A worker panicked; the region was abandoned and the pool is usable again.
#[derive(thiserror::Error, Debug)]
#[error("{0}")]
pub(crate) struct Panicked(pub(crate) String);

/// Threads that run regions together.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the time of a region.
    region: Mutex<Team>,
}

/// How many threads take part in a region.
struct Team {
    size: usize,
    /// When the CPUs were counted; `None` before the first region.
    counted: Option<Instant>,
    /// More threads than CPUs only take turns, and hold parts of a step while they wait for theirs.
    within_cpus: bool,
}

#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

type Job = *const (dyn Fn(&Worker) + Sync);

struct Shared {
    gate: Line<Gate>,
    /// The current region's closure and its threads; valid inside the gate.
    job: UnsafeCell<Option<(Job, usize)>>,
    /// Threads that take part: those with a lower index.
    team: AtomicUsize,
    /// Number of the current step in the upper half, parts of it that were claimed in the lower.
    claims: Line<AtomicU64>,
    /// Parts of the current step that are done.
    done: Line<AtomicUsize>,
    /// Threads that wait for a step, or for the others to leave.
    waiting: Parking,
    /// A thread of the current region panicked.
    poisoned: AtomicBool,
    message: Mutex<Option<String>>,
    stop: AtomicBool,
    /// Which threads sleep until there is a region for them.
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` is written only while the gate is shut and nobody is inside; opening it publishes the value.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure.
unsafe impl Send for Shared {}

/// A thread's view of the region it runs in.
pub(crate) struct Worker<'a> {
    shared: &'a Shared,
    team: usize,
    /// `0 .. threads`; 0 is the thread that started the region.
    pub(crate) index: usize,
    /// Steps that this thread has come to.
    steps: Cell<u64>,
}

/// Unwinds threads out of a region in which another one panicked.
struct Abandoned;

impl Worker<'_> {
    /// Threads in the region.
    pub(crate) fn threads(&self) -> usize {
        self.team
    }

    /// One step of the region: calls `f` with parts of `0 .. count`, at most `grain` long, each on one thread. What earlier steps
    /// wrote is visible in `f`. Returns when this thread finds no more parts, which others may still be at.
    ///
    /// Every thread of the region must walk the same sequence of steps, and touch what steps write inside `f` alone: outside of it,
    /// the others may be some steps ahead.
    pub(crate) fn step(&self, count: usize, grain: usize, mut f: impl FnMut(Range<usize>)) {
        if count == 0 {
            return;
        }
        let step = self.steps.get();
        self.steps.set(step + 1);
        if self.team == 1 {
            return f(0..count);
        }
        let grain = grain.max(count.div_ceil(u32::MAX as usize)).max(1);
        let parts = count.div_ceil(grain);
        let shared = self.shared;
        self.wait_for(step);
        let mut claims = shared.claims.0.load(Ordering::Acquire);
        while claims >> 32 == step && ((claims & u64::from(u32::MAX)) as usize) < parts {
            // An exchange, not an addition: the step may end meanwhile, and the claim would be one on the next.
            let claimed = shared.claims.0.compare_exchange_weak(
                claims,
                claims + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match claimed {
                Ok(_) => {
                    let start = (claims & u64::from(u32::MAX)) as usize * grain;
                    f(start..count.min(start + grain));
                    if shared.done.0.fetch_add(1, Ordering::AcqRel) + 1 == parts {
                        shared.begin(step + 1);
                    }
                    claims = shared.claims.0.load(Ordering::Acquire);
                }
                Err(now) => claims = now,
            }
        }
    }

    /// Waits until all steps that this thread has come to are done.
    pub(crate) fn settle(&self) {
        if self.team > 1 {
            self.wait_for(self.steps.get());
        }
    }

    /// Waits until `step` has begun.
    fn wait_for(&self, step: u64) {
        let shared = self.shared;
        let begun = || shared.claims.0.load(Ordering::SeqCst) >> 32 >= step;
        let abandoned = || shared.poisoned.load(Ordering::SeqCst);
        shared.waiting.wait_until(|| begun() || abandoned());
        if abandoned() {
            resume_unwind(Box::new(Abandoned));
        }
    }
}

/// Lets threads into a region while it is open, and counts those inside. Number of the region in the upper half.
#[derive(Default)]
struct Gate(AtomicU64);

impl Gate {
    const OPEN: u64 = 1 << 31;

    fn open(&self) {
        let region = (self.0.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        self.0.store(region | Gate::OPEN, Ordering::SeqCst);
    }

    fn close(&self) {
        self.0.fetch_and(!Gate::OPEN, Ordering::AcqRel);
    }

    /// The region to enter after `seen`, if one is open.
    fn next(&self, seen: u64) -> Option<u64> {
        let now = self.0.load(Ordering::SeqCst);
        (now & Gate::OPEN != 0 && now >> 32 != seen).then_some(now >> 32)
    }

    /// Enters a region; false when it is over.
    fn enter(&self, region: u64) -> bool {
        let step = |now: u64| (now & Gate::OPEN != 0 && now >> 32 == region).then_some(now + 1);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, step).is_ok()
    }

    fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn is_empty(&self) -> bool {
        self.0.load(Ordering::SeqCst) & (Gate::OPEN - 1) == 0
    }
}

/// Where threads wait for something that others do.
#[derive(Default)]
struct Parking {
    sleepers: Line<AtomicUsize>,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Parking {
    /// Spins, then sleeps until it is so. Whoever makes it so calls [`Parking::wake`] afterwards, both in sequentially consistent
    /// order: then either `ready` sees it, or `wake` sees the sleeper.
    fn wait_until(&self, ready: impl Fn() -> bool) {
        let mut since = None;
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    return;
                }
                std::hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() > SPIN {
                break;
            }
        }
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.0.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            lock = self.changed.wait(lock).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        if self.sleepers.0.load(Ordering::SeqCst) != 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }
}

impl Shared {
    /// Begins a step; the one before is done.
    fn begin(&self, step: u64) {
        self.done.0.store(0, Ordering::Relaxed);
        self.claims.0.store(step << 32, Ordering::SeqCst);
        self.waiting.wake();
    }

    /// Runs the closure as thread `index`, turning a panic into a poisoned region.
    fn run(&self, job: &(dyn Fn(&Worker) + Sync), team: usize, index: usize) {
        let worker = Worker { shared: self, team, index, steps: Cell::new(0) };
        let walked = catch_unwind(AssertUnwindSafe(|| {
            job(&worker);
            if index == 0 {
                worker.settle();
            }
        }));
        if let Err(payload) = walked {
            if !payload.is::<Abandoned>() {
                let mut message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
                message.get_or_insert_with(|| panic_text(payload.as_ref()));
            }
            self.poisoned.store(true, Ordering::SeqCst);
            self.waiting.wake();
        }
    }

    /// A worker's life.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        while let Some(region) = self.wait_for_region(seen, index) {
            seen = region;
            if !self.gate.0.enter(region) {
                continue;
            }
            // SAFETY: the value was published before the gate opened, and stays while somebody is inside.
            if let Some((job, team)) = unsafe { *self.job.get() } {
                // SAFETY: `Pool::run` keeps the closure alive until the gate is shut and everybody has left.
                self.run(unsafe { &*job }, team, index);
            }
            self.gate.0.leave();
            self.waiting.wake();
        }
    }

    /// The next region for this thread; `None` when the pool is closing.
    fn wait_for_region(&self, seen: u64, index: usize) -> Option<u64> {
        let next = || self.gate.0.next(seen).filter(|_| index < self.team.load(Ordering::SeqCst));
        let stopped = || self.stop.load(Ordering::SeqCst);
        let idle_since = Instant::now();
        let mut looks = 0u32;
        loop {
            if stopped() {
                return None;
            }
            if let Some(region) = next() {
                return Some(region);
            }
            looks = looks.wrapping_add(1);
            if !looks.is_multiple_of(LOOKS) {
                std::hint::spin_loop();
                continue;
            }
            let idle = idle_since.elapsed();
            if idle < IDLE_BEFORE_SLEEP {
                if idle > SPIN {
                    std::thread::yield_now();
                }
                continue;
            }
            // Announce sleep, then look again: whoever opens the gate looks at `asleep` after it.
            self.asleep[index].store(true, Ordering::SeqCst);
            while next().is_none() && !stopped() {
                std::thread::park();
            }
            self.asleep[index].store(false, Ordering::SeqCst);
        }
    }
}

impl Team {
    /// The size of the next region's team, out of `threads`.
    fn next_size(&mut self, threads: usize) -> usize {
        let recount = self.counted.is_none_or(|at| at.elapsed() > RECOUNT);
        if threads > 1 && self.within_cpus && recount {
            self.size = threads.min(cpus());
            self.counted = Some(Instant::now());
        }
        self.size
    }
}

/// CPUs that this thread may use: its affinity, and no more than its quota.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(usize::MAX, usize::from)
}

impl Pool {
    /// Starts `threads - 1` workers beside the calling thread; `threads` is at least 1. Where the system refuses threads, the pool
    /// has those that it got: see [`Pool::threads`].
    pub(crate) fn new(threads: usize) -> Pool {
        Pool::start(threads, |index, work| {
            std::thread::Builder::new().name(format!("unicorn-cpu-{index}")).spawn(work)
        })
    }

    fn start(
        threads: usize,
        mut spawn: impl FnMut(usize, Box<dyn FnOnce() + Send>) -> std::io::Result<JoinHandle<()>>,
    ) -> Pool {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            gate: Line::default(),
            job: UnsafeCell::new(None),
            team: AtomicUsize::new(0),
            claims: Line::default(),
            done: Line::default(),
            waiting: Parking::default(),
            poisoned: AtomicBool::new(false),
            message: Mutex::new(None),
            stop: AtomicBool::new(false),
            asleep: (0..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let start = |index| {
            let shared = Arc::clone(&shared);
            spawn(index, Box::new(move || shared.serve(index))).ok()
        };
        let workers: Vec<_> = (1..threads).map_while(start).collect();
        let size = workers.len() + 1;
        let team = Team { size, counted: None, within_cpus: true };
        Pool { shared, workers, region: Mutex::new(team) }
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Threads that take part in a region now: no more than the CPUs that the process may use.
    pub(crate) fn team(&self) -> usize {
        self.region.lock().unwrap_or_else(PoisonError::into_inner).next_size(self.threads())
    }

    /// From now on all threads take part in regions, however few the CPUs are.
    #[cfg(test)]
    pub(crate) fn use_all_threads(&self) {
        let mut team = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        (team.within_cpus, team.size) = (false, self.threads());
    }

    /// Runs `job` on the threads of the team and returns when all are done. Regions exclude each other; a job must not start one.
    pub(crate) fn run(&self, job: &(dyn Fn(&Worker) + Sync)) -> Result<(), Panicked> {
        let mut team = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        let size = team.next_size(self.threads());
        let shared = &*self.shared;
        shared.poisoned.store(false, Ordering::Relaxed);
        if size > 1 {
            shared.done.0.store(0, Ordering::Relaxed);
            shared.claims.0.store(0, Ordering::Relaxed);
            shared.team.store(size, Ordering::Relaxed);
            // SAFETY: erases the closure's lifetime; it outlives the region, which nobody is inside of when this returns.
            let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(&Worker) + Sync), Job>(job) };
            // SAFETY: the gate is shut and nobody inside.
            unsafe { *shared.job.get() = Some((erased, size)) };
            shared.gate.0.open();
            for (worker, asleep) in self.workers.iter().zip(&shared.asleep[1..]).take(size - 1) {
                if asleep.load(Ordering::SeqCst) {
                    worker.thread().unpark();
                }
            }
        }
        shared.run(job, size, 0);
        if size > 1 {
            shared.gate.0.close();
            shared.waiting.wait_until(|| shared.gate.0.is_empty());
        }
        if shared.poisoned.load(Ordering::SeqCst) {
            let message = shared.message.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(Panicked(message.unwrap_or_else(|| "a worker panicked".to_owned())));
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its panics, so joining cannot fail in a way that matters here.
            let _ = worker.join();
        }
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a worker panicked".to_owned())
}

#[cfg(test)]
mod tests;
