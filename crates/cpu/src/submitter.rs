//! A thread that runs submitted work one piece at a time, so that submission never waits for it.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use unicorn_core::{DeviceError, Fence, HeadOutput, Signal, StateCopy, StreamId, Work};

/// Runs one job to its end.
type Run = Box<dyn Fn(&Job) -> Result<Option<HeadOutput>, DeviceError> + Send + Sync>;

/// What a device was asked to do.
pub(crate) enum Job {
    Work(Work),
    Copy(StateCopy),
}

impl Job {
    fn after(&self) -> &[Fence] {
        match self {
            Job::Work(work) => &work.after,
            Job::Copy(copy) => &copy.after,
        }
    }

    fn done(&mut self) -> &mut Signal {
        match self {
            Job::Work(work) => &mut work.done,
            Job::Copy(copy) => &mut copy.done,
        }
    }

    fn end(self, result: Result<Option<HeadOutput>, Arc<DeviceError>>) {
        match self {
            Job::Work(work) => work.done.give(result),
            Job::Copy(copy) => copy.done.give(result),
        }
    }

    /// For messages.
    fn name(&self) -> String {
        match self {
            Job::Work(work) => format!("a batch of {} rows", work.batch.rows()),
            Job::Copy(copy) => format!("a copy of {} pages of state", copy.pages.len()),
        }
    }
}

/// See the module's documentation. Of the jobs that are ready the one submitted first runs first.
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
    ready: BTreeMap<u64, Job>,
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

    fn end(&self, mut job: Job) {
        job.done().begin(Instant::now());
        // A panic inside a kernel is a fault of this program, but no reason to leave everyone waiting.
        let result = catch_unwind(AssertUnwindSafe(|| (self.run)(&job)));
        let what = || DeviceError::Failed {
            device: self.device.clone(),
            what: job.name(),
            reason: "panic in a kernel".into(),
        };
        let result = result.unwrap_or_else(|_| Err(what())).map_err(Arc::new);
        job.end(result);
    }

    fn ready(&self, number: u64, job: Job) {
        let mut state = self.lock();
        state.ready.insert(number, job);
        if !state.inline {
            self.some.notify_one();
            return;
        }
        if state.running {
            // Whoever runs comes here next.
            return;
        }
        state.running = true;
        while let Some((_, job)) = state.ready.pop_first() {
            drop(state);
            self.end(job);
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
                Some((_, job)) => {
                    drop(state);
                    self.end(job);
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
        run: impl Fn(&Job) -> Result<Option<HeadOutput>, DeviceError> + Send + Sync + 'static,
    ) -> Submitter {
        let (state, some) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { device: device.to_owned(), run: Box::new(run), state, some });
        let serving = shared.clone();
        let name = format!("{device}-submitter");
        let thread = std::thread::Builder::new().name(name).spawn(move || serving.serve()).ok();
        shared.lock().inline = thread.is_none();
        Submitter { shared, thread }
    }

    /// Queues a job; it runs once what it waits for has ended well, and earlier work of its stream has ended.
    pub(crate) fn submit(&self, job: Job) {
        let after = job.after().to_vec();
        let mut state = self.shared.lock();
        let number = state.submitted;
        state.submitted += 1;
        let before = match &job {
            Job::Work(work) => state.last.insert(work.stream, work.done.fence()),
            Job::Copy(_) => None,
        };
        drop(state);
        let shared = self.shared.clone();
        Fence::all(&after, before.as_ref(), move |outcome| match outcome {
            Ok(()) => shared.ready(number, job),
            Err(source) => {
                let device = shared.device.clone();
                job.end(Err(Arc::new(DeviceError::Dependency { device, source })));
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
