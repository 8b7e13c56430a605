//! One store, its folder, and what may happen to it.

mod support;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use support::*;
use unicorn_core::{DeviceError, PageStore, Signal};
use unicorn_store::{DiskStore, Identity, StoreError, StoreOptions, list, remove};

const PLENTY: u64 = 1 << 30;

#[test]
fn pages_outlive_the_store_and_belong_to_their_identity() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), PLENTY);
    assert!(!store.has(&key(1)) && get(&store, &keys(1..2)).is_err());
    put(&store, &keys(0..5));
    get(&store, &keys(0..5)).unwrap();
    assert_eq!((store.state().written_pages, store.state().read_pages), (5, 5));
    drop(store);

    let store = open(root.path(), PLENTY);
    assert_eq!(store.state().pages, 5);
    get(&store, &[key(4), key(0)]).unwrap();
    // One that is missing fails all.
    let error = get(&store, &[key(4), key(9), key(0)]).unwrap_err();
    assert!(error.to_string().contains("saved pages"), "{error}");

    let other = StoreOptions { identity: Identity([6; 32]), ..options(root.path(), PLENTY) };
    let other = DiskStore::open(other).unwrap();
    assert!(!other.has(&key(4)) && get(&other, &keys(4..5)).is_err());
}

#[test]
fn another_process_sees_a_page_at_once_and_does_not_write_it_again() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (open(root.path(), PLENTY), open(root.path(), PLENTY));
    put(&a, &keys(0..3));
    assert!(b.has(&key(2)) && !b.has(&key(3)));
    get(&b, &keys(0..3)).unwrap();
    put(&b, &keys(0..4));
    assert_eq!(b.state().written_pages, 1);
    // A page that the other removed is missed once, and known to be gone from then on.
    fs::remove_file(file_of(root.path(), &key(1))).unwrap();
    assert!(a.has(&key(1)) && get(&a, &keys(1..2)).is_err() && !a.has(&key(1)));
}

#[test]
fn the_bound_holds_and_the_least_useful_go_first() {
    let root = tempfile::tempdir().unwrap();
    let bound = 40 * ON_DISK;
    let store = open(root.path(), bound);
    put(&store, &keys(0..10));
    put(&store, &keys(100..120));
    let age = |key: &_, seconds| {
        let time = fs::metadata(file_of(root.path(), key)).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(file_of(root.path(), key)).unwrap();
        file.set_modified(time - Duration::from_secs(seconds)).unwrap();
    };
    // A minute later, the second chain has not been used for longer than the first.
    keys(0..10).iter().for_each(|key| age(key, 60));
    keys(100..120).iter().for_each(|key| age(key, 120));
    drop(store);
    let store = open(root.path(), bound);
    put(&store, &keys(200..230));
    assert!(taken(root.path()) <= bound + 4096, "{} of {bound}", taken(root.path()));
    let there = |range| keys(range).iter().filter(|key| store.has(key)).count();
    assert_eq!(there(200..230), 30);
    assert!(store.state().evicted > 0);
    // Of the older chain none is left that was further on than one that is gone; of the other the beginning is.
    assert_eq!(there(100..120), 0);
    let first = keys(0..10).iter().take_while(|key| store.has(key)).count();
    assert!(first > 0 && first == there(0..10), "{first}");
}

#[test]
fn what_is_used_stays() {
    let root = tempfile::tempdir().unwrap();
    let bound = 20 * ON_DISK;
    let store = open(root.path(), bound);
    put(&store, &keys(0..16));
    let old = SystemTime::now() - Duration::from_secs(1000);
    for key in keys(0..16) {
        let file = fs::File::options().write(true).open(file_of(root.path(), &key)).unwrap();
        file.set_modified(old).unwrap();
    }
    // Asking for a page is a use, and so is reading it; both count although they were not written down yet.
    assert!(store.has(&key(3)));
    get(&store, &keys(7..9)).unwrap();
    put(&store, &keys(50..66));
    let there = |n| store.has(&key(n));
    assert!(there(3) && there(7) && there(8), "{:?}", store.state());
    assert!(!there(0) && !there(15));
}

#[test]
fn a_bound_that_became_smaller_is_kept_at_the_next_page() {
    let root = tempfile::tempdir().unwrap();
    put(&open(root.path(), PLENTY), &keys(0..50));
    let store = open(root.path(), 10 * ON_DISK);
    put(&store, &keys(60..61));
    assert!(store.has(&key(60)) && taken(root.path()) <= 10 * ON_DISK + 4096);
    // A page that has no room at all evicts nobody.
    drop(store);
    let before = files(root.path()).len();
    let store = open(root.path(), ON_DISK - 1);
    put(&store, &keys(70..71));
    assert_eq!(files(root.path()).len(), before);
    let state = store.state();
    assert_eq!((state.dropped_failed, state.evicted), (1, 0));
    assert!(state.trouble.unwrap().contains("no room"));
}

