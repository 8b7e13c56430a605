//! Work that queues have, and its end as a thread sees it that waits for the GPU so that nobody else has to.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use unicorn_core::Signal;

use crate::lane::{Lane, Point};

/// Work that the queues have.
pub(crate) struct Submitted<T> {
    /// Where its parts end: its copy in, its kernels, its copy out.
    pub(crate) ends: Point,
    pub(crate) started: Instant,
    pub(crate) done: Signal,
    /// What is needed to tell how it ended.
    pub(crate) what: T,
}

/// The work that the queues have and whose end was not told.
pub(crate) struct Submissions<T> {
    state: Mutex<State<T>>,
    some: Condvar,
}

struct State<T> {
    queue: VecDeque<Submitted<T>>,
    /// Numbers of the fences of what the queues have: later work of the compute queue need not wait for these.
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

    /// True when the compute queue has the work of this fence: kernels submitted now come behind it.
    pub(crate) fn has(&self, fence: u64) -> bool {
        self.lock().fences.contains(&fence)
    }

    /// Forgets work whose end was told.
    pub(crate) fn forget(&self, fence: u64) {
        self.lock().fences.remove(&fence);
    }

    /// Lets [`Submissions::hand_over`] end once everything has been told.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.some.notify_all();
    }

    /// Hands new work over to who watches it; waits for some where nothing is watched. False when closed and all is done. `eager`: a while
    /// is spent asking before it sleeps.
    pub(crate) fn hand_over(&self, watch: &mut Watch<T>, eager: bool) -> bool {
        let since = Instant::now();
        let mut state = self.lock();
        loop {
            watch.running.extend(state.queue.drain(..).map(|submitted| Running { submitted, arrived: None }));
            if !watch.is_empty() {
                return true;
            }
            if state.closing {
                return false;
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

    /// The oldest work that nobody watches: for a device that could not start a thread of its own.
    pub(crate) fn pop(&self) -> Option<Submitted<T>> {
        self.lock().queue.pop_front()
    }
}

/// Work whose end is watched for.
pub(crate) struct Watch<T> {
    /// In the order of the compute queue.
    running: VecDeque<Running<T>>,
    /// Kernels have ended, the copy out has not; in the order of its queue.
    leaving: VecDeque<Submitted<T>>,
    /// When the last kernels were seen to have ended.
    free: Option<Instant>,
}

struct Running<T> {
    submitted: Submitted<T>,
    /// When its copy in was seen to have ended, where that was before its kernels did.
    arrived: Option<Instant>,
}

impl<T> Watch<T> {
    pub(crate) fn new() -> Watch<T> {
        Watch { running: VecDeque::new(), leaving: VecDeque::new(), free: None }
    }

    fn is_empty(&self) -> bool {
        self.running.is_empty() && self.leaving.is_empty()
    }

    /// What to wait for, any of it, after the lanes had come as far as `reached`.
    pub(crate) fn next(&self, reached: &Point) -> Point {
        let oldest = self.running.front().map(|r| r.submitted.ends.get(Lane::Compute));
        // What is submitted meanwhile is seen to end as well.
        let kernels = oldest.unwrap_or(reached.get(Lane::Compute).saturating_add(1));
        // What was given to no queue has ended.
        if kernels == 0 {
            return Point::default();
        }
        let next = Point::from(kernels);
        let arriving = self.running.iter().filter(|r| r.arrived.is_none()).map(|r| &r.submitted);
        let arriving = arriving.map(|s| s.ends.get(Lane::Inward)).find(|v| *v > reached.get(Lane::Inward));
        let leaving = self.leaving.front().map_or(0, |s| s.ends.get(Lane::Outward));
        next.with(Lane::Inward, arriving.unwrap_or(0)).with(Lane::Outward, leaving)
    }

    /// The work that has ended once the lanes have come as far as `reached`. Work on one stream comes in order, and so does all work without
    /// a copy out, and all with one. Tells the signals when the kernels ran.
    pub(crate) fn advance(&mut self, reached: &Point) -> Vec<Submitted<T>> {
        let now = Instant::now();
        let through = |ends: &Point, lane| ends.get(lane) <= reached.get(lane);
        let mut ended = Vec::new();
        loop {
            while self.leaving.front().is_some_and(|s| through(&s.ends, Lane::Outward)) {
                ended.extend(self.leaving.pop_front());
            }
            if !self.running.front().is_some_and(|r| through(&r.submitted.ends, Lane::Compute)) {
                break;
            }
            let Some(Running { mut submitted, arrived }) = self.running.pop_front() else { break };
            // Kernels run in order: they begin once they were submitted, their input is there, and those before have ended.
            arrived.into_iter().for_each(|at| submitted.done.arrived(at));
            let begun = [arrived, self.free].into_iter().flatten().fold(submitted.started, Instant::max);
            submitted.done.begin(begun);
            self.free = Some(now);
            if submitted.ends.get(Lane::Outward) == 0 {
                ended.push(submitted);
            } else {
                submitted.done.worked(Instant::now());
                self.leaving.push_back(submitted);
            }
        }
        for running in self.running.iter_mut().filter(|r| r.arrived.is_none()) {
            let ends = &running.submitted.ends;
            if ends.get(Lane::Inward) > 0 && through(ends, Lane::Inward) {
                running.arrived = Some(now);
            }
        }
        ended
    }

    /// Everything, oldest first.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = Submitted<T>> + '_ {
        self.leaving.drain(..).chain(self.running.drain(..).map(|r| r.submitted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(inward: u64, compute: u64, outward: u64) -> Point {
        Point::from(compute).with(Lane::Inward, inward).with(Lane::Outward, outward)
    }

    fn watch(all: &[Point]) -> (Arc<Submissions<usize>>, Watch<usize>) {
        let (submissions, mut watch) = (Submissions::new(), Watch::new());
        for (what, ends) in all.iter().enumerate() {
            let (started, done) = (Instant::now(), Signal::new());
            submissions.push(Submitted { ends: *ends, started, done, what });
        }
        assert!(submissions.hand_over(&mut watch, false));
        (submissions, watch)
    }

    fn ended(watch: &mut Watch<usize>, reached: Point) -> Vec<usize> {
        watch.advance(&reached).into_iter().map(|s| s.what).collect()
    }

    #[test]
    fn work_ends_when_it_has_left_and_nothing_else_waits_for_that() {
        let (submissions, mut watch) = watch(&[point(1, 4, 1), point(0, 5, 0), point(2, 6, 2)]);
        assert_eq!(watch.next(&Point::default()), point(1, 4, 0));
        assert!(ended(&mut watch, point(1, 3, 0)).is_empty());
        // The first has arrived; the third's input comes next.
        assert_eq!(watch.next(&point(1, 3, 0)), point(2, 4, 0));
        // The first is on its way out, and the second ends beside it.
        assert_eq!(ended(&mut watch, point(2, 5, 0)), [1]);
        assert_eq!(watch.next(&point(2, 5, 0)), point(0, 6, 1));
        assert_eq!(ended(&mut watch, point(2, 6, 0)), [0usize; 0]);
        // Nothing runs: whatever is submitted now is seen to end too.
        assert_eq!(watch.next(&point(2, 6, 0)), point(0, 7, 1));
        assert_eq!(ended(&mut watch, point(2, 6, 1)), [0]);
        submissions.close();
        assert!(submissions.hand_over(&mut watch, false));
        assert_eq!(ended(&mut watch, point(2, 6, 2)), [2]);
        assert!(!submissions.hand_over(&mut watch, false));
    }

    #[test]
    fn what_has_nothing_to_do_waits_for_nothing() {
        let (_, mut watch) = watch(&[point(0, 1, 1), point(0, 0, 0)]);
        assert_eq!(ended(&mut watch, point(0, 0, 0)), [0usize; 0]);
        assert_eq!(ended(&mut watch, point(0, 1, 0)), [1]);
        // The oldest is told at once, whatever is still on its way out.
        let (_, mut empty) = self::watch(&[point(0, 1, 1), point(0, 0, 0), point(0, 2, 0)]);
        assert_eq!(ended(&mut empty, point(0, 1, 0)), [1]);
        let (_, mut alone) = self::watch(&[point(0, 0, 0), point(0, 1, 1)]);
        assert_eq!(alone.next(&Point::default()), Point::default());
        assert_eq!(ended(&mut alone, Point::default()), [0]);
    }

    #[test]
    fn what_ends_at_once_is_told_in_order() {
        let (_, mut watch) = watch(&[point(0, 1, 1), point(0, 2, 0), point(0, 3, 2), point(0, 4, 3)]);
        assert_eq!(ended(&mut watch, point(0, 4, 2)), [0, 1, 2]);
        assert_eq!(watch.give_up().map(|s| s.what).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn spans_are_those_of_the_kernels() {
        let (_, mut watch) = watch(&[point(1, 1, 1), point(2, 2, 2)]);
        let fences: Vec<_> = watch.running.iter().map(|r| r.submitted.done.fence()).collect();
        let pause = || std::thread::sleep(Duration::from_millis(2));
        let mut moments = Vec::new();
        for reached in [point(1, 0, 0), point(2, 1, 0), point(2, 2, 0), point(2, 2, 2)] {
            pause();
            moments.push(Instant::now());
            for submitted in watch.advance(&reached) {
                submitted.done.give(Ok(None));
            }
        }
        let [first, second] = [&fences[0], &fences[1]].map(|f| f.ran().unwrap());
        let within = |at: Instant, i: usize| at >= moments[i] && moments.get(i + 1).is_none_or(|m| at < *m);
        // The first began when it had arrived; the second had, but the first was running.
        assert!(within(first.start, 0) && within(first.end, 1));
        assert!(within(second.start, 1) && within(second.end, 2));
        assert!(second.start <= first.end);
    }
}
