//! The models that a server has: which may be asked for, which are loaded, which must go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};
use unicorn_core::Pooling;
use unicorn_grammar::Dialect;
use unicorn_model::TextSide;
use unicorn_text::ChatTemplate;

use crate::catalog::Catalog;
use crate::error::ApiError;
use crate::grammars::Grammars;
use crate::metrics::Metrics;
use crate::model::{Care, Description, LoadError, LoadedModel, Loader, ModelEntry, ModelFacts, Outline};
use crate::recovery::Recovery;
use crate::turns::Turns;
use crate::warm_up::warm_up;
use crate::worker::{Ended, Worker};

/// A model that answers.
pub(crate) struct Model {
    pub id: String,
    pub text: TextSide,
    /// Others after a device was lost.
    facts: Arc<RwLock<Arc<ModelFacts>>>,
    pub worker: Worker,
    /// Tokens of a sequence, prompt and answer together.
    pub context: usize,
    /// Sequences that run at once.
    pub sequences_max: usize,
    pub vocab: usize,
    /// Bytes of the longest token.
    token_bytes_max: usize,
    pub grammars: Grammars,
    /// As in [`ModelFacts`].
    pub encodes: bool,
    /// As in [`LoadedModel`].
    pub drafts: bool,
    /// As in [`LoadedModel`].
    pub pooling: Result<Pooling, String>,
    /// Texts on their way to vectors.
    pub turns: Turns,
    /// How it writes calls and thoughts.
    pub dialect: Dialect,
    /// Ticks of the registry's clock when it was asked last.
    used: AtomicU64,
    /// Requests that have it.
    users: AtomicUsize,
    leaves: Mutex<Leaves>,
    /// Told when that changes.
    leaves_changed: Arc<Notify>,
}

/// When a model is to go if nobody asks for it.
#[derive(Default)]
struct Leaves {
    /// The tick of `used` for which that holds: asking for it takes that back.
    at: Option<(u64, SystemTime)>,
    /// Someone sees to it.
    seen_to: bool,
}

impl Model {
    /// Errors where a text is too long for the context however it is cut into tokens, which takes seconds for some megabytes.
    pub fn check_text(&self, text: &str, field: &str) -> Result<(), ApiError> {
        if text.len() / self.token_bytes_max.max(1) < self.context {
            return Ok(());
        }
        let message =
            format!("{} bytes of text are too long: the context holds {} tokens", text.len(), self.context);
        Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::param(field, message) })
    }

    /// What is told about it now.
    pub fn facts(&self) -> Arc<ModelFacts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Errors where a model writes no answers.
    pub fn check_writes(&self) -> Result<(), ApiError> {
        if !self.encodes {
            return Ok(());
        }
        let message = format!(
            "{} does not support chat or completion: it is an encoder, which turns texts into vectors; /v1/embeddings and /api/embed do that",
            self.id
        );
        Err(ApiError::param("model", message))
    }

    /// Text that certainly has more tokens than the context holds is left out, so that nobody waits for its tokens.
    pub fn beginning<'a>(&self, text: &'a str) -> &'a str {
        let most = self.token_bytes_max.max(1).saturating_mul(self.context.saturating_add(1));
        match self.encodes {
            // Its tokens may stand for any number of bytes, and are found in one pass.
            true => text,
            false => &text[..text.floor_char_boundary(most)],
        }
    }

    fn is_idle(&self) -> bool {
        self.users.load(Ordering::Acquire) == 0
    }

    /// When it is unloaded if nobody asks for it; `None` where it stays until its memory is wanted.
    pub fn leaves_at(&self) -> Option<SystemTime> {
        self.leaves().at.filter(|(used, _)| *used == self.used.load(Ordering::Relaxed)).map(|(_, at)| at)
    }

    fn leaves(&self) -> MutexGuard<'_, Leaves> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model in use: it is not unloaded before this is dropped.
