//! Tells the end of submitted work, in the order of submission, on a thread that waits for the GPU so that nobody else has to.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use unicorn_core::Signal;

/// Work that the queue has.
pub(crate) struct Submitted<T> {
    /// Timeline value that marks its end.
    pub(crate) value: u64,
    pub(crate) done: Signal,
    /// What is needed to tell how it ended.
    pub(crate) what: T,
}

/// The work that the queue has and whose end was not told.
pub(crate) struct Submissions<T> {
    state: Mutex<State<T>>,
    some: Condvar,
}

struct State<T> {
    queue: VecDeque<Submitted<T>>,
    /// Numbers of the fences of what the queue has: later work of the queue need not wait for these.
    fences: HashSet<u64>,
    closing: bool,
}

/// How long the thread asks for new work before it sleeps, since waking takes some 50 us.
const AWAKE: Duration = Duration::from_micros(300);

impl<T> Submissions<T> {
    pub(crate) fn new() -> Arc<Submissions<T>> {
        let state = State { queue: VecDeque::new(), fences: HashSet::new(), closing: false };
        Arc::new(Submissions { state: Mutex::new(state), some: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds work that was just submitted. Called in the order of submission.
    pub(crate) fn push(&self, submitted: Submitted<T>) {
        let mut state = self.lock();
        state.fences.insert(submitted.done.fence().id());
        state.queue.push_back(submitted);
        drop(state);
        self.some.notify_one();
    }

    /// True when the queue has the work of this fence: what is submitted now comes behind it.
    pub(crate) fn has(&self, fence: u64) -> bool {
        self.lock().fences.contains(&fence)
    }

    /// Ends [`Submissions::serve`] once everything has been told.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.some.notify_all();
    }

    /// The oldest work; waits until there is some. `None` when closed and done. `eager`: a while is spent asking before it sleeps.
    fn oldest(&self, eager: bool) -> Option<Submitted<T>> {
        let since = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(oldest) = state.queue.pop_front() {
                return Some(oldest);
            }
            if state.closing {
                return None;
            }
            if eager && since.elapsed() < AWAKE {
                drop(state);
                std::thread::yield_now();
                state = self.lock();
            } else {
                state = self.some.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Calls `tell` for all work in order, until closed.
    pub(crate) fn serve(&self, eager: bool, tell: impl Fn(Submitted<T>)) {
        while let Some(submitted) = self.oldest(eager) {
            let fence = submitted.done.fence().id();
            tell(submitted);
            self.lock().fences.remove(&fence);
        }
    }

    /// Tells what is there, on the thread that calls: for a device that could not start one of its own.
    pub(crate) fn drain(&self, tell: impl Fn(Submitted<T>)) {
        loop {
            let Some(submitted) = self.lock().queue.pop_front() else { return };
            let fence = submitted.done.fence().id();
            tell(submitted);
            self.lock().fences.remove(&fence);
        }
    }
}
