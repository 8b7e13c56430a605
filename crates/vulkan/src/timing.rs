//! Times per kernel, gathered from timestamps.

use std::collections::BTreeMap;

use unicorn_core::{KernelTime, RateKind};

use crate::recording::Recording;

/// Sums per (op, shader).
#[derive(Default)]
pub(crate) struct Timings(BTreeMap<(&'static str, String), KernelTime>);

impl Timings {
    pub(crate) fn add(&mut self, recording: &Recording, seconds: &[f64]) {
        for (d, seconds) in recording.dispatches.iter().zip(seconds) {
            let kernel = format!("{} {}", d.op, d.kernel.shader);
            let entry = self.0.entry((d.op, d.kernel.shader.clone())).or_insert_with(|| KernelTime {
                kernel,
                calls: 0,
                seconds: 0.0,
                bytes: 0,
                flops: 0,
                rate: RateKind::Integer,
            });
            entry.calls += 1;
            entry.seconds += seconds;
            entry.bytes += d.bytes;
            entry.flops += d.flops;
        }
    }

    pub(crate) fn list(&self) -> Vec<KernelTime> {
        self.0.values().cloned().collect()
    }
}
