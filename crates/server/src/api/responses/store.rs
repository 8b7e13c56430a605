//! Responses that are kept, so that later requests can build on them. Bounded: the oldest go.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::weight::{MARKS_MAX, marks};

/// Whose a response is: the scope of a client.
type Owner = u64;

/// A response and what it answered. Both are kept as text, whose size is known.
struct Entry {
    /// The response that this one went on from.
    previous: Option<String>,
    /// A list of items. Texts are shared, so that they are parsed where nobody waits for the store.
    input: Arc<str>,
    response: Arc<str>,
    /// Ids of all items of both.
    items: Vec<String>,
    used: u64,
}

impl Entry {
    fn bytes(&self, id: &str) -> usize {
        // An id stands in three places, an item's in two; the maps around them take about as much again.
        let ids: usize = self.items.iter().map(|item| 2 * item.len() + size_of::<Owner>() + 128).sum();
        self.input.len() + self.response.len() + ids + 3 * id.len() + 256
    }

    fn texts(&self) -> Texts {
        Texts { input: self.input.clone(), response: self.response.clone() }
    }
}

/// What is kept of a response, outside of the store.
struct Texts {
    input: Arc<str>,
    response: Arc<str>,
}

impl Texts {
    fn input(&self) -> Vec<Value> {
        serde_json::from_str(&self.input).unwrap_or_default()
    }

    fn response(&self) -> Value {
        serde_json::from_str(&self.response).unwrap_or_default()
    }

    fn output(&self) -> Vec<Value> {
        match self.response().get_mut("output").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        }
    }
}

/// Everything is known by who asked for it: others do not find it.
type Key = (Owner, String);

#[derive(Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    /// In which entry an item is.
    items: HashMap<Key, String>,
    /// Entries by when they were used.
    order: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

impl Kept {
    fn touch(&mut self, key: &Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        self.clock += 1;
        self.order.remove(&entry.used);
        entry.used = self.clock;
        self.order.insert(self.clock, key.clone());
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        self.bytes -= entry.bytes(&key.1);
        self.order.remove(&entry.used);
        for item in entry.items {
            let item = (key.0, item);
            // An item may have been sent again and be in a newer entry.
            if self.items.get(&item) == Some(&key.1) {
                self.items.remove(&item);
            }
        }
        true
    }
}

/// What is kept of all responses.
pub(crate) struct Store {
    kept: Mutex<Kept>,
    entries_max: usize,
    bytes_max: usize,
    /// Bytes of what is kept that one request may bring back.
    taken_bytes_max: usize,
}

/// Why nothing of what is kept can be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Miss {
    /// A response that is gone, or never was.
    Lost(String),
    /// There would be more than this many bytes, or values.
    TooMuch(usize),
}

fn ids(items: &[Value]) -> impl Iterator<Item = String> {
    items.iter().filter_map(|item| Some(item.get("id")?.as_str()?.to_owned()))
}

impl Store {
    /// `taken_bytes_max` bounds what one request may bring back of it, as its body is bounded.
    pub fn new(entries_max: usize, bytes_max: usize, taken_bytes_max: usize) -> Store {
        Store { kept: Mutex::default(), entries_max, bytes_max, taken_bytes_max }
    }

