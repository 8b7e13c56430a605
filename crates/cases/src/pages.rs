//! Copies of pages of state through a device: the check that every device has to pass.

use std::sync::Arc;

use unicorn_core::{
    BlockId, Device, DeviceError, KvType, SharedBuffer, Signal, StateCopy, StateGroup, StateLayout, StateWay,
    TensorType, WeightSource, state_groups,
};

use crate::synthetic::SyntheticSource;
use crate::{shapes, table};

const TOKENS: usize = 64;
const PAGES: usize = 5;
/// Of the heads of SmolLM2.
const HEAD_DIM: usize = 64;

/// A mixer with heads of 64 elements, loaded on the device.
struct Mixer {
    device: Arc<dyn Device>,
    id: BlockId,
    words: usize,
}

/// The first mixer of SmolLM2.
fn mixer(device: &Arc<dyn Device>, ty: KvType) -> Result<Mixer, DeviceError> {
    let invalid = |what: &str| DeviceError::Invalid { device: "cases".into(), what: what.into() };
    let spec = shapes::model("smollm2-135m", TensorType::Q8_0).ok_or_else(|| invalid("no shape"))?;
    let block = spec.blocks.iter().find(|b| b.state().is_some()).ok_or_else(|| invalid("no mixer"))?;
    let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(0));
    let layout = StateLayout::paged(TOKENS, PAGES, TOKENS * PAGES, ty);
    let id = device.load(block, &source)?;
    device.reserve(&layout)?;
    let words = block.page_words(&layout).ok_or_else(|| invalid("no page"))?;
    Ok(Mixer { device: device.clone(), id, words })
}

/// A short convolution with its states.
fn short_conv(device: &Arc<dyn Device>) -> Result<Mixer, DeviceError> {
    let block = table::short_conv::block(TensorType::Q8_0, HEAD_DIM * TOKENS / 2, 3);
    let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(0));
    let groups = state_groups(std::slice::from_ref(&block)).into_iter();
    let groups = groups.map(|spec| StateGroup { spec, pages: PAGES }).collect();
    let layout = StateLayout { page_tokens: TOKENS, positions: TOKENS, ty: KvType::F32, groups };
    // What was reserved before is for other mixers.
    device.reserve(&layout)?;
    let id = device.load(&block, &source)?;
    device.reserve(&layout)?;
    Ok(Mixer { device: device.clone(), id, words: block.page_words(&layout).unwrap_or(0) })
}

impl Mixer {
    fn copy(&self, pages: &[u32], way: StateWay) -> Result<(), Arc<DeviceError>> {
        let done = Signal::new();
        let fence = done.fence();
        self.device.copy_state(StateCopy { mixer: self.id, pages: pages.to_vec(), way, after: vec![], done });
        fence.wait()
    }

    fn host(rows: usize, words: usize) -> Result<Arc<SharedBuffer>, Arc<DeviceError>> {
        SharedBuffer::new(rows, words).map(Arc::new).ok_or_else(|| Arc::new(DeviceError::Abandoned))
    }

    fn save(&self, pages: &[u32]) -> Result<Vec<u8>, Arc<DeviceError>> {
        let host = Mixer::host(pages.len(), self.words)?;
        self.copy(pages, StateWay::Save(host.clone()))?;
        let mut bytes = vec![0; pages.len() * self.words * 4];
        host.read_bytes(&mut bytes);
        Ok(bytes)
    }

    fn restore(&self, pages: &[u32], bytes: &[u8]) -> Result<(), Arc<DeviceError>> {
        let host = Mixer::host(pages.len(), self.words)?;
        host.write_bytes(bytes);
        self.copy(pages, StateWay::Restore(host))
    }

    /// A page as some device may have left it: finite numbers, and with `Q8_0` blocks whose largest code is 127.
    fn page(&self, ty: KvType, seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let elements = TOKENS * HEAD_DIM;
        let mut bytes = Vec::new();
        while bytes.len() < self.words * 4 {
            match ty {
                KvType::F32 => (0..elements.min(self.words))
                    .for_each(|_| bytes.extend((next() as f32 / 1e9).to_le_bytes())),
                KvType::F16 => {
                    (0..elements).for_each(|_| bytes.extend((next() as u16 & 0xBBFF).to_le_bytes()))
                }
                KvType::Q8_0 => {
                    let code =
                        |i: usize, v: u32| if i.is_multiple_of(32) { 127 } else { (v % 255) as i32 - 127 };
                    bytes.extend((0..elements).map(|i| code(i, next()) as i8 as u8));
                    // Scales from 1 to 2.
                    (0..elements / 32)
                        .for_each(|_| bytes.extend((0x3C00 | next() as u16 & 0x3FF).to_le_bytes()));
                }
            }
        }
        bytes
    }
}

/// Restores pages and saves them again, on a device without blocks: they keep their bytes, and others are left alone; wrong copies are
/// refused by name.
///
/// Errors with what was seen.
pub fn check(device: &Arc<dyn Device>) -> Result<(), String> {
    let layouts = [Some(KvType::F32), Some(KvType::F16), Some(KvType::Q8_0), None];
    for cached in layouts {
        let ty = cached.unwrap_or(KvType::F32);
        let mixer = cached.map_or_else(|| short_conv(device), |ty| mixer(device, ty));
        let mixer = mixer.map_err(|e| e.to_string())?;
        let checked = check_bytes(&mixer, ty).map_err(|e| e.to_string()).and_then(|wrong| match wrong {
            Some(what) => Err(format!("{cached:?}: {what}")),
            None => check_names(&mixer),
        });
        device.unload(mixer.id);
        checked?;
    }
    Ok(())
}

/// What is wrong with the bytes, if anything is.
fn check_bytes(mixer: &Mixer, ty: KvType) -> Result<Option<String>, Arc<DeviceError>> {
    let pages: Vec<Vec<u8>> = (0..PAGES as u32).map(|i| mixer.page(ty, i + 1)).collect();
    let copied = mixer.device.memory().copied;
    mixer.restore(&[0, 1, 2, 3, 4], &pages.concat())?;
    let two = mixer.save(&[4, 1])?;
    if two != [&pages[4][..], &pages[1]].concat() {
        return Ok(Some("two of five pages came back with other bytes".into()));
    }
    mixer.restore(&[2], &pages[0])?;
    let expected = [0, 1, 0, 3, 4].map(|i: usize| &pages[i][..]).concat();
    if mixer.save(&[0, 1, 2, 3, 4])? != expected {
        return Ok(Some("a page was written and others changed".into()));
    }
    let (bytes, expected) = (mixer.device.memory().copied - copied, (13 * mixer.words * 4) as u64);
    Ok((bytes != expected).then(|| format!("{bytes} bytes counted as copied, of {expected}")))
}

fn check_names(mixer: &Mixer) -> Result<(), String> {
    let says = |mixer: &Mixer, pages: &[u32], rows: usize, words: usize, what: &str| {
        let host = Mixer::host(rows, words).map_err(|e| e.to_string())?;
        match mixer.copy(pages, StateWay::Save(host)) {
            Err(error) if error.to_string().contains(what) => Ok(()),
            other => Err(format!("pages {pages:?} of {rows} rows: {other:?}, which does not say `{what}`")),
        }
    };
    says(mixer, &[5], 1, mixer.words, "page 5 of 5")?;
    says(mixer, &[1, 2], 1, mixer.words, "2 pages")?;
    says(mixer, &[1], 1, mixer.words + 1, "1 pages")?;
    let other = Mixer { id: BlockId(77), device: mixer.device.clone(), ..*mixer };
    says(&other, &[1], 1, mixer.words, "block 77")
}
