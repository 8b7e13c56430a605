//! Processes that are killed at any moment, and several that write at once. `UNICORN_STORE_KILLS=1000 cargo test -p unicorn-store --test
//! kill` kills more often.

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::*;
use unicorn_core::{PageStore, Signal};
use unicorn_store::{DiskStore, StoreOptions};

const CHILD: &str = "UNICORN_STORE_CHILD";
const BOUND: u64 = 100 * ON_DISK;
/// Pages that a child may write, far more than there is room for.
const PAGES: u64 = 1000;

/// Random numbers that need to be no better than this.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// What a child does, until it is killed: writes chains of pages, and reads what is there.
#[test]
fn child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let (seed, root) = told.split_once(' ').unwrap();
    let mut random = Random(seed.parse().unwrap());
    let store = open(Path::new(root), BOUND);
    loop {
        let first = random.below(PAGES);
        let chain = keys(first..first + 1 + random.below(6));
        if random.below(3) > 0 {
            store.write(full(&chain), Vec::new(), Signal::new());
        } else {
            put(&store, &chain);
        }
        // What another process evicts between the question and the read is gone, and no damage.
        let page = key(random.below(PAGES));
        if store.has(&page) {
            let _ = get(&store, &[page]);
        }
        assert_eq!(store.state().damaged, 0);
    }
}

fn start(root: &Path, seed: u64) -> Child {
    let program = std::env::current_exe().unwrap();
    let args = ["child", "--exact", "--nocapture"];
    let told = format!("{seed} {}", root.display());
    let output = || Stdio::null();
    Command::new(program).args(args).env(CHILD, told).stdout(output()).stderr(output()).spawn().unwrap()
}

/// Kills a child, which must have been alive until then.
fn kill(mut child: Child) {
    if let Some(status) = child.try_wait().unwrap() {
        panic!("a child ended by itself: {status}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Opens what killed processes left, and holds it to be whole, bounded and clean. Returns its pages.
fn check(root: &Path) -> usize {
    let store = open(root, BOUND);
    assert_eq!(temporary(root), 0);
    assert!(taken(root) <= BOUND + 4096, "{} of {BOUND}", taken(root));
    let there: Vec<_> = keys(0..PAGES + 6).into_iter().filter(|key| store.has(key)).collect();
    assert_eq!(there.len(), files(root).len());
    for key in &there {
        get(&store, &[*key]).unwrap();
    }
    assert_eq!((store.state().damaged, store.state().read_failed), (0, 0));
    there.len()
}

#[test]
fn killed_at_any_moment() {
    let kills = std::env::var("UNICORN_STORE_KILLS").map_or(200, |kills| kills.parse().unwrap());
    let root = tempfile::tempdir().unwrap();
    let mut random = Random(1);
    let (mut leftovers, mut most) = (0, 0);
    for n in 0..kills {
        let child = start(root.path(), n);
        let begun = Instant::now();
        while n == 0 && (!root.path().join("lock").exists() || files(root.path()).is_empty()) {
            assert!(begun.elapsed() < Duration::from_secs(30), "the first child writes nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random.below(25_000)));
        kill(child);
        leftovers += temporary(root.path());
        most = check(root.path()).max(most);
    }
    // The children came as far as writing beyond the bound, and were hit in the middle of it.
    assert!(most > 80 && leftovers > 0, "{most} pages, {leftovers} leftovers");
}

#[test]
fn several_processes_write_at_once() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path(), BOUND));
    let children: Vec<Child> = (0..3).map(|seed| start(root.path(), 1000 + seed)).collect();
    let begun = Instant::now();
    let mut samples = 0;
    while begun.elapsed() < Duration::from_millis(1500) {
        // A file that is renamed meanwhile may be seen under both its names: one for each process.
        let seen = taken(root.path());
        assert!(seen <= BOUND + 4096 + 4 * ON_DISK, "{seen} of {BOUND}");
        samples += 1;
    }
    // One goes while the others write on.
    let mut children = children.into_iter();
    children.next().into_iter().for_each(kill);
    std::thread::sleep(Duration::from_millis(100));
    children.for_each(kill);
    assert!(check(root.path()) > 80 && samples > 10);
}

#[test]
fn a_store_with_little_patience_still_leaves_whole_pages() {
    let root = tempfile::tempdir().unwrap();
    for n in 0..20 {
        let close_patience = Duration::from_micros(50 * n);
        let store = DiskStore::open(StoreOptions { close_patience, ..options(root.path(), BOUND) }).unwrap();
        for at in 0..10 {
            store.write(full(&keys(10 * n + at..10 * n + at + 3)), Vec::new(), Signal::new());
        }
        drop(store);
        check(root.path());
    }
}