    /// Errors where a request would bring back more than it may send.
    fn check_taken<'t>(&self, texts: impl Iterator<Item = &'t str> + Clone) -> Result<(), Miss> {
        let bytes: usize = texts.clone().map(str::len).sum();
        let fits = bytes <= self.taken_bytes_max
            && texts.map(|text| marks(text.as_bytes())).sum::<usize>() <= MARKS_MAX;
        if fits { Ok(()) } else { Err(Miss::TooMuch(self.taken_bytes_max)) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response with the items that it answered. One that is larger than everything that may be kept is not.
    pub fn put(&self, owner: Owner, previous: Option<String>, input: &[Value], response: &Value) {
        let Some(id) = response["id"].as_str() else { return };
        let output = response["output"].as_array().map_or(&[][..], Vec::as_slice);
        let items: Vec<String> = ids(input).chain(ids(output)).collect();
        let input = serde_json::to_string(input).unwrap_or_default();
        let (input, response) = (Arc::from(input), Arc::from(response.to_string()));
        let entry = Entry { previous, input, response, items, used: 0 };
        let bytes = entry.bytes(id);
        if bytes > self.bytes_max || self.entries_max == 0 {
            return;
        }
        let key = (owner, id.to_owned());
        let mut kept = self.kept();
        kept.remove(&key);
        while kept.entries.len() >= self.entries_max || kept.bytes + bytes > self.bytes_max {
            let Some(oldest) = kept.order.values().next().cloned() else { return };
            kept.remove(&oldest);
        }
        for item in &entry.items {
            kept.items.insert((owner, item.clone()), key.1.clone());
        }
        kept.bytes += bytes;
        kept.entries.insert(key.clone(), entry);
        kept.touch(&key);
    }

    /// A response.
    pub fn response(&self, owner: Owner, id: &str) -> Option<Value> {
        Some(self.texts(owner, id)?.response())
    }

    fn texts(&self, owner: Owner, id: &str) -> Option<Texts> {
        let key = (owner, id.to_owned());
        let mut kept = self.kept();
        kept.touch(&key);
        kept.entries.get(&key).map(Entry::texts)
    }

    /// The items that a response answered.
    pub fn input(&self, owner: Owner, id: &str) -> Option<Vec<Value>> {
        Some(self.texts(owner, id)?.input())
    }

    /// Forgets a response. False where it was not there.
    pub fn remove(&self, owner: Owner, id: &str) -> bool {
        self.kept().remove(&(owner, id.to_owned()))
    }

    /// All items of a conversation up to a response and with what it said.
    ///
    /// # Errors
    /// The id of the response that is not there any more; where it is more than a request may have.
    pub fn conversation(&self, owner: Owner, id: &str) -> Result<Vec<Value>, Miss> {
        let mut kept = self.kept();
        let mut chain = Vec::new();
        let mut next = Some(id.to_owned());
        while let Some(id) = next {
            let key = (owner, id);
            let Some(entry) = kept.entries.get(&key) else { return Err(Miss::Lost(key.1)) };
            next = entry.previous.clone();
            chain.push(key);
        }
        // What came first is touched last: without it the rest is worth nothing.
        chain.iter().for_each(|key| kept.touch(key));
        let texts: Vec<Texts> =
            chain.iter().rev().filter_map(|key| kept.entries.get(key)).map(Entry::texts).collect();
        drop(kept);
        self.check_taken(texts.iter().map(|texts| &*texts.input))?;
        let mut items = Vec::new();
        for texts in texts {
            items.extend(texts.input());
            items.extend(texts.output());
        }
        Ok(items)
    }

    /// The items with these ids, of any responses, in this order. Each is there once, however often it is asked for, but counts each time:
    /// it will be put into the conversation as often.
    ///
    /// # Errors
    /// The first id that is not there; where it is more than a request may have.
    pub fn items(&self, owner: Owner, ids: &[&str]) -> Result<Vec<Arc<Value>>, Miss> {
        let mut wanted: HashMap<Key, HashSet<&str>> = HashMap::new();
        let mut kept = self.kept();
        for id in ids {
            let of =
                kept.items.get(&(owner, (*id).to_owned())).ok_or_else(|| Miss::Lost((*id).to_owned()))?;
            wanted.entry((owner, of.clone())).or_default().insert(id);
        }
        wanted.keys().for_each(|key| kept.touch(key));
        let texts = wanted.into_iter().filter_map(|(key, ids)| Some((kept.entries.get(&key)?.texts(), ids)));
        let texts: Vec<(Texts, HashSet<&str>)> = texts.collect();
        drop(kept);
        let mut found: HashMap<&str, (Arc<Value>, String)> = HashMap::new();
        for (texts, ids) in texts {
            for item in texts.output().into_iter().chain(texts.input()) {
                let id = item["id"].as_str().and_then(|id| ids.get(id).copied());
                if let Some(id) = id.filter(|id| !found.contains_key(id)) {
                    let text = item.to_string();
                    found.insert(id, (Arc::new(item), text));
                }
            }
        }
        let lost = ids.iter().find(|id| !found.contains_key(*id));
        if let Some(lost) = lost {
            return Err(Miss::Lost((*lost).to_owned()));
        }
        self.check_taken(ids.iter().map(|id| found[id].1.as_str()))?;
        Ok(ids.iter().map(|id| found[id].0.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ME: Owner = 1;
    const YOU: Owner = 2;

    fn put(store: &Store, id: &str, previous: Option<&str>) {
        let input = [json!({"id": format!("in_{id}"), "text": "question"})];
        let response = json!({"id": id, "output": [{"id": format!("out_{id}")}]});
        store.put(ME, previous.map(str::to_owned), &input, &response);
    }

    fn ids_of(items: &[Value]) -> Vec<String> {
        ids(items).collect()
    }

    #[test]
    fn a_conversation_is_put_together_in_order() {
        let store = Store::new(10, 1 << 20, 1 << 20);
        put(&store, "a", None);
        put(&store, "b", Some("a"));
        put(&store, "c", Some("b"));
        let items = store.conversation(ME, "c").unwrap();
        assert_eq!(ids_of(&items), ["in_a", "out_a", "in_b", "out_b", "in_c", "out_c"]);
        let found = store.items(ME, &["out_b", "in_a", "out_b"]).unwrap();
        assert_eq!(
            found.iter().map(|item| item["id"].as_str().unwrap()).collect::<Vec<_>>(),
            ["out_b", "in_a", "out_b"]
        );
        assert!(Arc::ptr_eq(&found[0], &found[2]));
        assert_eq!(ids_of(&store.input(ME, "b").unwrap()), ["in_b"]);
        assert!(store.remove(ME, "a") && !store.remove(ME, "a"));
        assert_eq!(store.conversation(ME, "c"), Err(Miss::Lost("a".into())));
        assert_eq!(store.items(ME, &["in_c", "in_a"]), Err(Miss::Lost("in_a".into())));
    }

    #[test]
    fn others_find_nothing() {
        let store = Store::new(10, 1 << 20, 1 << 20);
        put(&store, "a", None);
        assert!(store.response(ME, "a").is_some() && store.response(YOU, "a").is_none());
        assert!(store.items(YOU, &["out_a"]).is_err() && store.input(YOU, "a").is_none());
        assert!(!store.remove(YOU, "a") && store.conversation(YOU, "a").is_err());
    }

    #[test]
    fn what_a_request_brings_back_is_bounded() {
        let store = Store::new(10, 1 << 20, 3000);
        for (id, previous) in [("a", None), ("b", Some("a")), ("c", Some("b"))] {
            let input = [json!({"id": format!("in_{id}"), "text": "x".repeat(1200)})];
            store.put(ME, previous.map(str::to_owned), &input, &json!({"id": id, "output": []}));
        }
        assert!(store.conversation(ME, "b").is_ok());
        assert_eq!(store.conversation(ME, "c"), Err(Miss::TooMuch(3000)));
        assert!(store.items(ME, &["in_a", "in_a"]).is_ok());
        assert_eq!(store.items(ME, &["in_a"; 3]), Err(Miss::TooMuch(3000)));
        // Values take more memory than their text does.
        let large = Store::new(10, 1 << 24, 1 << 24);
        let many = [json!({"id": "many", "list": vec![0; MARKS_MAX / 2]})];
        large.put(ME, None, &many, &json!({"id": "a", "output": []}));
        assert!(large.items(ME, &["many"]).is_ok() && large.items(ME, &["many"; 3]).is_err());
    }

    #[test]
    fn the_oldest_go_and_nothing_of_them_stays() {
        let store = Store::new(3, 1 << 20, 1 << 20);
        for id in ["a", "b", "c"] {
            put(&store, id, None);
        }
        store.response(ME, "a");
        put(&store, "d", None);
        assert!(store.response(ME, "b").is_none() && store.response(ME, "a").is_some());
        let all = Store::new(100, 2000, 2000);
        for i in 0..50 {
            put(&all, &format!("r{i}"), None);
        }
        let mut kept = all.kept();
        assert!(kept.bytes <= 2000 && (1..10).contains(&kept.entries.len()));
        assert_eq!((kept.order.len(), kept.items.len()), (kept.entries.len(), 2 * kept.entries.len()));
        for key in kept.order.values().cloned().collect::<Vec<_>>() {
            kept.remove(&key);
        }
        assert_eq!((kept.bytes, kept.items.len(), kept.order.len()), (0, 0, 0));
        drop(kept);
        let small = Store::new(3, 100, 100);
        put(&small, "a", None);
        assert!(small.response(ME, "a").is_none());
    }
}
