//! What becomes of sequences when a kernel is found to compute wrong.

use std::sync::Arc;

use unicorn_core::{DeviceError, Doubt, SequenceId};

use super::Engine;
use super::sequence::{Fault, Sequence};
use crate::request::{Failure, FinishReason};

impl Engine {
    /// Stops where the canary is certain that something computes wrong. Sequences whose tokens may be wrong, and were told already, end with
    /// the reason; what others had computed goes, and they go on as survivors.
    pub(super) fn heed_canary(&mut self) {
        let doubt = self.options.overseer.0.as_ref().filter(|_| self.stopped.is_none());
        let Some(Doubt { device, what, since }) = doubt.and_then(|canary| canary.doubt()) else { return };
        let device = self.executor.devices().get(device).map_or("a device", |d| &d.profile().name).to_owned();
        let reason = Failure(Arc::new(DeviceError::Wrong { device, what }));
        self.stopped = Some(reason.clone());
        let touched = |s: &Sequence| s.latest.is_some_and(|flight| since.is_none_or(|right| flight > right));
        let told = |s: &Sequence| s.told || s.decodes();
        let waiting: Vec<SequenceId> =
            self.waiting.turns().filter(|s| touched(s) && told(s)).map(|s| s.id).collect();
        let waiting: Vec<Sequence> = waiting.into_iter().filter_map(|id| self.waiting.remove(id)).collect();
        let (ended, going): (Vec<Sequence>, Vec<Sequence>) =
            std::mem::take(&mut self.running).into_iter().partition(|s| touched(s) && told(s));
        self.running = going;
        self.counted.doubted += (ended.len() + waiting.len()) as u64;
        for sequence in ended.into_iter().chain(waiting) {
            self.finish(sequence, FinishReason::Device(reason.clone()));
        }
        for sequence in &mut self.running {
            // What is in flight may be wrong too.
            sequence.failure = Some(Fault { failure: reason.clone(), shared: true });
            if touched(sequence) {
                sequence.scores.iter_mut().for_each(|scores| scores.forget());
            }
        }
    }
}
