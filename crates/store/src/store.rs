//! The store of one identity.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use unicorn_core::{Fence, PageKey, PageRecords, PageStore, Signal};

use crate::error::StoreError;
use crate::index::Index;
use crate::names;
use crate::reader::Reader;
use crate::room::Room;
use crate::shared::Shared;
use crate::state::{Counts, StoreState, Tell};
use crate::writer::Writer;

/// What pages must have in common to be of use: the model, its layout, and what computes it. A hash of all that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity(pub [u8; 32]);

/// Where and how pages are kept.
pub struct StoreOptions {
    /// Folder that the folders of all identities lie in.
    pub root: PathBuf,
    /// Whose pages these are.
    pub identity: Identity,
    /// What that is, as a JSON document for [`crate::list`].
    pub about: String,
    /// Bytes that all identities of the root may take together. Less is taken where the file system has less than this left.
    pub bytes_max: u64,
    /// Bytes that may wait to be written; pages beyond are not kept.
    pub queue_bytes_max: u64,
    /// Pages that are read at once.
    pub readers: usize,
    /// How long closing waits for pages that are still to be written.
    pub close_patience: Duration,
    /// How long a disk is left alone after it could not be written.
    pub retry: Duration,
    /// Told of each kind of trouble once, on any thread.
    pub tell: Option<Tell>,
}

impl StoreOptions {
    /// Options with the usual bounds: 256 MiB that wait, four readers, ten seconds for closing.
    pub fn new(root: PathBuf, identity: Identity, bytes_max: u64) -> StoreOptions {
        StoreOptions {
            root,
            identity,
            about: String::from("{}"),
            bytes_max,
            queue_bytes_max: 256 << 20,
            readers: 4,
            close_patience: Duration::from_secs(10),
            retry: Duration::from_secs(10),
            tell: None,
        }
    }
}

/// Pages of one identity on disk. Dropping it writes what waits, within the patience of its options.
pub struct DiskStore {
    shared: Arc<Shared>,
    writer: Arc<Writer>,
    reader: Arc<Reader>,
    threads: Vec<JoinHandle<()>>,
    close_patience: Duration,
}

impl DiskStore {
    /// Opens the folder of an identity, which is made where it is missing, and starts the threads.
    ///
    /// # Errors
    /// Where the folder can be neither made nor read, is none, or no thread can be started.
    pub fn open(options: StoreOptions) -> Result<DiskStore, StoreError> {
        let StoreOptions { root, identity, about, bytes_max, close_patience, retry, .. } = options;
        let shared = Arc::new(Shared {
            identity: identity.0,
            folder: root.join(names::folder(&identity.0)),
            about,
            room: Room { root, bytes_max },
            index: Index::default(),
            counts: Counts::new(options.tell),
        });
        shared.open()?;
        let writer = Arc::new(Writer::new(shared.clone(), options.queue_bytes_max, retry));
        let reader = Arc::new(Reader::default());
        let mut store = DiskStore { shared, writer, reader, threads: Vec::new(), close_patience };
        let started = |source| StoreError::Thread { source };
        let writer = store.writer.clone();
        store.threads.push(named("kv-writer").spawn(move || writer.run()).map_err(started)?);
        for _ in 0..options.readers.max(1) {
            let (reader, shared) = (store.reader.clone(), store.shared.clone());
            store.threads.push(named("kv-reader").spawn(move || reader.run(&shared)).map_err(started)?);
        }
        Ok(store)
    }

    /// What was done since the store was opened, and what troubles it.
    pub fn state(&self) -> StoreState {
        self.shared.counts.state(self.shared.index.len(), self.writer.queued_bytes())
    }

    /// Waits until all that waits is written, for as long as `patience`. True when it is.
    pub fn flush(&self, patience: Duration) -> bool {
        self.writer.flush(patience)
    }
}

fn named(name: &str) -> Builder {
    Builder::new().name(name.to_owned())
}

impl PageStore for DiskStore {
    fn has(&self, key: &PageKey) -> bool {
        self.shared.has(key)
    }

    fn read(&self, records: PageRecords, done: Signal) {
        self.reader.submit(records, done);
    }

    fn write(&self, records: PageRecords, after: Vec<Fence>, done: Signal) {
        self.writer.submit(records, &after, done);
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.writer.close(self.close_patience);
        self.reader.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
