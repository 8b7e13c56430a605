//! Completion of work across devices: a [`Signal`] is given once by whoever does the work, [`Fence`]s observe it, and a
//! [`CompletionQueue`] gathers what the owner of the work wants to hear of. Nothing here polls.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{DeviceError, HeadOutput};

/// How work ended; errors are shared by everything that depended on it.
pub type Outcome = Result<(), Arc<DeviceError>>;

type Callback = Box<dyn FnOnce(&Outcome) + Send>;

enum State {
    Pending(Vec<Callback>),
    Done { outcome: Outcome, ran: Ran },
}

/// When a device worked on something. Work that was never begun starts when it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ran {
    /// When the device began, as well as it can tell.
    pub start: Instant,
    /// When the work was seen to have ended. A result may still have been on its way to others.
    pub end: Instant,
    /// When what it took over from another device had been copied in, where that was apart from the work and was seen.
    pub arrived: Option<Instant>,
    /// When its result had reached where others see it.
    pub left: Instant,
}

struct Inner {
    id: u64,
    state: Mutex<State>,
    done: Condvar,
}

/// Locks what stays whole after every statement, so that a panic elsewhere cannot have broken it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Observes one piece of work. Clones observe the same.
#[derive(Clone)]
pub struct Fence(Arc<Inner>);

impl Fence {
    /// A number that no other fence of the process has.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// How the work ended, or `None` while it has not.
    pub fn outcome(&self) -> Option<Outcome> {
        match &*lock(&self.0.state) {
            State::Pending(_) => None,
            State::Done { outcome, .. } => Some(outcome.clone()),
        }
    }

    /// When the device worked, or `None` while the work has not ended.
    pub fn ran(&self) -> Option<Ran> {
        match &*lock(&self.0.state) {
            State::Pending(_) => None,
            State::Done { ran, .. } => Some(*ran),
        }
    }