#[test]
fn damage_is_removed_counted_and_told_once() {
    let root = tempfile::tempdir().unwrap();
    put(&open(root.path(), PLENTY), &keys(0..4));
    let told = Arc::new(Mutex::new(Vec::new()));
    let there = told.clone();
    let tell: Option<unicorn_store::Tell> = Some(Arc::new(move |trouble: &unicorn_store::Trouble| {
        there.lock().unwrap().push(trouble.to_string())
    }));
    let store = DiskStore::open(StoreOptions { tell, ..options(root.path(), PLENTY) }).unwrap();
    let damage = |n, at: usize| {
        let path = file_of(root.path(), &key(n));
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 4;
        fs::write(&path, bytes).unwrap();
    };
    damage(0, FILE as usize - 1);
    damage(1, 20);
    // A whole page under the name of another.
    fs::copy(file_of(root.path(), &key(3)), file_of(root.path(), &key(2))).unwrap();
    for n in 0..3 {
        assert!(store.has(&key(n)));
        assert!(get(&store, &keys(n..n + 1)).is_err());
        assert!(!store.has(&key(n)) && !file_of(root.path(), &key(n)).exists());
    }
    get(&store, &keys(3..4)).unwrap();
    assert_eq!(store.state().damaged, 3);
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("damaged") && told[0].contains(".page"));
    // The page can be kept anew.
    put(&store, &keys(0..1));
    get(&store, &keys(0..1)).unwrap();
}

#[test]
fn parts_may_be_used_again_only_when_devices_have_left_them() {
    let root = tempfile::tempdir().unwrap();
    let store = DiskStore::open(StoreOptions { queue_bytes_max: 1, ..options(root.path(), PLENTY) }).unwrap();
    let (copy, first) = (Signal::new(), Signal::new());
    let (copied, first_done) = (copy.fence(), first.fence());
    store.write(full(&keys(0..1)), vec![copied.clone()], first);
    // The queue is full: these are not kept, but the device still copies into their parts.
    let second = Signal::new();
    let second_done = second.fence();
    store.write(full(&keys(1..3)), vec![copied], second);
    assert_eq!(store.state().dropped_full, 2);
    std::thread::sleep(Duration::from_millis(20));
    assert!(first_done.outcome().is_none() && second_done.outcome().is_none() && !store.has(&key(0)));
    copy.give(Ok(None));
    first_done.wait().unwrap();
    second_done.wait().unwrap();
    assert!(store.has(&key(0)) && !store.has(&key(1)));
    assert_eq!(store.state().queued_bytes, 0);
}

#[test]
fn what_a_device_failed_to_copy_is_not_kept_and_no_error() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), PLENTY);
    let (copy, done) = (Signal::new(), Signal::new());
    let fence = done.fence();
    store.write(full(&keys(0..2)), vec![copy.fence()], done);
    copy.give(Err(Arc::new(DeviceError::Abandoned)));
    fence.wait().unwrap();
    assert!(!store.has(&key(0)) && store.flush(Duration::ZERO));
    assert_eq!(store.state().dropped_failed, 2);
    // Nor does a copy that never ends keep the store from closing.
    let (copy, done) = (Signal::new(), Signal::new());
    let fence = done.fence();
    let store = DiskStore::open(StoreOptions {
        close_patience: Duration::from_millis(20),
        ..options(root.path(), PLENTY)
    })
    .unwrap();
    store.write(full(&keys(0..2)), vec![copy.fence()], done);
    drop(store);
    assert!(fence.outcome().is_none());
    copy.give(Ok(None));
    fence.wait().unwrap();
    assert!(files(root.path()).is_empty());
}

#[test]
fn dropping_a_store_writes_what_waits() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), PLENTY);
    for n in 0..20 {
        store.write(full(&keys(n..n + 1)), Vec::new(), Signal::new());
    }
    drop(store);
    assert_eq!(files(root.path()).len(), 20);
}

#[test]
fn a_root_that_cannot_be_written_costs_pages_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    put(&open(root.path(), PLENTY), &keys(0..2));
    // No lock can be had: nothing may be written, but what is there is read.
    fs::remove_file(root.path().join("lock")).unwrap();
    fs::create_dir(root.path().join("lock")).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let there = told.clone();
    let tell: Option<unicorn_store::Tell> = Some(Arc::new(move |_: &unicorn_store::Trouble| {
        there.store(1 + there.load(Ordering::Relaxed), Ordering::Relaxed)
    }));
    let retry = Duration::from_millis(1);
    let store = DiskStore::open(StoreOptions { tell, retry, ..options(root.path(), PLENTY) }).unwrap();
    get(&store, &keys(0..2)).unwrap();
    put(&store, &keys(2..3));
    put(&store, &keys(3..4));
    let state = store.state();
    assert!(!store.has(&key(2)) && state.dropped_failed == 2 && state.trouble.is_some());
    assert_eq!(told.load(Ordering::Relaxed), 1);
    // It is well again as soon as the disk is.
    fs::remove_dir(root.path().join("lock")).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    put(&store, &keys(2..3));
    assert!(store.has(&key(2)) && store.state().trouble.is_none());
}

