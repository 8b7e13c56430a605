//! A thread that runs submitted work one piece at a time, so that submission never waits for it.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use unicorn_core::{DeviceError, Fence, HeadOutput, StreamId, Work};

/// Runs one piece of work to its end.
type Run = Box<dyn Fn(&Work) -> Result<Option<HeadOutput>, DeviceError> + Send + Sync>;

/// See the module's documentation. Of the work that is ready the one submitted first runs first.
pub(crate) struct Submitter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    device: String,
    run: Run,
    state: Mutex<State>,
    some: Condvar,
}

#[derive(Default)]
struct State {
    /// By the order of submission.
    ready: BTreeMap<u64, Work>,
    submitted: u64,
    /// The newest work of each stream.
    last: HashMap<StreamId, Fence>,
    closing: bool,
    /// No thread could be started: whoever makes work ready runs it, one piece at a time.
    inline: bool,
    running: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, mut work: Work) {
        work.done.begin(Instant::now());
        // A panic inside a kernel is a fault of this program, but no reason to leave everyone waiting.
        let result = catch_unwind(AssertUnwindSafe(|| (self.run)(&work)));
        let what = || DeviceError::Failed {
            device: self.device.clone(),
            what: format!("a batch of {} rows", work.batch.rows()),
            reason: "panic in a kernel".into(),
        };
        work.done.give(result.unwrap_or_else(|_| Err(what())).map_err(Arc::new));
    }

    fn ready(&self, number: u64, work: Work) {
        let mut state = self.lock();
        state.ready.insert(number, work);
        if !state.inline {
            self.some.notify_one();
            return;
        }
        if state.running {
            // Whoever runs comes here next.
            return;
        }
        state.running = true;
        while let Some((_, work)) = state.ready.pop_first() {
            drop(state);
            self.end(work);
            state = self.lock();
        }
        state.running = false;
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if state.closing {
                return;
            }
            match state.ready.pop_first() {
                Some((_, work)) => {
                    drop(state);
                    self.end(work);
                    state = self.lock();
                }
                None => state = self.some.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Submitter {
    /// Starts the thread. Where the system allows none, work runs on the thread that makes it ready.
    pub(crate) fn start(
        device: &str,
        run: impl Fn(&Work) -> Result<Option<HeadOutput>, DeviceError> + Send + Sync + 'static,
    ) -> Submitter {
        let (state, some) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { device: device.to_owned(), run: Box::new(run), state, some });
        let serving = shared.clone();
        let name = format!("{device}-submitter");
        let thread = std::thread::Builder::new().name(name).spawn(move || serving.serve()).ok();
        shared.lock().inline = thread.is_none();
        Submitter { shared, thread }
    }

    /// Queues work; it runs once what it waits for has ended well, and earlier work of its stream has ended.
    pub(crate) fn submit(&self, work: Work) {
        let after = work.after.clone();
        let mut state = self.shared.lock();
        let number = state.submitted;
        state.submitted += 1;
        let before = state.last.insert(work.stream, work.done.fence());
        drop(state);
        let shared = self.shared.clone();
        Fence::all(&after, before.as_ref(), move |outcome| match outcome {
            Ok(()) => shared.ready(number, work),
            Err(source) => {
                let device = shared.device.clone();
                work.done.give(Err(Arc::new(DeviceError::Dependency { device, source })));
            }
        });
    }
}

impl Drop for Submitter {
    /// Work under way is waited for; what has not begun ends with an error.
    fn drop(&mut self) {
        let left = {
            let mut state = self.shared.lock();
            state.closing = true;
            std::mem::take(&mut state.ready)
        };
        self.shared.some.notify_all();
        drop(left);
        if let Some(thread) = self.thread.take() {
            // It ends behind the work that it is doing; a panic there was told already.
            let _ = thread.join();
        }
    }
}
