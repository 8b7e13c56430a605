//! The thread pool: one parallel region at a time, light barriers inside it, no sleep between regions that follow closely.
//!
//! The calling thread is worker 0. A region is one closure that every worker runs; inside it workers meet at
//! [`Worker::barrier`] and share loops through [`Worker::dynamic`]. Waiting threads spin, then yield to the operating
//! system (machines are shared), and workers without a region park after [`IDLE_BEFORE_SLEEP`].

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker without work stays awake. Longer than the time between two tokens' submissions.
const IDLE_BEFORE_SLEEP: Duration = Duration::from_micros(800);
/// Spins before a waiting thread starts to yield: some tens of microseconds.
const SPINS_BEFORE_YIELD: u32 = 2000;
/// Shared loops between two barriers.
const LOOPS: usize = 16;

/// A worker panicked; the region was abandoned and the pool is usable again.
#[derive(thiserror::Error, Debug)]
#[error("{0}")]
pub(crate) struct Panicked(pub(crate) String);

/// Threads that run regions together.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held for the time of a region.
    region: Mutex<()>,
}

#[repr(align(128))]
#[derive(Default)]
struct Line<T>(T);

type Job = *const (dyn Fn(&Worker) + Sync);

struct Shared {
    threads: usize,
    /// Counts regions; a change tells workers to start.
    epoch: Line<AtomicU32>,
    /// The current region's closure; valid while `running` is not zero.
    job: UnsafeCell<Option<Job>>,
    /// Workers still inside the region.
    running: Line<AtomicUsize>,
    arrived: Line<AtomicUsize>,
    generation: Line<AtomicU32>,
    /// Next index of each shared loop since the last barrier.
    loops: [Line<AtomicUsize>; LOOPS],
    /// A thread of the current region panicked.
    poisoned: AtomicBool,
    message: Mutex<Option<String>>,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` is written only while no worker is inside a region, and published by `epoch`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure.
unsafe impl Send for Shared {}

/// A thread's view of the region it runs in.
pub(crate) struct Worker<'a> {
    shared: &'a Shared,
    /// `0 .. threads`; 0 is the thread that started the region.
    pub(crate) index: usize,
    /// Shared loops entered since the last barrier.
    entered: Cell<usize>,
}

/// Unwinds threads out of a region in which another one panicked.
struct Abandoned;

impl Worker<'_> {
    /// Threads in the region.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Waits until every thread of the region has arrived; writes before it are visible to all after it.
    pub(crate) fn barrier(&self) {
        self.entered.set(0);
        let shared = self.shared;
        if shared.threads == 1 {
            shared.reset_loops();
            return;
        }
        let generation = shared.generation.0.load(Ordering::Acquire);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == shared.threads {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.reset_loops();
            shared.generation.0.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            let mut wait = Backoff::default();
            while shared.generation.0.load(Ordering::Acquire) == generation {
                if shared.poisoned.load(Ordering::Relaxed) {
                    break;
                }
                wait.pause();
            }
        }
        if shared.poisoned.load(Ordering::Relaxed) {
            resume_unwind(Box::new(Abandoned));
        }
    }

    /// Calls `f` with parts of `0 .. count`, at most `grain` long, each for one thread. Every thread of the region must
    /// reach the same sequence of such loops. No barrier at the end.
    pub(crate) fn dynamic(&self, count: usize, grain: usize, mut f: impl FnMut(Range<usize>)) {
        let slot = self.entered.get();
        self.entered.set(slot + 1);
        let grain = grain.max(1);
        if self.shared.threads == 1 {
            if count > 0 {
                f(0..count);
            }
            return;
        }
        let Some(next) = self.shared.loops.get(slot) else {
            return f(self.share(count, grain));
        };
        loop {
            let start = next.0.fetch_add(grain, Ordering::Relaxed);
            if start >= count {
                return;
            }
            f(start..count.min(start + grain));
        }
    }

    /// This thread's equal share of `0 .. count`, cut at multiples of `unit`; may be empty.
    pub(crate) fn share(&self, count: usize, unit: usize) -> Range<usize> {
        let units = count.div_ceil(unit);
        let cut = |i: usize| count.min(units * i / self.shared.threads * unit);
        cut(self.index)..cut(self.index + 1)
    }
}

impl Shared {
    fn reset_loops(&self) {
        for next in &self.loops {
            next.0.store(0, Ordering::Relaxed);
        }
    }

    /// Runs the closure as thread `index`, turning a panic into a poisoned region.
    fn enter(&self, job: &(dyn Fn(&Worker) + Sync), index: usize) {
        let worker = Worker { shared: self, index, entered: Cell::new(0) };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            if !payload.is::<Abandoned>() {
                let mut message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
                message.get_or_insert_with(|| panic_text(payload.as_ref()));
            }
            self.poisoned.store(true, Ordering::SeqCst);
        }
    }

    /// A worker's life.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            if !self.wait_for_region(seen, index) {
                return;
            }
            seen = seen.wrapping_add(1);
            // SAFETY: the epoch was published after the job, and stays until `running` drops to zero.
            if let Some(job) = unsafe { *self.job.get() } {
                // SAFETY: `Pool::run` keeps the closure alive until `running` is zero.
                self.enter(unsafe { &*job }, index);
            }
            self.running.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// False when the pool is closing.
    fn wait_for_region(&self, seen: u32, index: usize) -> bool {
        let mut wait = Backoff::default();
        let mut idle_since = None;
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return false;
            }
            if self.epoch.0.load(Ordering::Acquire) != seen {
                return true;
            }
            if !wait.pause() {
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() < IDLE_BEFORE_SLEEP {
                continue;
            }
            // Announce sleep, then look again: whoever publishes an epoch looks at `asleep` after it.
            self.asleep[index].store(true, Ordering::SeqCst);
            while self.epoch.0.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.asleep[index].store(false, Ordering::SeqCst);
        }
    }
}

/// Spins first, then yields.
#[derive(Default)]
struct Backoff(u32);

impl Backoff {
    /// True when it yielded.
    fn pause(&mut self) -> bool {
        if self.0 < SPINS_BEFORE_YIELD {
            self.0 += 1;
            std::hint::spin_loop();
            false
        } else {
            std::thread::yield_now();
            true
        }
    }
}

impl Pool {
    /// Starts `threads - 1` workers; `threads` is at least 1.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            threads,
            epoch: Line::default(),
            job: UnsafeCell::new(None),
            running: Line::default(),
            arrived: Line::default(),
            generation: Line::default(),
            loops: Default::default(),
            poisoned: AtomicBool::new(false),
            message: Mutex::new(None),
            stop: AtomicBool::new(false),
            asleep: (0..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), region: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("unicorn-cpu-{index}");
            pool.workers.push(std::thread::Builder::new().name(name).spawn(move || shared.serve(index))?);
        }
        Ok(pool)
    }

    /// Threads of a region, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `job` on every thread and returns when all are done. Regions exclude each other; a job must not start one.
    pub(crate) fn run(&self, job: &(dyn Fn(&Worker) + Sync)) -> Result<(), Panicked> {
        let _region: MutexGuard<()> = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        shared.reset_loops();
        shared.arrived.0.store(0, Ordering::Relaxed);
        shared.poisoned.store(false, Ordering::Relaxed);
        if !self.workers.is_empty() {
            // SAFETY: erases the closure's lifetime; it outlives the region, which ends when `running` is zero.
            let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(&Worker) + Sync), Job>(job) };
            // SAFETY: no worker reads `job` before the epoch changes.
            unsafe { *shared.job.get() = Some(erased) };
            shared.running.0.store(self.workers.len(), Ordering::Relaxed);
            shared.epoch.0.fetch_add(1, Ordering::SeqCst);
            for (worker, asleep) in self.workers.iter().zip(&shared.asleep[1..]) {
                if asleep.load(Ordering::SeqCst) {
                    worker.thread().unpark();
                }
            }
        }
        shared.enter(job, 0);
        let mut wait = Backoff::default();
        while shared.running.0.load(Ordering::Acquire) != 0 {
            wait.pause();
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
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn many_tiny_regions_with_barriers() {
        for threads in 1..=5 {
            let pool = Pool::new(threads).unwrap();
            let cells: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
            let wrong = AtomicU64::new(0);
            for round in 1..=300u64 {
                pool.run(&|w| {
                    for step in 0..5u64 {
                        let value = round * 10 + step;
                        cells[w.index].store(value, Ordering::Relaxed);
                        w.barrier();
                        for cell in &cells {
                            wrong.fetch_add(
                                u64::from(cell.load(Ordering::Relaxed) != value),
                                Ordering::Relaxed,
                            );
                        }
                        w.barrier();
                    }
                })
                .unwrap();
            }
            assert_eq!(wrong.load(Ordering::Relaxed), 0, "{threads} threads");
        }
    }

    #[test]
    fn loops_visit_every_index_once() {
        let pool = Pool::new(3).unwrap();
        let counts: Vec<AtomicU64> = (0..1000).map(|_| AtomicU64::new(0)).collect();
        for round in 1..=50 {
            pool.run(&|w| {
                for (count, grain) in [(1000, 7), (13, 100), (0, 3), (1000, 1)] {
                    w.dynamic(count, grain, |r| {
                        r.for_each(|i| _ = counts[i].fetch_add(1, Ordering::Relaxed));
                    });
                    if grain == 100 {
                        w.barrier();
                    }
                }
                for i in w.share(1000, 16) {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
            for (i, c) in counts.iter().enumerate() {
                let want = round * if i < 13 { 4 } else { 3 };
                assert_eq!(c.load(Ordering::Relaxed), want, "index {i} round {round}");
            }
        }
    }

    #[test]
    fn sleeps_and_wakes() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicU64::new(0);
        for round in 0..20 {
            pool.run(&|w| _ = total.fetch_add(1 << (8 * w.index), Ordering::Relaxed)).unwrap();
            std::thread::sleep(Duration::from_micros(300 * (round % 5)));
        }
        std::thread::sleep(Duration::from_millis(300));
        let asleep = pool.shared.asleep[1..].iter().all(|a| a.load(Ordering::SeqCst));
        assert!(asleep, "idle workers must park");
        pool.run(&|w| _ = total.fetch_add(1 << (8 * w.index), Ordering::Relaxed)).unwrap();
        assert_eq!(total.load(Ordering::Relaxed), 21 * 0x01_01_01);
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        let pool = Pool::new(4).unwrap();
        for victim in 0..4 {
            let error = pool
                .run(&|w| {
                    w.barrier();
                    if w.index == victim {
                        std::panic::panic_any(format!("broken in {victim}"));
                    }
                    w.barrier();
                    w.barrier();
                })
                .unwrap_err();
            assert_eq!(error.to_string(), format!("broken in {victim}"));
            let sum = AtomicU64::new(0);
            pool.run(&|w| {
                w.barrier();
                sum.fetch_add(1, Ordering::Relaxed);
                w.barrier();
                assert_eq!(sum.load(Ordering::Relaxed), 4);
            })
            .unwrap();
        }
    }
}