#[test]
fn a_disk_in_trouble_is_left_alone_for_a_while() {
    let root = tempfile::tempdir().unwrap();
    let store =
        DiskStore::open(StoreOptions { retry: Duration::from_secs(600), ..options(root.path(), PLENTY) });
    let store = store.unwrap();
    fs::remove_file(root.path().join("lock")).unwrap();
    fs::create_dir(root.path().join("lock")).unwrap();
    put(&store, &keys(0..3));
    assert_eq!(store.state().dropped_failed, 3);
    fs::remove_dir(root.path().join("lock")).unwrap();
    put(&store, &keys(0..3));
    assert_eq!((store.state().dropped_failed, files(root.path()).len()), (6, 0));
}

#[test]
fn a_folder_that_vanished_is_made_anew() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("deep/kv");
    let store = open(&root, PLENTY);
    put(&store, &keys(0..2));
    fs::remove_dir_all(&root).unwrap();
    assert!(get(&store, &keys(0..1)).is_err());
    put(&store, &keys(5..7));
    get(&store, &keys(5..7)).unwrap();
    assert_eq!(list(&root).unwrap()[0].pages, 2);
}

#[test]
fn folders_are_listed_and_removed_even_while_they_are_open() {
    let root = tempfile::tempdir().unwrap();
    assert!(list(&root.path().join("none")).unwrap().is_empty());
    let about = String::from(r#"{"model":"m"}"#);
    let store = DiskStore::open(StoreOptions { about, ..options(root.path(), PLENTY) }).unwrap();
    put(&store, &keys(0..4));
    let other = StoreOptions { identity: Identity([9; 32]), ..options(root.path(), PLENTY) };
    let other = DiskStore::open(other).unwrap();
    put(&other, &keys(0..1));

    let models = list(root.path()).unwrap();
    assert_eq!(models.len(), 2);
    let model = models.iter().find(|model| model.about.contains("\"m\"")).unwrap();
    assert_eq!((model.pages, model.bytes), (4, 4 * ON_DISK));
    let age = SystemTime::now().duration_since(model.used.unwrap()).unwrap_or_default();
    assert!(age < Duration::from_secs(60));

    let removed = remove(root.path(), &model.folder).unwrap();
    assert_eq!((removed.pages, removed.bytes), (4, 4 * ON_DISK));
    assert_eq!(list(root.path()).unwrap().len(), 1);
    get(&other, &keys(0..1)).unwrap();
    assert!(get(&store, &keys(0..1)).is_err());
    put(&store, &keys(0..1));
    assert_eq!(list(root.path()).unwrap().len(), 2);
    for name in ["", "..", "lock", "kv-", "../x", &model.folder.to_uppercase()] {
        assert!(matches!(remove(root.path(), name), Err(StoreError::Unknown { .. })), "{name}");
    }
}

#[test]
fn what_others_put_there_stays() {
    let root = tempfile::tempdir().unwrap();
    put(&open(root.path(), PLENTY), &keys(0..3));
    let (mine, beside) = (folder(root.path()).join("notes.txt"), root.path().join("photos"));
    fs::write(&mine, "mine").unwrap();
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("a.page"), "mine").unwrap();
    let store = open(root.path(), 2 * ON_DISK);
    put(&store, &keys(5..6));
    let models = list(root.path()).unwrap();
    assert_eq!(models.len(), 1);
    remove(root.path(), &models[0].folder).unwrap();
    assert!(mine.exists() && beside.join("a.page").exists());
    let left = list(root.path()).unwrap();
    assert_eq!((left.len(), left[0].pages, &left[0].about), (1, 0, &models[0].about));
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn files_and_folders_are_for_their_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("a/b");
        put(&open(&root, PLENTY), &keys(0..2));
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&root), mode(&folder(&root))), (0o700, 0o700));
        for entry in fs::read_dir(folder(&root)).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
        assert_eq!(mode(&root.join("lock")), 0o600);
        // One that became readable to others is taken back.
        fs::set_permissions(folder(&root), fs::Permissions::from_mode(0o755)).unwrap();
        drop(open(&root, PLENTY));
        assert_eq!(mode(&folder(&root)), 0o700);
    }

    #[test]
    fn no_link_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        put(&open(root.path(), PLENTY), &keys(0..2));
        let page = file_of(root.path(), &key(0));
        let away = outside.path().join("page");
        fs::rename(&page, &away).unwrap();
        symlink(&away, &page).unwrap();
        let store = open(root.path(), PLENTY);
        assert!(get(&store, &keys(0..1)).is_err() && !store.has(&key(0)));
        drop(store);
        assert!(away.exists());

        // A folder that is a link is none, and neither it nor what it leads to is changed.
        let real = folder(root.path());
        fs::remove_dir_all(&real).unwrap();
        fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(outside.path(), &real).unwrap();
        let refused = DiskStore::open(options(root.path(), PLENTY));
        assert!(matches!(refused, Err(StoreError::NotAFolder { .. })));
        assert_eq!(fs::metadata(outside.path()).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(list(root.path()).unwrap().is_empty());
        let name = real.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(remove(root.path(), &name).is_err() && away.exists());
    }
}
