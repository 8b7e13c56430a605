//! From a wrong block to the kernels to blame, which the device does without from then on.

use std::sync::{Arc, PoisonError};

use anyhow::Context;
use unicorn_cases::Feed;
use unicorn_core::{
    Batch, BatchLimits, Block, Instrument, OutputRow, Select, SequenceId, Slice, StateGroup, StateLayout,
    StreamId,
};

use super::book::Example;
use super::watcher::{Coop, Found};
use crate::commands::selftest::blame::{Ran, blame};
use crate::config::Config;
use crate::devices::OpenOptions;
use crate::devices::cache::{DeviceCache, Verdict, Wrong};
use crate::exit::describe;
use crate::output::say;

const PAGE_TOKENS: usize = 64;

/// Names the kernels to blame for what a model's canaries have found, and keeps the verdict: who opens the device next avoids them. To be
/// called with the device closed. What cannot be settled stays.
///
/// Errors when a kernel cannot be named: the device is not to be opened for this model then.
pub fn settle(coop: &Coop, config: &Config) -> anyhow::Result<()> {
    let mut cases = coop.cases.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some(found) = cases.last() {
        let wrong = name(found, config)
            .with_context(|| format!("{}: the kernel to blame has no name", found.device.choice))?;
        let cache = DeviceCache::new(config.cache_dir.as_deref());
        let mut verdict: Verdict =
            cache.verdict(&found.device.key).map(|kept| kept.finding).unwrap_or_default();
        for one in wrong.iter().filter(|_| config.talks()) {
            say!(
                "{}: the kernel `{}` is not used any more: {}",
                found.device.choice,
                one.kernel,
                found.evidence.doubt.what
            );
        }
        verdict.wrong.retain(|old| wrong.iter().all(|new| new.kernel != old.kernel));
        verdict.wrong.extend(wrong.iter().cloned());
        if let Err(error) = cache.quarantine(&found.device.key, &verdict) {
            say!("the next start will not know of it: {}", describe(&error));
        }
        coop.quarantined(wrong.len());
        cases.pop();
    }
    Ok(())
}

/// Runs blocks as the wrong one and right ones ran, and compares which kernels did.
fn name(found: &Found, config: &Config) -> anyhow::Result<Vec<Wrong>> {
    let options = OpenOptions {
        threads: None,
        tier: None,
        small: false,
        faults: &config.faults,
        cache_folder: config.cache_dir.as_deref(),
        note: &|_| {},
    };
    let device = found.device.choice.open(&options)?;
    device.configure(&found.device.options)?;
    let case = format!("canary: {}", found.evidence.doubt.what);
    let ran = |example: &Example, right: bool| -> anyhow::Result<Ran> {
        let kernels = kernels(&*device, found, example)?;
        Ok(Ran { case: case.clone(), right, kernels, further: false })
    };
    let mut runs = vec![ran(&found.evidence.wrong, false)?];
    for example in &found.evidence.right {
        // What cannot run now clears nobody.
        runs.extend(ran(example, true));
    }
    let blamed = blame(&runs);
    anyhow::ensure!(!blamed.is_empty(), "no kernel ran");
    Ok(blamed)
}

/// The kernels that run a block over a batch of this shape.
fn kernels(device: &dyn Instrument, found: &Found, example: &Example) -> anyhow::Result<Vec<String>> {
    let block = found.spec.blocks.get(example.block).context("there is no such block")?;
    let (batch, layout) = batch(block, found, example)?;
    if let Some(layout) = &layout {
        device.reserve(layout)?;
    }
    let id = device.load(block, &found.source)?;
    let run = || -> anyhow::Result<Vec<String>> {
        if let Some(layout) = &layout {
            device.reserve(layout)?;
        }
        let width = found.spec.width;
        let x = vec![0.5; batch.rows() * width];
        let x = (!matches!(block, Block::Embedding { .. })).then_some(&x[..]);
        device.set_profiling(true);
        let ran = Feed::new(device, StreamId(0)).run(&[id], &batch, x, width);
        let kernels = device.kernel_times().into_iter().map(|k| k.kernel).collect();
        device.set_profiling(false);
        ran?;
        Ok(kernels)
    };
    let kernels = run();
    device.unload(id);
    kernels
}

fn batch(
    block: &Block,
    found: &Found,
    example: &Example,
) -> anyhow::Result<(Arc<Batch>, Option<StateLayout>)> {
    let pages = |span: &unicorn_core::Span| (span.past + span.tokens).div_ceil(PAGE_TOKENS);
    let layout = block.state().map(|spec| StateLayout {
        page_tokens: PAGE_TOKENS,
        positions: example.spans.iter().map(pages).max().unwrap_or(1) * PAGE_TOKENS,
        ty: found.kv,
        groups: vec![StateGroup { spec, pages: example.spans.iter().map(pages).sum() }],
    });
    let mut free = 0u32..;
    let slice = |(index, span): (usize, &unicorn_core::Span)| Slice {
        sequence: SequenceId(index as u64),
        tokens: vec![0; span.tokens],
        start: if layout.is_some() { span.past as u32 } else { 0 },
        tables: layout.iter().map(|_| free.by_ref().take(pages(span)).collect()).collect(),
        snapshots: Vec::new(),
        slot: None,
    };
    let slices: Vec<Slice> = example.spans.iter().enumerate().map(slice).collect();
    let outputs = match block {
        Block::Head { .. } => {
            (0..example.outputs as u32).map(|row| OutputRow::new(row, Select::Logits)).collect()
        }
        _ => Vec::new(),
    };
    let limits = Arc::new(BatchLimits { vocab: found.spec.vocab, state: layout.clone() });
    Ok((Arc::new(Batch::new(slices, outputs, &limits)?), layout))
}
