//! A store in memory, which may be slow, lose pages and fail.

use std::collections::HashMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use unicorn_core::*;

/// What a store does wrong.
#[derive(Clone, Copy, Default, Debug)]
pub struct StoreFaults {
    /// One in so many pages is not kept.
    pub loses: Option<u64>,
    /// One in so many reads fails, and the page is gone from then on.
    pub fails: Option<u64>,
    /// It says that it has everything.
    pub boasts: bool,
    /// It drops what it was asked, without an answer.
    pub mute: bool,
}

#[derive(Default)]
struct State {
    pages: HashMap<PageKey, Vec<Vec<u8>>>,
    faults: StoreFaults,
    asked: u64,
    /// Keys in the order in which they were read, and written.
    read: Vec<PageKey>,
    written: Vec<PageKey>,
    /// The most pages of one request.
    most: usize,
}

impl State {
    /// True in one of so many cases.
    fn happens(&mut self, one_in: Option<u64>) -> bool {
        self.asked += 1;
        let asked = self.asked.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        one_in.is_some_and(|n| asked.is_multiple_of(n.max(1)))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// See the module's documentation.
pub struct FakeStore {
    state: Arc<Mutex<State>>,
    /// Of a slow one: what is asked is done there.
    worker: Option<Sender<Job>>,
}

fn error(reason: &str) -> Arc<DeviceError> {
    let (device, what) = ("store".into(), "pages".into());
    Arc::new(DeviceError::Failed { device, what, reason: reason.into() })
}

impl FakeStore {
    /// Each request takes so long on a thread of its own; without a time it is done before the call returns.
    pub fn new(slow: Option<Duration>, faults: StoreFaults) -> Arc<FakeStore> {
        let worker = slow.map(|time| {
            let (sender, jobs) = channel::<Job>();
            std::thread::spawn(move || {
                for job in jobs {
                    std::thread::sleep(time);
                    job();
                }
            });
            sender
        });
        let state = Arc::new(Mutex::new(State { faults, ..State::default() }));
        Arc::new(FakeStore { state, worker })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn set_faults(&self, faults: StoreFaults) {
        self.state().faults = faults;
    }

    pub fn len(&self) -> usize {
        self.state().pages.len()
    }

    pub fn keys(&self) -> Vec<PageKey> {
        self.state().pages.keys().copied().collect()
    }

    pub fn remove(&self, key: &PageKey) {
        self.state().pages.remove(key);
    }

    /// Keys that were read and written since this was last asked.
    pub fn take_log(&self) -> [Vec<PageKey>; 2] {
        let mut state = self.state();
        [std::mem::take(&mut state.read), std::mem::take(&mut state.written)]
    }

    /// The most pages of one request so far.
    pub fn most(&self) -> usize {
        self.state().most
    }

    fn run(&self, job: Job) {
        match &self.worker {
            Some(worker) => worker.send(job).expect("the worker lives as long as the store"),
            None => job(),
        }
    }
}

fn read(state: &mut State, records: &PageRecords) -> Result<(), Arc<DeviceError>> {
    state.most = state.most.max(records.keys.len());
    for (row, key) in records.keys.iter().enumerate() {
        state.read.push(*key);
        let fails = state.faults.fails;
        let page = if state.happens(fails) { None } else { state.pages.get(key) };
        let Some(page) = page else {
            state.pages.remove(key);
            // What was read by then is garbage.
            records.parts.iter().for_each(|part| part.write(&vec![f32::NAN; part.rows() * part.width()]));
            return Err(error("damaged"));
        };
        assert_eq!(page.len(), records.parts.len());
        page.iter().zip(&records.parts).for_each(|(bytes, part)| part.write_part(row, 0, bytes));
    }
    Ok(())
}

fn write(state: &mut State, records: &PageRecords) {
    state.most = state.most.max(records.keys.len());
    for (row, key) in records.keys.iter().enumerate() {
        state.written.push(*key);
        let part = |part: &Arc<SharedBuffer>| {
            let mut bytes = vec![0; part.width() * 4];
            part.read_part(row, 0, &mut bytes);
            bytes
        };
        let loses = state.faults.loses;
        if !state.happens(loses) {
            let page: Vec<Vec<u8>> = records.parts.iter().map(part).collect();
            state.pages.insert(*key, page);
        }
    }
}

impl PageStore for FakeStore {
    fn has(&self, key: &PageKey) -> bool {
        let state = self.state();
        state.faults.boasts || state.pages.contains_key(key)
    }

    fn read(&self, records: PageRecords, done: Signal) {
        let state = self.state.clone();
        if self.state().faults.mute {
            return;
        }
        self.run(Box::new(move || {
            let result = read(&mut state.lock().unwrap(), &records);
            done.give(result.map(|()| None));
        }));
    }

    fn write(&self, records: PageRecords, after: Vec<Fence>, done: Signal) {
        let (state, worker) = (self.state.clone(), self.worker.clone());
        if self.state().faults.mute {
            return;
        }
        Fence::all(&after, None, move |outcome| {
            let job = move || match outcome {
                Ok(()) => {
                    write(&mut state.lock().unwrap(), &records);
                    done.give(Ok(None));
                }
                Err(error) => done.give(Err(error)),
            };
            match worker {
                Some(worker) => worker.send(Box::new(job)).expect("the worker lives as long as the store"),
                None => job(),
            }
        });
    }
}
