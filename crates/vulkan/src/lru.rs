//! A bounded map that forgets what was used longest ago.

use std::collections::HashMap;
use std::hash::Hash;

/// Values with a weight each, at most `weight_max` in sum. The newest value stays whatever it weighs.
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    weight_max: usize,
    clock: u64,
}

struct Entry<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<K: Hash + Eq + Clone, V> Lru<K, V> {
    /// True when another value of this weight would make the oldest ones be forgotten.
    pub(crate) fn would_evict(&self, weight: usize) -> bool {
        self.entries.values().map(|e| e.weight).sum::<usize>() + weight > self.weight_max
    }

    /// Empty.
    pub(crate) fn new(weight_max: usize) -> Lru<K, V> {
        Lru { entries: HashMap::new(), weight_max, clock: 0 }
    }

    /// The value of a key, which counts as used now.
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(&mut entry.value)
    }

    /// Adds a value and drops the ones used longest ago until the rest fits.
    pub(crate) fn insert(&mut self, key: K, value: V, weight: usize) {
        self.clock += 1;
        self.entries.insert(key.clone(), Entry { value, weight, used: self.clock });
        while self.entries.values().map(|e| e.weight).sum::<usize>() > self.weight_max {
            let oldest = self.entries.iter().filter(|(k, _)| **k != key).min_by_key(|(_, e)| e.used);
            let Some(oldest) = oldest.map(|(k, _)| k.clone()) else { return };
            self.entries.remove(&oldest);
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let mut lru = Lru::new(10);
        lru.insert("a", 1, 4);
        lru.insert("b", 2, 4);
        assert_eq!(lru.get(&"a"), Some(&mut 1));
        lru.insert("c", 3, 4);
        assert_eq!(["a", "b", "c"].map(|k| lru.get(&k).copied()), [Some(1), None, Some(3)]);
        lru.insert("huge", 4, 100);
        assert_eq!(["a", "c", "huge"].map(|k| lru.get(&k).copied()), [None, None, Some(4)]);
        lru.insert("d", 5, 1);
        assert_eq!(["huge", "d"].map(|k| lru.get(&k).copied()), [None, Some(5)]);
        lru.clear();
        assert_eq!(lru.get(&"d"), None);
    }
}