    /// Blocks until the work has ended. For callers with nothing else to do; devices use [`Fence::all`].
    pub fn wait(&self) -> Outcome {
        let mut state = lock(&self.0.state);
        loop {
            match &*state {
                State::Done { outcome, .. } => return outcome.clone(),
                State::Pending(_) => {
                    state = self.0.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Calls `f` once, when the work has ended: now if it has, else on the thread that ends it.
    pub(crate) fn on_done(&self, f: impl FnOnce(&Outcome) + Send + 'static) {
        let mut state = lock(&self.0.state);
        match &mut *state {
            State::Pending(callbacks) => callbacks.push(Box::new(f)),
            State::Done { outcome, .. } => {
                let outcome = outcome.clone();
                drop(state);
                f(&outcome);
            }
        }
    }

    /// Calls `f` once, when all of `fences` have ended, with the first error among them: now if they have, else on the thread that ends
    /// the last one. `behind` has to have ended too, well or not.
    pub fn all(fences: &[Fence], behind: Option<&Fence>, f: impl FnOnce(Outcome) + Send + 'static) {
        type Last = Box<dyn FnOnce(Outcome) + Send>;
        struct Join {
            left: AtomicUsize,
            error: Mutex<Option<Arc<DeviceError>>>,
            f: Mutex<Option<Last>>,
        }
        let f = Mutex::new(Some(Box::new(f) as Last));
        // One more than there are fences: `f` is not called while they are being looked at.
        let left = AtomicUsize::new(fences.len() + usize::from(behind.is_some()) + 1);
        let join = Arc::new(Join { left, error: Mutex::new(None), f });
        let arrive = |join: &Join, outcome: &Outcome| {
            if let Err(error) = outcome {
                lock(&join.error).get_or_insert_with(|| error.clone());
            }
            if join.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                let error = lock(&join.error).take();
                let f = lock(&join.f).take();
                if let Some(f) = f {
                    f(error.map_or(Ok(()), Err));
                }
            }
        };
        for fence in fences {
            let join = join.clone();
            fence.on_done(move |outcome| arrive(&join, outcome));
        }
        if let Some(fence) = behind {
            let join = join.clone();
            fence.on_done(move |_| arrive(&join, &Ok(())));
        }
        arrive(&join, &Ok(()));
    }
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fence({})", self.0.id)
    }
}

/// Ends one piece of work, once. Dropped without being given it ends the work with an error, so that no one waits for ever.
///
/// Ending work runs what waits for it on this thread, other devices' submissions included: never do so with a lock held.
pub struct Signal {
    fence: Fence,
    queue: Option<(Arc<Gathered>, u64)>,
    arrived: Option<Instant>,
    begun: Option<Instant>,
    worked: Option<Instant>,
    given: bool,
}

impl Signal {
    /// A signal that only fences observe.
    pub fn new() -> Signal {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = Mutex::new(State::Pending(Vec::new()));
        let fence = Fence(Arc::new(Inner { id, state, done: Condvar::new() }));
        Signal { fence, queue: None, arrived: None, begun: None, worked: None, given: false }
    }

    /// Observes this signal.
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// The device begins with the work now, or began at another moment.
    pub fn begin(&mut self, at: Instant) {
        self.begun = Some(at);
    }

    /// What comes from another device had been copied in at this moment.
    pub fn arrived(&mut self, at: Instant) {
        self.arrived = Some(at);
    }

    /// The device's units were through with the work at this moment. What is left is the way of the result to where others see it, beside
    /// which they go on with other work.
    pub fn worked(&mut self, at: Instant) {
        self.worked = Some(at);
    }

    /// Ends the work. The output of a head block reaches the queue that the signal belongs to, if any.
    pub fn give(mut self, result: Result<Option<HeadOutput>, Arc<DeviceError>>) {
        self.end(result);
    }

    fn end(&mut self, result: Result<Option<HeadOutput>, Arc<DeviceError>>) {
        self.given = true;
        let outcome = result.as_ref().map(|_| ()).map_err(Arc::clone);
        let callbacks = {
            let mut state = lock(&self.fence.0.state);
            let end = Instant::now();
            let worked = self.worked.unwrap_or(end);
            let (start, arrived) = (self.begun.unwrap_or(worked), self.arrived);
            let ran = Ran { start, end: worked, arrived, left: end };
            match std::mem::replace(&mut *state, State::Done { outcome: outcome.clone(), ran }) {
                State::Pending(callbacks) => callbacks,
                State::Done { .. } => Vec::new(),
            }
        };
        self.fence.0.done.notify_all();
        if let Some((queue, tag)) = self.queue.take() {
            let mut ended = lock(&queue.ended);
            ended.push_back(Completion { tag, result });
            queue.count.store(ended.len(), Ordering::Release);
            drop(ended);
            queue.some.notify_one();
        }
        for f in callbacks {
            // A panic there is a fault of another device's code. What it held is dropped, which ends that work with an error.
            let _ = catch_unwind(AssertUnwindSafe(|| f(&outcome)));
        }
    }
}

impl Default for Signal {
    fn default() -> Signal {
        Signal::new()
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        if !self.given {
            self.end(Err(Arc::new(DeviceError::Abandoned)));
        }
    }
}

/// What a queue tells of ended work.
#[derive(Debug)]
pub struct Completion {
    /// As given to [`CompletionQueue::signal`].
    pub tag: u64,
    /// What the head produced, `None` where the work had none.
    pub result: Result<Option<HeadOutput>, Arc<DeviceError>>,
}

#[derive(Default)]
struct Gathered {
    ended: Mutex<VecDeque<Completion>>,
    /// Completions in `ended`, for who looks without the lock.
    count: AtomicUsize,
    some: Condvar,
}

/// The tag of a completion that stands for no work: somebody woke who waits.
pub const WOKEN: u64 = u64::MAX;

/// Wakes who waits for a [`CompletionQueue`], from any thread.
#[derive(Clone)]
pub struct Waker(Arc<Gathered>);

impl Waker {
    /// A completion with the tag [`WOKEN`] arrives, unless one lies there already.
    pub fn wake(&self) {
        let mut ended = lock(&self.0.ended);
        if ended.iter().all(|completion| completion.tag != WOKEN) {
            ended.push_back(Completion { tag: WOKEN, result: Ok(None) });
            self.0.count.store(ended.len(), Ordering::Release);
            drop(ended);
            self.0.some.notify_one();
        }
    }
}

/// Gathers completions of work on all devices, in the order in which it ended.
#[derive(Default)]
pub struct CompletionQueue(Arc<Gathered>);

impl CompletionQueue {
    /// A queue without completions.
    pub fn new() -> CompletionQueue {
        CompletionQueue::default()
    }

    /// A signal whose completion arrives here under `tag`.
    pub fn signal(&self, tag: u64) -> Signal {
        let mut signal = Signal::new();
        signal.queue = Some((self.0.clone(), tag));
        signal
    }

    /// Wakes who waits here.
    pub fn waker(&self) -> Waker {
        Waker(self.0.clone())
    }

    /// The next completion if there is one.
    pub fn try_next(&self) -> Option<Completion> {
        let mut ended = lock(&self.0.ended);
        let next = ended.pop_front();
        self.0.count.store(ended.len(), Ordering::Release);
        next
    }

    /// Blocks until there is a completion. Call it only while a signal of this queue is still to be given.
    pub fn next(&self) -> Completion {
        self.next_awake(Duration::ZERO)
    }

    /// [`CompletionQueue::next`], but this thread stays awake for up to `awake` before it sleeps: a sleeping thread takes some 50 us to
    /// wake, which is long beside a token of a small model on a fast GPU.
    pub fn next_awake(&self, awake: Duration) -> Completion {
        if !awake.is_zero() {
            let since = Instant::now();
            while self.0.count.load(Ordering::Acquire) == 0 && since.elapsed() < awake {
                std::thread::yield_now();
            }
        }
        let mut ended = lock(&self.0.ended);
        loop {
            match ended.pop_front() {
                Some(completion) => {
                    self.0.count.store(ended.len(), Ordering::Release);
                    return completion;
                }
                None => ended = self.0.some.wait(ended).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(what: &str) -> Arc<DeviceError> {
        let (device, what) = ("a".into(), what.into());
        Arc::new(DeviceError::Lost { device, what })
    }

    #[test]
    fn a_fence_tells_how_work_ended_to_all_who_ask() {
        let signal = Signal::new();
        let fence = signal.fence();
        assert!(fence.outcome().is_none());
        let (sender, receiver) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let sender = sender.clone();
            fence.on_done(move |outcome| sender.send(outcome.is_ok()).unwrap());
        }
        let waiting = std::thread::spawn({
            let fence = fence.clone();
            move || fence.wait().is_ok()
        });
        assert!(fence.ran().is_none());
        let mut signal = signal;
        let begun = Instant::now();
        signal.begin(begun);
        signal.give(Ok(None));
        assert!(fence.ran().is_some_and(|ran| ran.start == begun && ran.end >= begun));
        let mut told_later = Signal::new();
        let later = told_later.fence();
        let through = begun + Duration::from_nanos(1);
        told_later.begin(begun);
        told_later.worked(through);
        told_later.arrived(begun);
        told_later.give(Ok(None));
        let ran = later.ran().unwrap();
        assert_eq!((ran.start, ran.end, ran.arrived), (begun, through, Some(begun)));
        assert!(ran.left >= through);
        assert!(waiting.join().unwrap());
        fence.on_done(move |outcome| sender.send(outcome.is_ok()).unwrap());
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [true; 3]);
    }

    #[test]
    fn all_waits_for_the_last_and_tells_the_first_error() {
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut signals: Vec<Option<Signal>> = (0..3).map(|_| Some(Signal::new())).collect();
            let fences: Vec<Fence> = signals.iter().flatten().map(Signal::fence).collect();
            let told = Arc::new(Mutex::new(Vec::new()));
            let there = told.clone();
            Fence::all(&fences, None, move |outcome| there.lock().unwrap().push(outcome));
            for (n, i) in order.into_iter().enumerate() {
                assert!(told.lock().unwrap().is_empty(), "told after {n} of 3");
                let result = if i == 0 { Ok(None) } else { Err(failed(&format!("{i}"))) };
                signals[i].take().unwrap().give(result);
            }
            let told = told.lock().unwrap();
            let first = order.iter().find(|i| **i != 0).unwrap();
            assert_eq!(told.len(), 1);
            assert!(told[0].as_ref().unwrap_err().to_string().ends_with(&first.to_string()));
        }
        let called = Arc::new(AtomicUsize::new(0));
        let there = called.clone();
        let earlier = Signal::new();
        Fence::all(&[], Some(&earlier.fence()), move |outcome| {
            there.fetch_add(usize::from(outcome.is_ok()), Ordering::Relaxed);
        });
        assert_eq!(called.load(Ordering::Relaxed), 0);
        // What is only waited for may end badly.
        earlier.give(Err(failed("earlier")));
        assert_eq!(called.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_dropped_signal_is_an_error_and_not_a_hang() {
        let queue = CompletionQueue::new();
        let signal = queue.signal(7);
        let fence = signal.fence();
        drop(signal);
        assert!(matches!(*fence.wait().unwrap_err(), DeviceError::Abandoned));
        let completion = queue.next();
        assert_eq!(completion.tag, 7);
        assert!(completion.result.is_err() && queue.try_next().is_none());
    }

    #[test]
    fn a_panic_of_who_waits_harms_nobody_else() {
        let queue = CompletionQueue::new();
        let (first, dependent) = (Signal::new(), queue.signal(1));
        first.fence().on_done(move |_| {
            let _held = dependent;
            panic!("a fault of another device");
        });
        let called = Arc::new(AtomicUsize::new(0));
        let there = called.clone();
        first.fence().on_done(move |_| {
            there.fetch_add(1, Ordering::Relaxed);
        });
        first.give(Ok(None));
        assert_eq!(called.load(Ordering::Relaxed), 1);
        assert!(matches!(*queue.next().result.unwrap_err(), DeviceError::Abandoned));
    }

    #[test]
    fn who_waits_can_be_woken_and_is_told_once() {
        let queue = CompletionQueue::new();
        let waker = queue.waker();
        let waking = std::thread::spawn(move || (0..3).for_each(|_| waker.wake()));
        assert_eq!(queue.next().tag, WOKEN);
        waking.join().unwrap();
        // Of what came while nobody waited at most one is left.
        let left = std::iter::from_fn(|| queue.try_next()).count();
        assert!(left <= 1, "{left}");
    }

    #[test]
    fn completions_arrive_from_any_thread() {
        let queue = CompletionQueue::new();
        let signals: Vec<Signal> = (0..20).map(|tag| queue.signal(tag)).collect();
        let threads = signals.into_iter().map(|s| std::thread::spawn(move || s.give(Ok(None))));
        let threads: Vec<_> = threads.collect();
        let next = |i: u64| if i < 10 { queue.next() } else { queue.next_awake(Duration::from_millis(5)) };
        let mut tags: Vec<u64> = (0..20).map(|i| next(i).tag).collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..20).collect::<Vec<_>>());
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
}
