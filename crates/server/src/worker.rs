//! The thread that owns an engine and pumps it.
//!
//! Requests come over a bounded channel, tokens go out over one bounded channel for each request. The thread never waits for a client: one
//! that takes nothing from a full channel is cancelled, and so is one that is gone.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use unicorn_core::{SequenceId, Waker};
use unicorn_engine::{
    AdmissionError, Counters, EmbedRequest, Engine, Event, FinishReason, Guides, Request, SequenceInfo,
    Timings, TokenLogprobs,
};

use crate::metrics::Metrics;
use crate::recovery::{LOSSES_MAX, Recovery};

/// A request in the engine's terms.
pub(crate) struct Job {
    pub request: Request,
    pub guides: Guides,
}

/// What an engine can be asked for.
enum Work {
    Continue(Box<Job>),
    Embed(EmbedRequest),
}

/// What happened to a job.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Progress {
    /// Entry `i` is of token `i + 1` of the prompt.
    Prompt(Vec<TokenLogprobs>),
    /// A token was chosen.
    Token { token: u32, logprobs: Option<TokenLogprobs> },
    /// A text became a vector.
    Embedding(Vec<f32>),
    /// The last that comes.
    Finished { reason: FinishReason, timings: Timings },
    /// The last that comes, where the engine has failed and knows nothing of the job any more.
    Broken(String),
}

/// Jobs on their way to the engine; more wait at the sender.
const JOBS_MAX: usize = 64;
/// Tokens that a client may be behind. A tiny model makes thousands in the moment that a busy machine keeps a client's task waiting; one that
/// takes nothing for long is given up by its connection before.
const BEHIND_MAX: usize = 16 * 1024;

/// How long a model that is unloaded takes for pages that are not saved yet, and for copies that have begun.
const FLUSH_MAX: Duration = Duration::from_secs(10);

struct Submission {
    work: Work,
    reply: oneshot::Sender<Result<Tokens, AdmissionError>>,
}

/// What an engine has to do, as last seen.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Load {
    pub counters: Counters,
    pub sequences: Vec<SequenceInfo>,
    /// When it began the step that it is in.
    pub stepping_since: Option<Instant>,
    /// The longest step so far.
    pub longest_step: Duration,
    pub health: Health,
}

/// Whether an engine works.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Health {
    #[default]
    Works,
    /// A device was lost, and the model is opened anew; what was asked goes on then.
    Recovers,
    /// It has stopped for good, for this reason.
    Stopped(String),
}

/// Why jobs end when the engine panics.
const PANICKED: &str = "the engine of this model failed: a fault of the server";

/// A step that takes longer than this may be a device that hangs.
const STEP_MAX: Duration = Duration::from_secs(20);
/// A slow device has shown before how slow it is: only this many times its longest step is a hang.
const STEP_FACTOR: u32 = 8;
/// After this many times as long nobody waits any more.
const GIVE_UP_FACTOR: u32 = 12;
/// How often those who wait look at that.
const WATCH: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 2000 });

impl Load {
    /// How long a device that hangs has not answered; `None` for one that is only slow.
    pub fn hangs_for(&self) -> Option<Duration> {
        self.steps_beyond(1)
    }

    /// How long a device has not answered for which nobody should wait any more.
    fn is_given_up(&self) -> Option<Duration> {
        self.steps_beyond(GIVE_UP_FACTOR)
    }

    fn steps_beyond(&self, factor: u32) -> Option<Duration> {
        let step = self.stepping_since?.elapsed();
        (step > STEP_MAX.max(self.longest_step * STEP_FACTOR) * factor).then_some(step)
    }
}

/// A handle on the thread. Dropping it ends the thread once all jobs have ended.
pub(crate) struct Worker {
    jobs: mpsc::Sender<Submission>,
    load: Arc<Mutex<Load>>,
    ending: Arc<AtomicBool>,
    ended: watch::Receiver<()>,
    waker: Arc<Mutex<Waker>>,
}

/// Tells when a worker's thread has ended and its model is unloaded.
#[derive(Clone)]
pub(crate) struct Ended(watch::Receiver<()>);

impl Ended {
    /// What has ended once the sender is gone.
    #[cfg(test)]
    pub fn given() -> (watch::Sender<()>, Ended) {
        let (alive, ended) = watch::channel(());
        (alive, Ended(ended))
    }

