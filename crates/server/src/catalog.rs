//! The models that may be asked for, as the loader last saw them, and what is known of those that are not loaded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::error::ApiError;
use crate::model::{Loader, ModelEntry, Outline};

/// How long what was seen is taken for true.
const FRESH: Duration = Duration::from_secs(1);
/// Longest that a request waits for a look at the disk; then it takes what was seen before.
const LOOK_WAIT: Duration = Duration::from_secs(2);
/// Longest that a request waits for what is known of models that nobody looked at yet. The next one finds more.
const OUTLINES_WAIT: Duration = Duration::from_secs(2);

/// An entry as it was when its model was looked at, and what was found; `None` where it cannot be opened.
type Outlined = (ModelEntry, Option<Arc<Outline>>);

/// What the loader has. The disk is looked at away from the threads that serve connections, and once for all who ask within a second.
pub(crate) struct Catalog {
    loader: Arc<dyn Loader>,
    /// Patterns with at most one `*`, and what they stand for; an empty name is the default model.
    aliases: Vec<(String, String)>,
    seen: RwLock<Arc<Vec<ModelEntry>>>,
    /// When it was looked last.
    looked: tokio::sync::Mutex<Instant>,
    /// A look that takes longer than its time is not followed by others.
    looking: AtomicBool,
    outlines: Mutex<HashMap<String, Outlined>>,
}

impl Catalog {
    /// Looks once, so that there is something to tell.
    pub fn new(loader: Arc<dyn Loader>, aliases: Vec<(String, String)>) -> Catalog {
        let seen = RwLock::new(Arc::new(loader.models()));
        let (looked, looking) = (tokio::sync::Mutex::new(Instant::now()), AtomicBool::new(false));
        Catalog { loader, aliases, seen, looked, looking, outlines: Mutex::default() }
    }

    /// The models as last seen, the default one first.
    pub fn entries(&self) -> Arc<Vec<ModelEntry>> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks again where that was not done lately.
    pub async fn refresh(self: &Arc<Self>) {
        let mut looked = self.looked.lock().await;
        if looked.elapsed() < FRESH || self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let look = Look(self.clone());
        let look = tokio::task::spawn_blocking(move || {
            let entries = Arc::new(look.0.loader.models());
            *look.0.seen.write().unwrap_or_else(PoisonError::into_inner) = entries;
        });
        let _ = tokio::time::timeout(LOOK_WAIT, look).await;
        *looked = Instant::now();
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

    fn outlines(&self) -> MutexGuard<'_, HashMap<String, Outlined>> {
        self.outlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, entry: &ModelEntry) -> Option<Option<Arc<Outline>>> {
        let outlines = self.outlines();
        let (of, outline) = outlines.get(&entry.id)?;
        (of == entry).then(|| outline.clone())
    }

    /// What is known of these models from their files; of one that nobody looked at yet as far as that does not take long.
    pub async fn outlined(self: &Arc<Self>, entries: &[ModelEntry]) -> HashMap<String, Arc<Outline>> {
        let unknown: Vec<ModelEntry> = entries.iter().filter(|e| self.known(e).is_none()).cloned().collect();
        if !unknown.is_empty() {
            let this = self.clone();
            let look = tokio::task::spawn_blocking(move || this.look_into(unknown));
            // It goes on without those who wait.
            let _ = tokio::time::timeout(OUTLINES_WAIT, look).await;
        }
        let known = entries.iter().filter_map(|entry| Some((entry.id.clone(), self.known(entry)??)));
        known.collect()
    }

    fn look_into(&self, entries: Vec<ModelEntry>) {
        for entry in entries {
            // Another request may have been faster.
            if self.known(&entry).is_none() {
                let outline = self.loader.outline(&entry.id).ok().map(Arc::new);
                self.outlines().insert(entry.id.clone(), (entry, outline));
            }
        }
        let entries = self.entries();
        self.outlines().retain(|id, _| entries.iter().any(|entry| entry.id == *id));
    }
}

/// A look at the disk, which has ended when this is dropped.
struct Look(Arc<Catalog>);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Release);
    }
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