pub(crate) struct InUse(Arc<Model>);

impl InUse {
    fn new(model: &Arc<Model>) -> InUse {
        model.users.fetch_add(1, Ordering::AcqRel);
        InUse(model.clone())
    }
}

impl Clone for InUse {
    fn clone(&self) -> InUse {
        InUse::new(&self.0)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl std::ops::Deref for InUse {
    type Target = Model;
    fn deref(&self) -> &Model {
        &self.0
    }
}

/// Where a model is.
#[derive(Clone)]
enum Slot {
    /// On its way. What is watched is the share that is done, from 0 to 1; it closes when loading has ended. At the server's start, which
    /// is `first`, requests are told to come back; later they wait.
    Loading {
        share: watch::Receiver<f32>,
        first: bool,
    },
    Ready(Arc<Model>),
    /// It is on its way out: it is for nobody new, and goes when its last request has ended. Who asks for it has it loaded again, after that.
    Leaving {
        ended: Ended,
        model: Weak<Model>,
    },
    /// It could not be loaded, which is told until someone asks again.
    Failed(Failure),
}

/// Why a model could not be loaded.
#[derive(Clone, Debug)]
struct Failure {
    error: LoadError,
    /// The file as it was: another one is tried at once.
    entry: ModelEntry,
    tries: u32,
    /// Until then nobody tries again.
    until: Instant,
}

/// How a model stands, for `/health`.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Standing {
    Unloaded,
    Loading(f32),
    Ready,
    Failed(String),
}

/// All models of a server.
pub(crate) struct Registry {
    loader: Arc<dyn Loader>,
    catalog: Arc<Catalog>,
    slots: Mutex<HashMap<String, Slot>>,
    /// One model is loaded at a time.
    loading: tokio::sync::Mutex<()>,
    /// Models that are loaded at once.
    models_max: usize,
    clock: AtomicU64,
    metrics: Arc<Metrics>,
}

/// Longest that a request waits for its model to be loaded. Some clients give up after 300 s without a sign of life; a refusal tells them to
/// come back.
const LOAD_WAIT: Duration = Duration::from_secs(240);
/// Longest that the server waits for the first.
const LOAD_WAIT_FIRST: Duration = Duration::from_secs(24 * 3600);
/// Seconds after which a client may ask again for a model that is loading.
const LOAD_RETRY_SECONDS: u64 = 2;
/// How long a model that could not be loaded is not tried again: twice as long each time, up to the most.
const FAILED_WAIT: Duration = Duration::from_secs(1);
const FAILED_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether a model that is to go can go.
const LEAVE_POLL: Duration = Duration::from_millis(20);

impl Registry {
    /// `aliases` are patterns with at most one `*` each, and what they stand for; an empty name is the default model.
    pub fn new(
        loader: Arc<dyn Loader>,
        aliases: Vec<(String, String)>,
        models_max: usize,
        metrics: Arc<Metrics>,
    ) -> Registry {
        let (slots, clock) = (Mutex::new(HashMap::new()), AtomicU64::new(0));
        let loading = tokio::sync::Mutex::new(());
        let catalog = Arc::new(Catalog::new(loader.clone(), aliases));
        Registry { loader, catalog, slots, loading, models_max, clock, metrics }
    }

    /// Sees which models there are, where that was not done lately.
    pub async fn refresh(&self) {
        self.catalog.refresh().await;
    }

    /// The models that may be asked for, the default one first.
    pub fn entries(&self) -> Vec<ModelEntry> {
        self.catalog.entries().to_vec()
    }

    /// What is known of these models from their files, by their ids.
    pub async fn outlined(&self, entries: &[ModelEntry]) -> HashMap<String, Arc<Outline>> {
        self.catalog.outlined(entries).await
    }

