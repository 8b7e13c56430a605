//! The thread that writes pages, and what waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use unicorn_core::{Fence, PageRecords, Signal};

use crate::error::Trouble;
use crate::record;
use crate::shared::Shared;
use crate::state::add;

/// How long pages count as used before that is written down.
const SETTLE: Duration = Duration::from_secs(10);

/// Pages whose parts hold them.
struct Job {
    records: PageRecords,
    done: Signal,
    bytes: u64,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Job>,
    /// Bytes of pages that were taken on and have not ended, those included that devices are still copying.
    bytes: u64,
    /// No more are taken on.
    closed: bool,
    /// None are written any more.
    stopped: bool,
    /// After trouble: when the disk is tried again.
    paused: Option<Instant>,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
    some: Condvar,
    idle: Condvar,
    bytes_max: u64,
    retry: Duration,
}

/// What the thread does next.
enum Next {
    Write(Job),
    Settle,
    End,
}

impl Writer {
    /// A writer that lets `bytes_max` wait, and leaves a disk alone for `retry` after trouble.
    pub fn new(shared: Arc<Shared>, bytes_max: u64, retry: Duration) -> Writer {
        let (queue, some, idle) = (Mutex::default(), Condvar::new(), Condvar::new());
        Writer { shared, queue, some, idle, bytes_max, retry }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn queued_bytes(&self) -> u64 {
        self.lock().bytes
    }

    pub fn submit(self: &Arc<Writer>, records: PageRecords, after: &[Fence], done: Signal) {
        let count = records.keys.len() as u64;
        let short = records.parts.iter().any(|part| part.rows() < records.keys.len());
        let bytes = record::payload(&records.parts).and_then(|page| page.checked_mul(count));
        let Some(bytes) = bytes.filter(|_| !short) else {
            add(&self.shared.counts.dropped_failed, count);
            return unkept(after, done);
        };
        {
            let mut queue = self.lock();
            let paused = queue.paused.is_some_and(|until| Instant::now() < until);
            // What is larger than the queue has it for itself.
            let full = queue.bytes > 0 && queue.bytes.saturating_add(bytes) > self.bytes_max;
            if queue.closed || paused || full {
                let counts = &self.shared.counts;
                add(if full { &counts.dropped_full } else { &counts.dropped_failed }, count);
                drop(queue);
                return unkept(after, done);
            }
            queue.bytes += bytes;
        }
        let job = Job { records, done, bytes };
        let writer = self.clone();
        Fence::all(after, None, move |outcome| writer.arrived(job, outcome.is_ok()));
    }

    /// The parts hold the pages, or the work that should have filled them failed.
    fn arrived(&self, job: Job, well: bool) {
        let mut queue = self.lock();
        if well && !queue.stopped {
            queue.ready.push_back(job);
            drop(queue);
            return self.some.notify_one();
        }
        drop(queue);
        add(&self.shared.counts.dropped_failed, job.records.keys.len() as u64);
        self.ended(job);
    }

    fn ended(&self, job: Job) {
        let mut queue = self.lock();
        queue.bytes -= job.bytes;
        let idle = queue.bytes == 0;
        drop(queue);
        if idle {
            self.idle.notify_all();
        }
        let Job { records, done, .. } = job;
        drop(records);
        done.give(Ok(None));
    }

    fn next(&self) -> Next {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.ready.pop_front() {
                return Next::Write(job);
            }
            if queue.stopped {
                return Next::End;
            }
            let (there, waited) =
                self.some.wait_timeout(queue, SETTLE).unwrap_or_else(PoisonError::into_inner);
            queue = there;
            if waited.timed_out() && self.shared.index.has_used() {
                return Next::Settle;
            }
        }
    }

    /// What the thread does until the store is closed.
    pub fn run(&self) {
        loop {
            match self.next() {
                Next::Write(job) => self.write(job),
                Next::Settle => self.shared.settle(),
                Next::End => return self.shared.settle(),
            }
        }
    }

    fn write(&self, job: Job) {
        for row in 0..job.records.keys.len() {
            let kept = if self.may_write() { self.shared.write(&job.records, row) } else { Ok(None) };
            if !matches!(kept, Ok(Some(()))) {
                add(&self.shared.counts.dropped_failed, 1);
            }
            if let Err(source) = kept {
                let folder = self.shared.folder.clone();
                self.shared.counts.troubled(&Trouble::NotWritten { folder, source });
                self.lock().paused = Some(Instant::now() + self.retry);
            }
        }
        self.ended(job);
    }

    fn may_write(&self) -> bool {
        let queue = self.lock();
        !queue.stopped && queue.paused.is_none_or(|until| Instant::now() >= until)
    }

    /// Waits until nothing is left to be written, for as long as `patience`. True when nothing is.
    pub fn flush(&self, patience: Duration) -> bool {
        let queue = self.lock();
        let (queue, _) = self
            .idle
            .wait_timeout_while(queue, patience, |queue| queue.bytes > 0)
            .unwrap_or_else(PoisonError::into_inner);
        queue.bytes == 0
    }

    /// Takes on no more pages, and lets the thread end once it has written those that it has, or at the end of its patience without.
    pub fn close(&self, patience: Duration) {
        self.lock().closed = true;
        self.flush(patience);
        self.lock().stopped = true;
        self.some.notify_all();
    }
}

/// Pages that are not kept: their parts may be used again once devices have left them alone.
fn unkept(after: &[Fence], done: Signal) {
    Fence::all(after, None, move |_| done.give(Ok(None)));
}
