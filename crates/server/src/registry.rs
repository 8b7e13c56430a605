//! The models that a server has: which may be asked for, which are loaded, which must go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use unicorn_core::Pooling;
use unicorn_grammar::Dialect;
use unicorn_model::TextSide;
use unicorn_text::ChatTemplate;

use crate::error::ApiError;
use crate::grammars::Grammars;
use crate::metrics::Metrics;
use crate::model::{Care, Description, LoadError, LoadedModel, Loader, ModelEntry, ModelFacts};
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
    /// When it is to go, and the tick of `used` for which that holds: asking for it takes that back.
    leaves: Mutex<Option<(u64, SystemTime)>>,
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
        let leaves = *self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        leaves.filter(|(used, _)| *used == self.used.load(Ordering::Relaxed)).map(|(_, at)| at)
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
    /// It could not be loaded, which is told until someone asks again.
    Failed(String),
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
    aliases: Vec<(String, String)>,
    slots: Mutex<HashMap<String, Slot>>,
    /// One model is loaded at a time.
    loading: tokio::sync::Mutex<()>,
    /// Models that are loaded at once.
    models_max: usize,
    clock: AtomicU64,
    metrics: Arc<Metrics>,
}

/// Longest that a request waits for its model to be loaded.
const LOAD_WAIT: Duration = Duration::from_secs(600);
/// Longest that the server waits for the first.
const LOAD_WAIT_FIRST: Duration = Duration::from_secs(24 * 3600);
/// Seconds after which a client may ask again for a model that is loading.
const LOAD_RETRY_SECONDS: u64 = 2;

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
        Registry { loader, aliases, slots, loading, models_max, clock, metrics }
    }

    /// The models that may be asked for, the default one first.
    pub fn entries(&self) -> Vec<ModelEntry> {
        self.loader.models()
    }

    /// The entry that a name in a request means.
    pub fn find(&self, name: &str) -> Result<ModelEntry, ApiError> {
        let entries = self.entries();
        // Ollama's clients write `:latest` behind names.
        let bare = name.strip_suffix(":latest").unwrap_or(name);
        let by_id = |id: &str| entries.iter().find(|e| e.id == id).cloned();
        if let Some(entry) = by_id(name).or_else(|| by_id(bare)) {
            return Ok(entry);
        }
        let alias = self.aliases.iter().find(|(pattern, _)| fits(pattern, name));
        let aliased = alias.and_then(|(_, id)| match id.as_str() {
            "" => entries.first().cloned(),
            id => by_id(id),
        });
        let ids: Vec<String> = entries.iter().map(|e| e.id.clone()).collect();
        aliased.ok_or_else(|| ApiError::no_model(name, &ids))
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

    /// How a model stands.
    pub fn standing(&self, id: &str) -> Standing {
        match self.slots().get(id) {
            None => Standing::Unloaded,
            Some(Slot::Ready(_)) => Standing::Ready,
            Some(Slot::Failed(why)) => Standing::Failed(why.clone()),
            Some(Slot::Loading { share, .. }) => Standing::Loading(*share.borrow()),
        }
    }

    /// The model that a request names, loaded if it must be. Waits for that, unless `wait` is false or it is the model that the server
    /// begins with.
    pub async fn get(self: &Arc<Self>, name: &str, wait: bool) -> Result<InUse, ApiError> {
        let entry = self.find(name)?;
        let deadline = Instant::now() + LOAD_WAIT;
        loop {
            let share = match self.look(&entry.id, false)? {
                Slot::Ready(model) => {
                    model.used.store(self.clock.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    return Ok(InUse::new(&model));
                }
                Slot::Loading { share, first } if wait && !first => share,
                Slot::Loading { .. } => return Err(loading(&entry.id)),
                Slot::Failed(why) => return Err(failed(&entry.id, &why)),
            };
            self.loaded(&entry.id, share, deadline).await?;
        }
    }

    /// Loads the model that the server begins with.
    pub async fn warm(self: &Arc<Self>, name: &str) -> Result<(), ApiError> {
        self.bring(name, true, LOAD_WAIT_FIRST).await
    }

    /// Loads a model and waits for it, whichever it is.
    pub async fn fetch(self: &Arc<Self>, name: &str) -> Result<(), ApiError> {
        self.bring(name, false, LOAD_WAIT).await
    }

    async fn bring(self: &Arc<Self>, name: &str, first: bool, wait: Duration) -> Result<(), ApiError> {
        let entry = self.find(name)?;
        match self.look(&entry.id, first)? {
            Slot::Loading { share, .. } => self.loaded(&entry.id, share, Instant::now() + wait).await,
            Slot::Ready(_) => Ok(()),
            Slot::Failed(why) => Err(failed(&entry.id, &why)),
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
            Some(Slot::Failed(why)) => Err(failed(id, why)),
            _ => Ok(()),
        }
    }

    /// Ends all requests of all models.
    pub fn cancel_all(&self) {
        self.ready().iter().for_each(|model| model.worker.cancel_all());
    }

    /// The slot of a model; loading begins where it is not there. What failed or stopped is tried anew.
    fn look(self: &Arc<Self>, id: &str, first: bool) -> Result<Slot, ApiError> {
        let mut slots = self.slots();
        let before = match slots.get(id) {
            Some(Slot::Ready(model)) if model.worker.stopped().is_none() => {
                return Ok(Slot::Ready(model.clone()));
            }
            Some(slot @ Slot::Loading { .. }) => return Ok(slot.clone()),
            Some(Slot::Ready(stopped)) => Some(stopped.worker.ended()),
            Some(Slot::Failed(_)) | None => None,
        };
        let (tell, share) = watch::channel(0.0);
        let slot = Slot::Loading { share, first };
        slots.insert(id.to_owned(), slot.clone());
        drop(slots);
        tokio::spawn(self.clone().load_in_turn(id.to_owned(), before, Arc::new(tell)));
        Ok(slot)
    }

    /// Loads a model once those before it are loaded and there is room, and the one that was there `before` has left its memory. `tell` closes
    /// when the slot is set.
    async fn load_in_turn(self: Arc<Self>, id: String, before: Option<Ended>, tell: Arc<watch::Sender<f32>>) {
        let _one = self.loading.lock().await;
        if let Some(before) = before {
            before.wait().await;
        }
        let mut most = self.models_max;
        let slot = loop {
            let others = self.make_room(&id, most).await;
            let (registry, name, told) = (self.clone(), id.clone(), tell.clone());
            let task = tokio::task::spawn_blocking(move || {
                registry.load(&name, &mut |share| {
                    told.send_replace(share);
                })
            });
            match task.await.unwrap_or_else(|_| Err("loading it panicked".into())) {
                Ok(model) => break Slot::Ready(Arc::new(model)),
                // Beside fewer others there may be room.
                Err(error) if error.memory && others > 0 => most = others,
                Err(error) => break Slot::Failed(error.message),
            }
        };
        self.metrics.loaded();
        self.slots().insert(id, slot);
        drop(tell);
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
        let (used, users, leaves) = (AtomicU64::new(0), AtomicUsize::new(0), Mutex::new(None));
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
        })
    }

    /// Unloads the models that were asked least lately until there are less than `most` beside this one; returns how many are left. One that
    /// is in use is never unloaded: it is waited for.
    async fn make_room(&self, id: &str, most: usize) -> usize {
        loop {
            let others: Vec<Arc<Model>> = self.ready().into_iter().filter(|other| other.id != id).collect();
            if others.len() < most.max(1) {
                return others.len();
            }
            let idle = others.iter().filter(|model| model.is_idle());
            let oldest = idle.min_by_key(|model| model.used.load(Ordering::Relaxed)).map(|m| m.id.clone());
            drop(others);
            match oldest {
                Some(oldest) => {
                    self.unload(&oldest).await;
                }
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Unloads a model that nobody uses and waits until its memory is free. False where it is not loaded or in use.
    pub async fn unload(&self, id: &str) -> bool {
        let ended = {
            let mut slots = self.slots();
            match slots.get(id) {
                Some(Slot::Ready(model)) if model.is_idle() => {
                    let ended = model.worker.ended();
                    slots.remove(id);
                    ended
                }
                _ => return false,
            }
        };
        self.metrics.unloaded();
        ended.wait().await;
        true
    }

    /// Ends the use of a model, and unloads it once nobody has asked for it for this long. Whoever asks meanwhile, over whatever API, takes
    /// that back.
    pub fn let_go(self: &Arc<Self>, model: InUse, after: Duration) {
        let used = model.used.load(Ordering::Relaxed);
        let (id, watched) = (model.id.clone(), Arc::downgrade(&model.0));
        let leaves = SystemTime::now().checked_add(after).map(|at| (used, at));
        *model.leaves.lock().unwrap_or_else(PoisonError::into_inner) = leaves;
        drop(model);
        // A server that has ended unloads everything anyway.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let registry = self.clone();
        runtime.spawn(async move {
            tokio::time::sleep(after).await;
            let waits = || {
                let model = watched.upgrade().filter(|m| m.used.load(Ordering::Relaxed) == used)?;
                Some(model.is_idle())
            };
            while let Some(idle) = waits() {
                if idle && registry.unload(&id).await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// What is known about a model without loading it.
    pub fn describe(&self, id: &str) -> Result<Description, ApiError> {
        self.loader.describe(id).map_err(|why| ApiError::internal(format!("{id}: {why}")))
    }
}

fn loading(id: &str) -> ApiError {
    ApiError::unavailable(format!("the model {id} is loading"), LOAD_RETRY_SECONDS)
}

fn failed(id: &str, why: &str) -> ApiError {
    ApiError::internal(format!("{id}: {why}"))
}

/// Whether a name fits a pattern with at most one `*`.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((before, after)) => {
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        }
        None => pattern == name,
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

        fn describe(&self, _id: &str) -> Result<Description, String> {
            Err("nothing is there".into())
        }

        fn tell(&self, _: &str) {}
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
        // What failed is tried anew, and now it is waited for.
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

    #[test]
    fn patterns_have_one_star() {
        for (pattern, name, expected) in [
            ("claude-*", "claude-sonnet-5", true),
            ("claude-*", "claude", false),
            ("*", "", true),
            ("gpt-*-mini", "gpt-mini", false),
            ("gpt-*-mini", "gpt-6-mini", true),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
