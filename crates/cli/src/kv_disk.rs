//! Pages of the KV cache on disk: where they lie, whose they are, and what is said about them.

use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use unicorn_core::{ModelSpec, StateSpec};
use unicorn_engine::EngineOptions;
use unicorn_store::{DiskStore, Identity, StoreOptions, Trouble};

use crate::config::Config;
use crate::exit::describe;
use crate::output::say;
use crate::planner::Placed;
use crate::units;

/// Changes when pages of earlier programs may not be used any more.
const VERSION: &[u8] = b"unicorn pages 1";

/// An open store, and whose pages are in it.
pub struct Kept {
    /// The store.
    pub store: Arc<DiskStore>,
    /// Stands for all that decides what a page holds, but for the text.
    pub identity: [u8; 32],
}

/// What lies in a folder of pages, for `unicorn kv`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The model's own name.
    pub model: String,
    /// Where its file or folder lay when it was last opened anew.
    pub file: String,
    /// Element type of the pages.
    pub kv: String,
    /// Tokens that a page stands for; `None` where mixers of several kinds have pages of their own.
    pub page_tokens: Option<u64>,
    /// The devices that compute it.
    pub devices: Vec<String>,
}

impl About {
    /// What is to be known about pages of a model on its devices.
    pub fn new(spec: &ModelSpec, file: &Path, options: &EngineOptions, placed: &Placed) -> About {
        let paged = spec.blocks.iter().filter_map(|block| block.state()).all(|s| s == StateSpec::Paged);
        About {
            model: spec.name.clone(),
            file: absolute(file),
            kv: options.kv_type.tensor_type().name().to_owned(),
            page_tokens: paged.then_some(options.page_tokens as u64),
            devices: placed.opened.iter().map(|opened| opened.device.profile().name.clone()).collect(),
        }
    }
}

/// A path by which it is told from others wherever the program runs.
pub fn absolute(path: &Path) -> String {
    std::path::absolute(path).as_deref().unwrap_or(path).display().to_string()
}

/// Tells this program from others of its version, whose kernels may compute otherwise: length and time of its file. Empty where the system
/// does not tell; versions are told apart all the same.
fn build() -> Vec<u8> {
    let told = std::env::current_exe().and_then(std::fs::metadata);
    let time =
        |told: &std::fs::Metadata| Some(told.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos());
    let of = |told: std::fs::Metadata| [u128::from(told.len()), time(&told).unwrap_or(0)];
    told.map(of).map_or_else(|_| Vec::new(), |numbers| numbers.map(u128::to_le_bytes).concat())
}

/// Stands for everything that decides what a page holds, but for the text: the model, the layout, and what computes which block. All blocks
/// count, and not mixers alone: keys and values come from what the blocks before them made. Worker threads do not count.
pub fn identity(
    fingerprint: &[u8; 32],
    spec: &ModelSpec,
    options: &EngineOptions,
    placed: &Placed,
) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(VERSION);
    add(&build());
    add(fingerprint);
    add(options.kv_type.tensor_type().name().as_bytes());
    add(&(options.page_tokens as u64).to_le_bytes());
    for opened in &placed.opened {
        add(opened.key.computing().as_bytes());
        // What a selftest found wrong is not computed with any more, and pages that were are not used any more.
        add(format!("{:?}", opened.options).as_bytes());
    }
    for placement in [&placed.placements.prefill, &placed.placements.decode] {
        let devices = (0..spec.blocks.len()).map(|block| placement.device(block) as u64);
        add(&devices.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
    }
    hash.finalize().into()
}

/// Opens the store for pages of this identity, of which all identities together may take `bytes`. What goes wrong with it is said; the
/// model then runs without.
///
/// # Errors
/// Where the environment names a folder that cannot be.
pub fn open(identity: [u8; 32], about: &About, bytes: u64, config: &Config) -> anyhow::Result<Option<Kept>> {
    let root = match &config.kv_dir {
        Ok(Some(root)) => root.clone(),
        Ok(None) => {
            if config.explains() {
                say!("KV pages are not kept on disk: there is no cache folder; UNICORN_KV_DIR names one");
            }
            return Ok(None);
        }
        Err(error) => return Err(anyhow!("{error}")),
    };
    let about = serde_json::to_string(about)?;
    let mut options = StoreOptions { about, ..StoreOptions::new(root, Identity(identity), bytes) };
    if config.talks() {
        options.tell = Some(Arc::new(|trouble: &Trouble| say!("warning: {trouble}")));
    }
    match DiskStore::open(options) {
        Ok(store) => Ok(Some(Kept { store: Arc::new(store), identity })),
        Err(error) => {
            if config.talks() {
                say!("warning: KV pages are not kept on disk: {}", describe(&error.into()));
            }
            Ok(None)
        }
    }
}

/// Says what there was on disk.
pub fn explain(kept: &Kept, bytes: u64) {
    let state = kept.store.state();
    say!(
        "KV pages on disk {} of this model, {} of {} in all",
        state.pages,
        units::bytes(state.root_bytes),
        units::bytes(bytes)
    );
}