    /// The entry that a name in a request means.
    pub fn find(&self, name: &str) -> Result<ModelEntry, ApiError> {
        self.catalog.find(name)
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Models that are loaded.
    pub fn ready(&self) -> Vec<Arc<Model>> {
        let mut ready: Vec<_> = self
            .slots()
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(model) => Some(model.clone()),
                _ => None,
            })
            .collect();
        ready.sort_by(|a, b| a.id.cmp(&b.id));
        ready
    }

    /// Models whose engines are at work, those that are on their way out too.
    pub fn running(&self) -> Vec<Arc<Model>> {
        let leaving: Vec<Weak<Model>> = self
            .slots()
            .values()
            .filter_map(|slot| match slot {
                Slot::Leaving { model, .. } => Some(model.clone()),
                _ => None,
            })
            .collect();
        let mut running = self.ready();
        running.extend(leaving.iter().filter_map(Weak::upgrade));
        running
    }

    /// How a model stands.
    pub fn standing(&self, id: &str) -> Standing {
        match self.slots().get(id) {
            None | Some(Slot::Leaving { .. }) => Standing::Unloaded,
            Some(Slot::Ready(_)) => Standing::Ready,
            Some(Slot::Failed(failure)) => Standing::Failed(failure.error.told.clone()),
            Some(Slot::Loading { share, .. }) => Standing::Loading(*share.borrow()),
        }
    }