    pub async fn wait(mut self) {
        while self.0.changed().await.is_ok() {}
    }

    pub fn is_over(&self) -> bool {
        self.0.has_changed().is_err()
    }
}

impl Worker {
    /// Starts the thread for an engine.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub fn start(engine: Engine, metrics: Arc<Metrics>, recovery: Recovery) -> std::io::Result<Worker> {
        let (jobs, submissions) = mpsc::channel(JOBS_MAX);
        let load = Arc::new(Mutex::new(Load::default()));
        let (cancel, cancels) = mpsc::unbounded_channel();
        let clients = Clients { all: HashMap::new(), metrics: metrics.clone() };
        let ending = Arc::new(AtomicBool::new(false));
        let waker = Arc::new(Mutex::new(engine.waker()));
        let pump = Pump {
            engine,
            submissions,
            clients,
            cancel,
            cancels,
            load: load.clone(),
            ending: ending.clone(),
            metrics,
            longest_step: Duration::ZERO,
            recovery,
            waker: waker.clone(),
        };
        let (alive, ended) = watch::channel(());
        let told = load.clone();
        std::thread::Builder::new().name("engine".into()).spawn(move || {
            // What panics while a panic or a loss is mended is not mended: the model is loaded anew for who asks next.
            if catch_unwind(AssertUnwindSafe(|| pump.run())).is_err() {
                *told.lock().unwrap_or_else(PoisonError::into_inner) =
                    Load { health: Health::Stopped(PANICKED.into()), ..Load::default() };
            }
            drop(alive);
        })?;
        Ok(Worker { jobs, load, ending, ended, waker })
    }

    /// Hands a job to the engine.
    ///
    /// # Errors
    /// The reason where the engine has stopped, or its device does not answer.
    pub async fn submit(&self, job: Job) -> Result<Result<Tokens, AdmissionError>, String> {
        self.send(Work::Continue(Box::new(job))).await
    }

    /// Hands a text to the engine, to become a vector. Errors as [`Worker::submit`] does.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Result<Tokens, AdmissionError>, String> {
        self.send(Work::Embed(request)).await
    }

    async fn send(&self, work: Work) -> Result<Result<Tokens, AdmissionError>, String> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            let sent = self.jobs.send(Submission { work, reply }).await;
            self.wake();
            sent.ok()?;
            answer.await.ok()
        };
        tokio::select! {
            answered = answered => {
                answered.ok_or_else(|| self.stopped().unwrap_or_else(|| "it has ended".into()))
            }
            why = self.hung() => Err(why),
        }
    }

    /// Waits until its device has not answered for long; says so.
    async fn hung(&self) -> String {
        loop {
            let hangs = self.load.lock().unwrap_or_else(PoisonError::into_inner).hangs_for();
            if let Some(hangs) = hangs {
                return silent(hangs);
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    /// Lets an engine that waits for nothing but a store look who has come.
    fn wake(&self) {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner).wake();
    }

    /// Why the engine has stopped for good; `None` while it works.
    pub fn stopped(&self) -> Option<String> {
        match &self.load.lock().unwrap_or_else(PoisonError::into_inner).health {
            Health::Stopped(why) => Some(why.clone()),
            Health::Works | Health::Recovers => None,
        }
    }

    /// Ends all jobs, those that still come too.
    pub fn cancel_all(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// What tells when the thread has ended.
    pub fn ended(&self) -> Ended {
        Ended(self.ended.clone())
    }

    /// What it has to do.
    pub fn load(&self) -> Load {
        self.load.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What those who wait for a device that does not answer are told.
fn silent(hangs: Duration) -> String {
    format!("its device has not answered for {} s", hangs.as_secs())
}

/// What comes of a job, as it comes. Dropping it cancels the job.
pub(crate) struct Tokens {
    progress: mpsc::Receiver<Progress>,
    sequence: SequenceId,
    cancel: mpsc::UnboundedSender<SequenceId>,
    load: Arc<Mutex<Load>>,
    /// Made by who waits: the engine's thread knows no clock of theirs.
    watch: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Tokens {
    /// The next thing that happened; `None` after the last, and where the job was given up because nobody took what came of it.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Progress>> {
        if let Poll::Ready(progress) = Pin::new(&mut self.progress).poll_recv(cx) {
            return Poll::Ready(progress);
        }
        // The thread that would say so is the one that hangs.
        let watch = self.watch.get_or_insert_with(|| Box::pin(tokio::time::sleep(WATCH)));
        while watch.as_mut().poll(cx).is_ready() {
            if let Some(hangs) = self.load.lock().unwrap_or_else(PoisonError::into_inner).is_given_up() {
                return Poll::Ready(Some(Progress::Broken(silent(hangs))));
            }
            watch.as_mut().reset(tokio::time::Instant::now() + WATCH);
        }
        Poll::Pending
    }

    fn new(
        progress: mpsc::Receiver<Progress>,
        sequence: SequenceId,
        cancel: mpsc::UnboundedSender<SequenceId>,
        load: Arc<Mutex<Load>>,
    ) -> Tokens {
        Tokens { progress, sequence, cancel, load, watch: None }
    }

    /// What somebody gives, of a channel with this much room.
    #[cfg(test)]
    pub fn given(room: usize) -> (mpsc::Sender<Progress>, Tokens) {
        let (sender, progress) = mpsc::channel(room);
        let (cancel, _) = mpsc::unbounded_channel();
        (sender, Tokens::new(progress, SequenceId(0), cancel, Arc::default()))
    }

    /// As [`Tokens::poll_next`].
    pub async fn next(&mut self) -> Option<Progress> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Ends the job. What has come of it can still be taken.
    pub fn cancel(&self) {
        // The thread is gone only when there is nothing left to cancel.
        let _ = self.cancel.send(self.sequence);
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Who waits for what.
struct Clients {
    all: HashMap<SequenceId, Client>,
    metrics: Arc<Metrics>,
}

struct Client {
    progress: mpsc::Sender<Progress>,
    /// Tokens are for nobody any more.
    gone: bool,
    /// That is because it took too few of them.
    slow: bool,
    since: Instant,
    last_token: Option<Instant>,
}

impl Clients {
    /// Tells the client that an event concerns. Returns the sequence if nobody takes what comes of it.
    fn hand_out(&mut self, event: Event) -> Option<SequenceId> {
        let sequence = event.sequence();
        let client = self.all.get_mut(&sequence)?;
        match event {
            Event::Token { token, logprobs, .. } => {
                let now = Instant::now();
                match client.last_token.replace(now) {
                    None => self.metrics.first_token(now.duration_since(client.since)),
                    Some(last) => self.metrics.next_token(now.duration_since(last)),
                }
                if client.gone {
                    return None;
                }
                if let Err(error) = client.progress.try_send(Progress::Token { token, logprobs }) {
                    client.gone = true;
                    client.slow = matches!(error, mpsc::error::TrySendError::Full(_));
                    return Some(sequence);
                }
            }
            Event::Embedding { vector, .. } => {
                // The channel of a text is empty until now: only a client that is gone does not take it.
                let _ = client.progress.try_send(Progress::Embedding(vector));
            }
            Event::PromptLogprobs { logprobs, .. } => {
                // The channel has room: nothing came before. One that is gone is seen at the next token.
                let _ = client.progress.try_send(Progress::Prompt(logprobs));
            }
            Event::Finished { reason, timings, .. } => {
                self.metrics.finished(&reason, &timings, client.since.elapsed(), client.slow);
                let client = self.all.remove(&sequence);
                if let Some(client) = client.filter(|c| !c.gone) {
                    let _ = client.progress.try_send(Progress::Finished { reason, timings });
                }
            }
        }
        None
    }
}

impl Clients {
    /// Ends all jobs of an engine that can tell nothing of them any more.
    fn break_off(&mut self, why: &str) {
        for (_, client) in self.all.drain() {
            self.metrics.broken(client.since.elapsed(), client.slow);
            if !client.gone {
                // One whose channel is full learns from its end.
                let _ = client.progress.try_send(Progress::Broken(why.to_owned()));
            }
        }
    }
}

/// How a pump goes on.
enum Turn {
    Again,
    /// The engine lost a device.
    Lost,
    /// Nobody has anything to ask any more.
    Over,
}

/// What the thread has.
struct Pump {
    engine: Engine,
    submissions: mpsc::Receiver<Submission>,
    clients: Clients,
    cancel: mpsc::UnboundedSender<SequenceId>,
    cancels: mpsc::UnboundedReceiver<SequenceId>,
    load: Arc<Mutex<Load>>,
    /// Every job is to end.
    ending: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    longest_step: Duration,
    recovery: Recovery,
    /// The engine's, for whoever has something for it.
    waker: Arc<Mutex<Waker>>,
}

impl Pump {
    fn run(mut self) {
        loop {
            let next = match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(Turn::Again) => continue,
                Ok(Turn::Over) => return,
                Ok(Turn::Lost) => self.recover(),
                Err(_) => self.begin_anew(),
            };
            match next {
                Some(pump) => self = pump,
                None => return,
            }
        }
    }

    /// Takes what is asked, and one step.
    fn turn(&mut self) -> Turn {
        // Of an engine that has stopped nothing is asked any more: what comes now waits for the next one.
        let takes = !self.engine.has_stopped();
        if takes && self.engine.is_idle() {
            self.tell(None, Health::Works);
            match self.next() {
                ControlFlow::Continue(submission) => submission.into_iter().for_each(|s| self.admit(s)),
                ControlFlow::Break(()) => {
                    self.engine.flush(Instant::now() + FLUSH_MAX);
                    return Turn::Over;
                }
            }
        }
        while takes && let Ok(submission) = self.submissions.try_recv() {
            self.admit(submission);
        }
        while let Ok(sequence) = self.cancels.try_recv() {
            self.engine.cancel(sequence);
        }
        if self.ending.load(Ordering::Acquire) {
            for sequence in self.clients.all.keys() {
                self.engine.cancel(*sequence);
            }
        }
        let began = Instant::now();
        // A store may be slow without a device that hangs.
        let works = !self.engine.is_idle();
        self.tell(works.then_some(began), Health::Works);
        let stepped = self.engine.step();
        if works {
            self.longest_step = self.longest_step.max(began.elapsed());
        }
        match stepped {
            Ok(events) => events.into_iter().for_each(|event| self.hand_out(event)),
            Err(_) => return Turn::Lost,
        }
        Turn::Again
    }

    /// Who comes next when no sequence is there: nobody yet where pages are still to be saved, and nobody any more at the end.
    fn next(&mut self) -> ControlFlow<(), Option<Submission>> {
        use mpsc::error::TryRecvError;
        if !self.engine.has_background() {
            let next = self.submissions.blocking_recv();
            return next.map_or(ControlFlow::Break(()), |job| ControlFlow::Continue(Some(job)));
        }
        match self.submissions.try_recv() {
            Ok(submission) => ControlFlow::Continue(Some(submission)),
            Err(TryRecvError::Empty) => ControlFlow::Continue(None),
            Err(TryRecvError::Disconnected) => ControlFlow::Break(()),
        }
    }

    fn add(&mut self, work: Work) -> Result<SequenceId, AdmissionError> {
        match work {
            Work::Continue(job) => self.engine.add_guided(job.request, job.guides),
            Work::Embed(request) => self.engine.add_embedding(request),
        }
    }

    fn admit(&mut self, Submission { work, reply }: Submission) {
        let answer = self.add(work).map(|sequence| {
            let (progress, received) = mpsc::channel(BEHIND_MAX);
            let client =
                Client { progress, gone: false, slow: false, since: Instant::now(), last_token: None };
            self.clients.all.insert(sequence, client);
            Tokens::new(received, sequence, self.cancel.clone(), self.load.clone())
        });
        // A client that is gone by now drops its `Tokens`, which cancels the job.
        let _ = reply.send(answer);
    }

    fn hand_out(&mut self, event: Event) {
        if let Some(gone) = self.clients.hand_out(event) {
            self.engine.cancel(gone);
        }
    }

    /// A device was lost: the model is opened anew, and what was asked goes on where it was. `None` where that is not possible any more; every
    /// job has ended then, with the reason.
    fn recover(mut self) -> Option<Pump> {
        let began = Instant::now();
        self.metrics.engine_stopped();
        self.tell(None, Health::Recovers);
        let mut survivors = self.engine.survivors()?;
        for event in survivors.end_beyond(LOSSES_MAX) {
            self.clients.hand_out(event);
        }
        // Its memory is needed.
        drop(self.engine);
        match self.recovery.open(&survivors) {
            Ok((mut engine, care)) => {
                engine.adopt(survivors);
                *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = engine.waker();
                self.metrics.recovered(&care, began.elapsed());
                Some(Pump { engine, longest_step: Duration::ZERO, ..self })
            }
            Err(why) => {
                for event in survivors.end_all() {
                    self.clients.hand_out(event);
                }
                self.load.lock().unwrap_or_else(PoisonError::into_inner).health = Health::Stopped(why);
                None
            }
        }
    }

    /// The engine panicked. What it holds cannot be trusted, so that every job ends; the model is opened anew. `None` where that fails.
    fn begin_anew(mut self) -> Option<Pump> {
        let began = Instant::now();
        self.metrics.engine_stopped();
        // It is in no step any more.
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) =
            Load { health: Health::Recovers, ..Load::default() };
        self.clients.break_off(PANICKED);
        // Its memory is needed. It may panic once more.
        let engine = self.engine;
        let _ = catch_unwind(AssertUnwindSafe(|| drop(engine)));
        match self.recovery.open_anew(PANICKED) {
            Ok((engine, care)) => {
                *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = engine.waker();
                self.metrics.recovered(&care, began.elapsed());
                // Its sequences are numbered anew: who still cancels one of those before must not meet them.
                let (cancel, cancels) = mpsc::unbounded_channel();
                Some(Pump { engine, cancel, cancels, longest_step: Duration::ZERO, ..self })
            }
            Err(why) => {
                self.load.lock().unwrap_or_else(PoisonError::into_inner).health = Health::Stopped(why);
                None
            }
        }
    }

    fn tell(&self, stepping_since: Option<Instant>, health: Health) {
        let (counters, sequences) = (self.engine.counters(), self.engine.sequences_info());
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        let longest_step = self.longest_step;
        *load = Load { counters, sequences, stepping_since, longest_step, health };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What hangs since so many seconds.
    fn hanging(seconds: u64) -> Arc<Mutex<Load>> {
        let stepping_since = Instant::now().checked_sub(Duration::from_secs(seconds));
        Arc::new(Mutex::new(Load { stepping_since, ..Load::default() }))
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_for_a_device_that_hangs() {
        let (jobs, _submissions) = mpsc::channel(1);
        let (_alive, ended) = watch::channel(());
        let waker = Arc::new(Mutex::new(unicorn_core::CompletionQueue::new().waker()));
        let worker = Worker { jobs, load: hanging(30), ending: Arc::default(), ended, waker };
        let job = || Job { request: Request::default(), guides: Guides::default() };
        // The second finds the channel full, which the first does not.
        for _ in 0..2 {
            let refused = worker.submit(job()).await.err().expect("a refusal");
            assert!(refused.contains("not answered for 30 s"), "{refused}");
        }
        // One that was taken waits longer, and gets what comes meanwhile.
        let (sender, progress) = mpsc::channel(4);
        let (cancel, _) = mpsc::unbounded_channel();
        let mut tokens = Tokens::new(progress, SequenceId(0), cancel, hanging(30));
        sender.try_send(Progress::Token { token: 5, logprobs: None }).unwrap();
        let mut next = async || std::future::poll_fn(|cx| tokens.poll_next(cx)).await;
        assert_eq!(next().await, Some(Progress::Token { token: 5, logprobs: None }));
        assert!(tokio::time::timeout(10 * WATCH, next()).await.is_err());
        tokens.load = hanging(250);
        let mut next = async || std::future::poll_fn(|cx| tokens.poll_next(cx)).await;
        assert!(
            matches!(next().await, Some(Progress::Broken(why)) if why.contains("not answered for 250 s"))
        );
    }

    #[test]
    fn a_slow_device_does_not_hang() {
        let load = |seconds: u64, longest: u64| Load {
            stepping_since: Instant::now().checked_sub(Duration::from_secs(seconds)),
            longest_step: Duration::from_secs(longest),
            ..Load::default()
        };
        assert_eq!(Load::default().hangs_for(), None);
        assert_eq!((load(15, 0).hangs_for(), load(30, 10).hangs_for()), (None, None));
        assert!(load(30, 1).hangs_for().is_some() && load(100, 10).hangs_for().is_some());
    }
}
