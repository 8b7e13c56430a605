//! Random histories of a folder: whatever happens, what comes back is what was written, and the bound holds.

mod support;

use proptest::prelude::*;
use support::*;
use unicorn_core::PageStore;
use unicorn_store::{DiskStore, list, remove};

#[derive(Clone, Debug)]
enum Step {
    /// Which of two stores, first key, keys.
    Put(usize, u64, u64),
    Get(usize, u64, u64),
    Ask(usize, u64),
    Reopen(usize),
    /// A store with another bound, in pages.
    Bound(usize, u64),
    /// Changes a byte of some page.
    Damage(usize, usize),
    /// Cuts some page off.
    Cut(usize, usize),
    Unlink(usize),
    /// A leftover, and a number in the lock file that tells anything.
    Leftover(Option<u64>),
    RemoveAll,
}

fn step() -> impl Strategy<Value = Step> {
    let (store, key) = (0..2usize, 0..60u64);
    prop_oneof![
        6 => (store.clone(), key.clone(), 1..6u64).prop_map(|(s, k, n)| Step::Put(s, k, n)),
        6 => (store.clone(), key.clone(), 1..4u64).prop_map(|(s, k, n)| Step::Get(s, k, n)),
        2 => (store.clone(), key).prop_map(|(s, k)| Step::Ask(s, k)),
        1 => store.clone().prop_map(Step::Reopen),
        1 => (store, 3..30u64).prop_map(|(s, n)| Step::Bound(s, n)),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(f, at)| Step::Damage(f, at)),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(f, at)| Step::Cut(f, at)),
        1 => any::<usize>().prop_map(Step::Unlink),
        1 => any::<Option<u64>>().prop_map(Step::Leftover),
        1 => Just(Step::RemoveAll),
    ]
}

/// Does something to one of the page files, if there is one.
fn to_file(root: &std::path::Path, which: usize, f: impl FnOnce(&std::path::Path, Vec<u8>)) {
    let files = files(root);
    if !files.is_empty() {
        let path = &files[which % files.len()];
        f(path, std::fs::read(path).unwrap());
    }
}

fn take(root: &std::path::Path, stores: &mut [Option<DiskStore>; 2], bounds: &mut [u64; 2], step: Step) {
    let of =
        |stores: &[Option<DiskStore>; 2], s: usize, f: &dyn Fn(&DiskStore)| f(stores[s].as_ref().unwrap());
    match step {
        Step::Put(s, first, n) => of(stores, s, &|store| {
            let before = store.state();
            put(store, &keys(first..first + n));
            let after = store.state();
            assert_eq!(after.dropped_full, 0);
            let bound = bounds[s] * ON_DISK;
            let wrote = after.written_pages > before.written_pages;
            assert!(!wrote || taken(root) <= bound + 4096, "{} of {bound}", taken(root));
        }),
        // Whether it is there does not matter: `get` panics where it comes back with other bytes.
        Step::Get(s, first, n) => of(stores, s, &|store| drop(get(store, &keys(first..first + n)))),
        Step::Ask(s, n) => of(stores, s, &|store| {
            // A page that is not known to be there is asked for on disk.
            assert!(store.has(&key(n)) || !file_of(root, &key(n)).exists());
        }),
        Step::Reopen(s) => {
            stores[s] = None;
            stores[s] = Some(open(root, bounds[s] * ON_DISK));
        }
        Step::Bound(s, pages) => {
            stores[s] = None;
            bounds[s] = pages;
            stores[s] = Some(open(root, pages * ON_DISK));
        }
        Step::Damage(which, at) => to_file(root, which, |path, mut bytes| {
            let at = at % bytes.len().max(1);
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8));
            std::fs::write(path, bytes).unwrap();
        }),
        Step::Cut(which, at) => to_file(root, which, |path, bytes| {
            std::fs::write(path, &bytes[..at % bytes.len().max(1)]).unwrap();
        }),
        Step::Unlink(which) => to_file(root, which, |path, _| std::fs::remove_file(path).unwrap()),
        Step::Leftover(told) => {
            std::fs::write(folder(root).join(".part-xyz"), [0; 9000]).unwrap();
            // Never less than there is: that is what the file promises.
            let told = told.map(|told| told.saturating_add(1 << 40)).map(|used| [used, !used]);
            let bytes = told.map(|pair| pair.map(u64::to_le_bytes).concat()).unwrap_or_default();
            std::fs::write(root.join("lock"), bytes).unwrap();
        }
        Step::RemoveAll => {
            for model in list(root).unwrap() {
                remove(root, &model.folder).unwrap();
            }
            std::fs::create_dir_all(root.join("kv-05050505050505050505050505050505")).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_history(steps in proptest::collection::vec(step(), 1..60)) {
        let root = tempfile::tempdir().unwrap();
        let mut bounds = [20, 20];
        let mut stores = [0, 1].map(|s: usize| Some(open(root.path(), bounds[s] * ON_DISK)));
        for step in steps {
            take(root.path(), &mut stores, &mut bounds, step);
        }
        drop(stores);
        // Whatever is left is whole, or is taken out when it is asked for.
        let store = open(root.path(), 20 * ON_DISK);
        assert_eq!(temporary(root.path()), 0);
        for key in keys(0..66) {
            let whole = store.has(&key) && get(&store, &[key]).is_ok();
            assert_eq!(file_of(root.path(), &key).exists(), whole);
        }
    }
}
