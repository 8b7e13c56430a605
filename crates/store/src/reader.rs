//! Threads that read pages, each page by itself, so that several are on their way.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use unicorn_core::{DeviceError, PageRecords, Signal};

use crate::shared::Shared;

/// Most pages that wait to be read.
const WAITING_MAX: usize = 1 << 16;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a read is told where it fails.
fn failed(reason: String) -> Arc<DeviceError> {
    let (device, what) = ("saved pages".to_owned(), "reading a page of state".to_owned());
    Arc::new(DeviceError::Failed { device, what, reason })
}

/// Pages that were asked for together.
struct Job {
    records: PageRecords,
    left: AtomicUsize,
    failed: AtomicBool,
    /// Given with the last page; holds why the first of those that failed did.
    end: Mutex<(Option<Signal>, Option<String>)>,
}

impl Job {
    fn page(&self, shared: &Shared, row: usize) {
        // Nobody wants the others where one is missing.
        if !self.failed.load(Ordering::Relaxed)
            && let Err(why) = shared.read(&self.records, row)
        {
            self.fail(why);
        }
        self.ended();
    }

    fn fail(&self, why: String) {
        self.failed.store(true, Ordering::Relaxed);
        lock(&self.end).1.get_or_insert(why);
    }

    fn ended(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let (signal, why) = std::mem::take(&mut *lock(&self.end));
            if let Some(signal) = signal {
                signal.give(why.map_or(Ok(None), |why| Err(failed(why))));
            }
        }
    }
}

#[derive(Default)]
struct Queue {
    pages: VecDeque<(Arc<Job>, usize)>,
    stopped: bool,
}

#[derive(Default)]
pub(crate) struct Reader {
    queue: Mutex<Queue>,
    some: Condvar,
}

impl Reader {
    pub fn submit(&self, records: PageRecords, done: Signal) {
        let count = records.keys.len();
        if count == 0 {
            return done.give(Ok(None));
        }
        if records.parts.iter().any(|part| part.rows() < count) {
            return done.give(Err(failed(format!("a part has fewer rows than {count} pages"))));
        }
        let mut queue = lock(&self.queue);
        if queue.stopped || queue.pages.len().saturating_add(count) > WAITING_MAX {
            drop(queue);
            return done.give(Err(failed("too many pages wait to be read".to_owned())));
        }
        let (left, failed) = (AtomicUsize::new(count), AtomicBool::new(false));
        let job = Arc::new(Job { records, left, failed, end: Mutex::new((Some(done), None)) });
        queue.pages.extend((0..count).map(|row| (job.clone(), row)));
        drop(queue);
        self.some.notify_all();
    }

    /// What each of the threads does until the store is closed.
    pub fn run(&self, shared: &Shared) {
        let mut queue = lock(&self.queue);
        loop {
            match queue.pages.pop_front() {
                Some((job, row)) => {
                    drop(queue);
                    job.page(shared, row);
                    queue = lock(&self.queue);
                }
                None if queue.stopped => return,
                None => queue = self.some.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Ends the threads. Pages that wait are not read.
    pub fn stop(&self) {
        let waiting = {
            let mut queue = lock(&self.queue);
            queue.stopped = true;
            std::mem::take(&mut queue.pages)
        };
        self.some.notify_all();
        for (job, _) in waiting {
            job.fail("the store was closed".to_owned());
            job.ended();
        }
    }
}
