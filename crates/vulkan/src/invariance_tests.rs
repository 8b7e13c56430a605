//! What batching changes, and what it must not with [`DeviceOptions::batch_invariant`].

use std::sync::Arc;

use unicorn_cases::golden::{Chunks, logits};
use unicorn_cases::shapes;
use unicorn_cases::synthetic::SyntheticSource;
use unicorn_core::{Block, DeviceOptions, Instrument, KvType, TensorType, WeightSource};

use crate::device::{VulkanDevice, VulkanOptions};
use crate::driver_tests::open_context;

pub(crate) const VOCABULARY: usize = 320;
const TOKENS: u32 = 20;

/// Two layers of a small shape with a short vocabulary.
pub(crate) fn blocks(ty: TensorType) -> Vec<Block> {
    let mut blocks = shapes::model("smollm2-135m", ty).unwrap().blocks;
    blocks.drain(5..blocks.len() - 1);
    for block in &mut blocks {
        let (vocab, weight) = match block {
            Block::Embedding { spec, table } => (&mut spec.vocab, table),
            Block::Head { spec, weight, .. } => (&mut spec.vocab, weight),
            _ => continue,
        };
        (*vocab, weight.rows) = (VOCABULARY, VOCABULARY);
        weight.span.bytes = (VOCABULARY * weight.row_bytes()) as u64;
    }
    blocks
}

#[test]
fn nothing_depends_on_the_batch_where_that_is_asked_for() {
    let Some(context) = open_context() else { return };
    let device = VulkanDevice::open(context, "test", &VulkanOptions::default()).unwrap();
    let tokens: Vec<u32> = (0..TOKENS).map(|i| (i * 37 + 11) % VOCABULARY as u32).collect();
    let source: Arc<dyn WeightSource> = Arc::new(SyntheticSource::new(3));
    let feeds: [Chunks<'_>; 5] = [&[&[20]], &[&[7]], &[&[13, 1]], &[&[20], &[1]], &[&[1], &[2, 1], &[3, 1]]];
    for (ty, kv) in
        [(TensorType::Q4_K, KvType::F16), (TensorType::F16, KvType::F16), (TensorType::Q4_K, KvType::Q8_0)]
    {
        let blocks = blocks(ty);
        let run = |chunks| logits(&device, &blocks, &source, &tokens, chunks, kv).unwrap();
        device.configure(&DeviceOptions { batch_invariant: true, ..DeviceOptions::default() }).unwrap();
        let alone = run(&[&[1]]).remove(0);
        assert!(alone.iter().all(|l| l.is_finite()));
        for chunks in feeds {
            for (s, got) in run(chunks).iter().enumerate() {
                let other = got.iter().zip(&alone).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(other, None, "{ty}, cache {kv:?}, {chunks:?}, sequence {s}");
            }
        }
        // Without being asked for it does not hold, so what was compared above could differ.
        device.configure(&DeviceOptions::default()).unwrap();
        assert!(run(&[&[20]])[0] != run(&[&[1]])[0], "{ty}");
    }
}
