//! Pages of state keep their bytes through every device's cache, in the one layout that all devices agree on.

use std::path::Path;
use std::sync::Arc;

use unicorn_core::{
    Block, BlockId, Device, DeviceError, KvType, SharedBuffer, Signal, StateCopy, StateLayout, StateWay,
    WeightSource,
};
use unicorn_cpu::{CpuOptions, ReferenceDevice, SimdDevice};

const TOKENS: usize = 64;
const PAGES: usize = 5;

/// A mixer with heads of 64 elements, loaded on the device.
struct Mixer {
    device: Arc<dyn Device>,
    id: BlockId,
    words: usize,
    heads: usize,
    dim: usize,
}

fn mixer(device: Arc<dyn Device>, ty: KvType) -> Mixer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny/qwen3-q4_k.gguf");
    let model = unicorn_model::open(&path).unwrap();
    let source: Arc<dyn WeightSource> = model.source.clone();
    let block = model.spec.blocks.iter().find(|b| b.state().is_some()).unwrap();
    let Block::Attention { spec, .. } = block else { panic!("a mixer that is no attention") };
    let layout = StateLayout::paged(TOKENS, PAGES, TOKENS * PAGES, ty);
    let id = device.load(block, &source).unwrap();
    device.reserve(&layout).unwrap();
    let words = layout.page_words(spec.kv_heads, spec.head_dim).unwrap();
    Mixer { device, id, words, heads: spec.kv_heads, dim: spec.head_dim }
}

impl Mixer {
    fn copy(&self, pages: &[u32], way: StateWay) -> Result<(), Arc<DeviceError>> {
        let done = Signal::new();
        let fence = done.fence();
        self.device.copy_state(StateCopy { mixer: self.id, pages: pages.to_vec(), way, after: vec![], done });
        fence.wait()
    }

    fn save(&self, pages: &[u32]) -> Vec<u8> {
        let host = Arc::new(SharedBuffer::new(pages.len(), self.words).unwrap());
        self.copy(pages, StateWay::Save(host.clone())).unwrap();
        let mut bytes = vec![0; pages.len() * self.words * 4];
        host.read_bytes(&mut bytes);
        bytes
    }

    fn restore(&self, pages: &[u32], bytes: &[u8]) {
        let host = Arc::new(SharedBuffer::new(pages.len(), self.words).unwrap());
        host.write_bytes(bytes);
        self.copy(pages, StateWay::Restore(host)).unwrap();
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
        let elements = TOKENS * self.dim;
        let mut bytes = Vec::new();
        for _ in 0..2 * self.heads {
            match ty {
                KvType::F32 => (0..elements).for_each(|_| bytes.extend((next() as f32 / 1e9).to_le_bytes())),
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

fn devices() -> [Arc<dyn Device>; 2] {
    let simd = SimdDevice::open(CpuOptions { threads: Some(2), level: None }).unwrap();
    [Arc::new(simd), Arc::new(ReferenceDevice::new())]
}

#[test]
fn pages_keep_their_bytes_and_leave_others_alone() {
    for ty in [KvType::F32, KvType::F16, KvType::Q8_0] {
        for device in devices() {
            let mixer = mixer(device, ty);
            let pages: Vec<Vec<u8>> = (0..PAGES as u32).map(|i| mixer.page(ty, i + 1)).collect();
            assert_eq!(pages[0].len(), mixer.words * 4);
            mixer.restore(&[0, 1, 2, 3, 4], &pages.concat());
            assert!(mixer.save(&[4, 1]) == [&pages[4][..], &pages[1]].concat(), "{ty:?}");
            mixer.restore(&[2], &pages[0]);
            let expected = [0, 1, 0, 3, 4].map(|i: usize| &pages[i][..]).concat();
            assert!(mixer.save(&[0, 1, 2, 3, 4]) == expected, "{ty:?}");
            let bytes = mixer.device.memory().copied;
            assert!(bytes >= (13 * mixer.words * 4) as u64, "{bytes}");
        }
    }
}

#[test]
fn wrong_copies_are_refused_by_name() {
    for device in devices() {
        let mixer = mixer(device, KvType::F16);
        let host = |rows, words| StateWay::Save(Arc::new(SharedBuffer::new(rows, words).unwrap()));
        let error = |pages: &[u32], way| mixer.copy(pages, way).unwrap_err().to_string();
        assert!(error(&[5], host(1, mixer.words)).contains("page 5 of 5"));
        assert!(error(&[1, 2], host(1, mixer.words)).contains("2 pages"));
        assert!(error(&[1], host(1, mixer.words + 1)).contains("1 pages"));
        let other = Mixer { id: BlockId(77), device: mixer.device.clone(), ..mixer };
        let error = other.copy(&[1], host(1, other.words)).unwrap_err().to_string();
        assert!(error.contains("block 77"), "{error}");
    }
}