    /// The model that a request names, loaded if it must be. Waits for that, unless `wait` is false or it is the model that the server
    /// begins with.
    pub async fn get(self: &Arc<Self>, name: &str, wait: bool) -> Result<InUse, ApiError> {
        let entry = self.find(name)?;
        let deadline = Instant::now() + LOAD_WAIT;
        loop {
            let share = match self.look(&entry, false)? {
                Slot::Ready(model) => {
                    model.used.store(self.clock.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    return Ok(InUse::new(&model));
                }
                Slot::Loading { share, first } if wait && !first => share,
                Slot::Loading { .. } | Slot::Leaving { .. } => return Err(loading(&entry.id)),
                Slot::Failed(failure) => return Err(failed(&entry.id, &failure.error)),
            };
            self.loaded(&entry.id, share, deadline).await?;
        }
    }

    /// Loads the model that the server begins with.
    ///
    /// # Errors
    /// A sentence for whoever runs the server.
    pub async fn warm(self: &Arc<Self>, name: &str) -> Result<(), String> {
        let Err(error) = self.bring(name, true, LOAD_WAIT_FIRST).await else { return Ok(()) };
        let id = self.find(name).map(|entry| entry.id).unwrap_or_default();
        match self.slots().get(&id) {
            Some(Slot::Failed(failure)) => Err(failure.error.message.clone()),
            _ => Err(error.message),
        }
    }

    /// Loads a model and waits for it, whichever it is.
    pub async fn fetch(self: &Arc<Self>, name: &str) -> Result<(), ApiError> {
        self.bring(name, false, LOAD_WAIT).await
    }

    /// Loads a model that has stopped or could not be loaded, and waits for nothing.
    pub fn revive(self: &Arc<Self>, id: &str) {
        if let Ok(entry) = self.find(id) {
            // What comes of it is seen by who asks.
            let _ = self.look(&entry, false);
        }
    }

    async fn bring(self: &Arc<Self>, name: &str, first: bool, wait: Duration) -> Result<(), ApiError> {
        let entry = self.find(name)?;
        match self.look(&entry, first)? {
            Slot::Loading { share, .. } => self.loaded(&entry.id, share, Instant::now() + wait).await,
            Slot::Ready(_) => Ok(()),
            Slot::Leaving { .. } => Err(loading(&entry.id)),
            Slot::Failed(failure) => Err(failed(&entry.id, &failure.error)),
        }
    }

    /// Waits until loading has ended.
    async fn loaded(
        &self,
        id: &str,
        mut share: watch::Receiver<f32>,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = async { while share.changed().await.is_ok() {} };
        if tokio::time::timeout(left, ended).await.is_err() {
            return Err(loading(id));
        }
        match self.slots().get(id) {
            Some(Slot::Failed(failure)) => Err(failed(id, &failure.error)),
            _ => Ok(()),
        }
    }

    /// Ends all requests of all models.
    pub fn cancel_all(&self) {
        self.running().iter().for_each(|model| model.worker.cancel_all());
    }

    /// The slot of a model; loading begins where it is not there. What stopped is tried anew, and what failed when its time has come.
    fn look(self: &Arc<Self>, entry: &ModelEntry, first: bool) -> Result<Slot, ApiError> {
        let mut slots = self.slots();
        let (before, tries) = match slots.get(&entry.id) {
            Some(Slot::Ready(model)) if model.worker.stopped().is_none() => {
                return Ok(Slot::Ready(model.clone()));
            }
            Some(slot @ Slot::Loading { .. }) => return Ok(slot.clone()),
            Some(slot @ Slot::Failed(failure))
                if failure.entry == *entry && Instant::now() < failure.until =>
            {
                return Ok(slot.clone());
            }
            Some(Slot::Ready(stopped)) => (Some(stopped.worker.ended()), 0),
            Some(Slot::Leaving { ended, .. }) => (Some(ended.clone()), 0),
            Some(Slot::Failed(failure)) if failure.entry == *entry => (None, failure.tries),
            Some(Slot::Failed(_)) | None => (None, 0),
        };
        let (tell, share) = watch::channel(0.0);
        let slot = Slot::Loading { share, first };
        slots.insert(entry.id.clone(), slot.clone());
        drop(slots);
        tokio::spawn(self.clone().load_in_turn(entry.clone(), before, tries, Arc::new(tell)));
        Ok(slot)
    }

    /// Loads a model once the one that was there `before` has left its memory, those before it are loaded and there is room. `tell` closes
    /// when the slot is set.
    async fn load_in_turn(
        self: Arc<Self>,
        entry: ModelEntry,
        before: Option<Ended>,
        tries: u32,
        tell: Arc<watch::Sender<f32>>,
    ) {
        if let Some(before) = before {
            before.wait().await;
        }
        // In the order of their asking: one that comes later must not take the room that another waits for.
        let _one = self.loading.lock().await;
        let slot = match self.load_with_room(&entry.id, &tell).await {
            Ok(model) => {
                self.metrics.loaded();
                Slot::Ready(Arc::new(model))
            }
            Err(error) => {
                self.metrics.load_failed();
                let first = matches!(self.slots().get(&entry.id), Some(Slot::Loading { first: true, .. }));
                // That one ends the server, which says so itself.
                if !first {
                    self.loader.tell(&format!("{} is not loaded: {}", entry.id, error.message));
                }
                let wait = FAILED_WAIT.saturating_mul(1 << tries.min(16)).min(FAILED_WAIT_MAX);
                let (entry, until) = (entry.clone(), Instant::now() + wait);
                Slot::Failed(Failure { error, entry, tries: tries + 1, until })
            }
        };
        self.slots().insert(entry.id, slot);
        drop(tell);
    }

    async fn load_with_room(
        self: &Arc<Self>,
        id: &str,
        tell: &Arc<watch::Sender<f32>>,
    ) -> Result<Model, LoadError> {
        if self.others(id).count() >= self.models_max.max(1) {
            // Nothing is unloaded for what cannot be opened.
            let (loader, name) = (self.loader.clone(), id.to_owned());
            let looked = tokio::task::spawn_blocking(move || loader.describe(&name).map(drop));
            looked.await.unwrap_or_else(|_| Err("looking at it panicked".into()))?;
        }
        let mut most = self.models_max;
        loop {
            let others = self.make_room(id, most).await;
            let (registry, name, told) = (self.clone(), id.to_owned(), tell.clone());
            let task = tokio::task::spawn_blocking(move || {
                registry.load(&name, &mut |share| {
                    told.send_replace(share);
                })
            });
            match task.await.unwrap_or_else(|_| Err("loading it panicked".into())) {
                // Beside fewer others there may be room.
                Err(error) if error.memory && others > 0 => most = others,
                loaded => return loaded,
            }
        }
    }

    fn load(&self, id: &str, progress: &mut dyn FnMut(f32)) -> Result<Model, LoadError> {
        let loaded = self.loader.load(id, &Care::Usual, progress)?;
        let LoadedModel { mut engine, text, facts, drafts, pooling } = loaded;
        warm_up(&mut engine)?;
        let (context, sequences_max) = (engine.options().context, engine.options().sequences_max);
        let turns = Turns::new(sequences_max, engine.options().queue_max);
        let (vocab, encodes) = (engine.spec().vocab, engine.spec().is_encoder());
        let template = text.template().ok().flatten().map(ChatTemplate::source).unwrap_or_default();
        let dialect = Dialect::detect(template);
        let ends = text.stop_tokens.clone();
        let grammars = Grammars::new(text.tokenizer.clone(), vocab, ends, dialect.clone());
        let facts = Arc::new(RwLock::new(Arc::new(facts)));
        let told = facts.clone();
        let recovery = Recovery::new(id, self.loader.clone(), move |again| {
            *told.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(again.facts.clone());
        });
        let worker = Worker::start(engine, self.metrics.clone(), recovery)
            .map_err(|e| format!("no thread for it: {e}"))?;
        let (used, users, leaves) = (AtomicU64::new(0), AtomicUsize::new(0), Mutex::default());
        let tokenizer = &text.tokenizer;
        let lengths =
            (0..tokenizer.vocab_size() as u32).filter_map(|id| Some(tokenizer.token_bytes(id)?.len()));
        let token_bytes_max = lengths.max().unwrap_or(0);
        Ok(Model {
            id: id.to_owned(),
            text,
            facts,
            worker,
            context,
            sequences_max,
            vocab,
            token_bytes_max,
            grammars,
            encodes,
            dialect,
            drafts,
            pooling,
            turns,
            used,
            users,
            leaves,
            leaves_changed: Arc::default(),
        })
    }

    /// Models beside this one that have memory.
    fn others(&self, id: &str) -> Others {
        let slots = self.slots();
        let others = slots.iter().filter(|(other, _)| *other != id);
        let mut all = Others::default();
        for (_, slot) in others {
            match slot {
                Slot::Ready(model) => all.ready.push(model.clone()),
                Slot::Leaving { .. } => all.leaving += 1,
                Slot::Loading { .. } | Slot::Failed(_) => {}
            }
        }
        all
    }

    /// Unloads the models that were asked least lately until there are less than `most` beside this one; returns how many are left. One that
    /// is in use is waited for, but takes no new requests meanwhile: else it might be in use for ever.
    async fn make_room(self: &Arc<Self>, id: &str, most: usize) -> usize {
        loop {
            let others = self.others(id);
            if others.count() < most.max(1) {
                return others.count();
            }
            let used = |model: &&Arc<Model>| model.used.load(Ordering::Relaxed);
            let idle = others.ready.iter().filter(|model| model.is_idle()).min_by_key(used);
            let oldest = idle.or_else(|| others.ready.iter().min_by_key(used)).map(|model| model.id.clone());
            let leaving = others.leaving;
            drop(others);
            match oldest {
                Some(oldest) if leaving == 0 => drop(self.leave(&oldest, false)),
                _ => tokio::time::sleep(LEAVE_POLL).await,
            }
        }
    }

    /// Sends a model out. `None` where it is not there, or in use and only to go if it is not.
    fn leave(self: &Arc<Self>, id: &str, only_idle: bool) -> Option<Ended> {
        let mut slots = self.slots();
        let (ended, model) = match slots.get(id) {
            Some(Slot::Ready(model)) if !only_idle || model.is_idle() => {
                (model.worker.ended(), Arc::downgrade(model))
            }
            _ => return None,
        };
        slots.insert(id.to_owned(), Slot::Leaving { ended: ended.clone(), model });
        drop(slots);
        self.metrics.unloaded();
        let (registry, id, gone) = (self.clone(), id.to_owned(), ended.clone());
        tokio::spawn(async move {
            gone.wait().await;
            registry.gone(&id);
        });
        Some(ended)
    }

    /// Forgets a model whose memory is free.
    fn gone(&self, id: &str) {
        let mut slots = self.slots();
        if matches!(slots.get(id), Some(Slot::Leaving { ended, .. }) if ended.is_over()) {
            slots.remove(id);
        }
    }

    /// Unloads a model that nobody uses and waits until its memory is free. False where it is not loaded or in use.
    pub async fn unload(self: &Arc<Self>, id: &str) -> bool {
        let Some(ended) = self.leave(id, true) else { return false };
        ended.wait().await;
        true
    }

    /// Unloads all models at the end of the server, for which their threads save what is kept. Who still has one is not waited for longer than
    /// `patience`.
    pub async fn end(&self, patience: Duration) {
        let ended: Vec<_> = {
            let slots = std::mem::take(&mut *self.slots());
            let ready = slots.into_values().filter_map(|slot| match slot {
                Slot::Ready(model) => Some(model),
                _ => None,
            });
            ready.map(|model| model.worker.ended()).collect()
        };
        let all = async {
            for ended in ended {
                ended.wait().await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// Ends the use of a model, and unloads it once nobody has asked for it for this long. Whoever asks meanwhile, over whatever API, takes
    /// that back.
    pub fn let_go(self: &Arc<Self>, model: InUse, after: Duration) {
        let used = model.used.load(Ordering::Relaxed);
        let (id, watched, changed) =
            (model.id.clone(), Arc::downgrade(&model.0), model.leaves_changed.clone());
        let seen_to = {
            let mut leaves = model.leaves();
            leaves.at = SystemTime::now().checked_add(after).map(|at| (used, at));
            // A server that has ended unloads everything anyway.
            std::mem::replace(&mut leaves.seen_to, tokio::runtime::Handle::try_current().is_ok())
        };
        drop(model);
        changed.notify_one();
        // One watcher for each model, whatever the number of requests.
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !seen_to
        {
            runtime.spawn(self.clone().see_off(id, watched, changed));
        }
    }

    /// Unloads a model when its time has come. Ends when somebody takes that back.
    async fn see_off(self: Arc<Self>, id: String, watched: Weak<Model>, changed: Arc<Notify>) {
        /// A model may go in other ways too.
        const LOOK: Duration = Duration::from_secs(60);
        loop {
            let Some(model) = watched.upgrade() else { return };
            let left = {
                let used = model.used.load(Ordering::Relaxed);
                let mut leaves = model.leaves();
                let Some((_, at)) = leaves.at.filter(|(of, _)| *of == used) else {
                    leaves.seen_to = false;
                    return;
                };
                at.duration_since(SystemTime::now()).unwrap_or_default()
            };
            let idle = model.is_idle();
            drop(model);
            if left > Duration::ZERO {
                let _ = tokio::time::timeout(left.min(LOOK), changed.notified()).await;
            } else if !idle || !self.unload(&id).await {
                tokio::time::sleep(LEAVE_POLL).await;
            }
        }
    }

    /// Who writes down requests.
    pub fn logger(&self) -> Arc<dyn Loader> {
        self.loader.clone()
    }

    /// What is known about a model without loading it.
    pub fn describe(&self, id: &str) -> Result<Description, ApiError> {
        self.loader.describe(id).map_err(|error| failed(id, &error))
    }
}

fn loading(id: &str) -> ApiError {
    ApiError::unavailable(format!("the model {id} is loading"), LOAD_RETRY_SECONDS)
}

fn failed(id: &str, error: &LoadError) -> ApiError {
    ApiError::internal(format!("the model {id} cannot be loaded: {}", error.told))
}

/// Models beside one that is to be loaded.
#[derive(Default)]
struct Others {
    ready: Vec<Arc<Model>>,
    /// Those that still have their memory and are on their way out.
    leaving: usize,
}

impl Others {
    fn count(&self) -> usize {
        self.ready.len() + self.leaving
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads when told to, and never succeeds.
    struct Slow(Mutex<std::sync::mpsc::Receiver<()>>);

    impl Loader for Slow {
        fn models(&self) -> Vec<ModelEntry> {
            vec![ModelEntry { id: "a".into(), bytes: 1, created: 0 }]
        }

        fn load(&self, _: &str, _: &Care, progress: &mut dyn FnMut(f32)) -> Result<LoadedModel, LoadError> {
            progress(0.5);
            self.0.lock().unwrap().recv().unwrap();
            Err("it is broken".into())
        }

        fn describe(&self, _id: &str) -> Result<Description, LoadError> {
            Err("nothing is there".into())
        }

        fn outline(&self, _id: &str) -> Result<Outline, LoadError> {
            Err("nothing is there".into())
        }

        fn tell(&self, _: &str) {}
        fn log(&self, _: &str) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_first_model_is_not_waited_for_but_later_ones_are() {
        let (go, told) = std::sync::mpsc::channel();
        let loader = Arc::new(Slow(Mutex::new(told)));
        let registry = Arc::new(Registry::new(loader, Vec::new(), 1, Arc::new(Metrics::new())));
        let warm = tokio::spawn({
            let registry = registry.clone();
            async move { registry.warm("a").await }
        });
        while registry.standing("a") != Standing::Loading(0.5) {
            tokio::task::yield_now().await;
        }
        let refused = registry.get("a", true).await.err().unwrap();
        assert_eq!((refused.status.as_u16(), refused.retry_after_seconds), (503, Some(LOAD_RETRY_SECONDS)));
        go.send(()).unwrap();
        assert!(warm.await.unwrap().is_err());
        // What failed is not tried again at once,
        let failed = registry.get("a", true).await.err().unwrap();
        assert!(failed.message.contains("it is broken"), "{}", failed.message);
        tokio::time::sleep(FAILED_WAIT).await;
        // but later, and now it is waited for.
        let asked = tokio::spawn({
            let registry = registry.clone();
            async move { registry.get("a", true).await.err().unwrap() }
        });
        while registry.standing("a") != Standing::Loading(0.5) {
            tokio::task::yield_now().await;
        }
        assert!(!asked.is_finished());
        go.send(()).unwrap();
        let failed = asked.await.unwrap();
        assert_eq!(failed.status.as_u16(), 500, "{}", failed.message);
        assert!(failed.message.contains("it is broken"), "{}", failed.message);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_unloaded_has_left_its_memory_before_it_is_loaded_again() {
        let (go, told) = std::sync::mpsc::channel();
        let loader = Arc::new(Slow(Mutex::new(told)));
        let registry = Arc::new(Registry::new(loader, Vec::new(), 1, Arc::new(Metrics::new())));
        let (alive, ended) = Ended::given();
        registry.slots().insert("a".into(), Slot::Leaving { ended, model: Weak::new() });
        assert_eq!((registry.standing("a"), registry.ready().len()), (Standing::Unloaded, 0));
        let asked = tokio::spawn({
            let registry = registry.clone();
            async move { registry.get("a", true).await.err().unwrap() }
        });
        while registry.standing("a") == Standing::Unloaded {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(registry.standing("a"), Standing::Loading(0.0));
        drop(alive);
        go.send(()).unwrap();
        assert!(asked.await.unwrap().message.contains("it is broken"));
    }
}
