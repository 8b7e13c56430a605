//! A recording with its command buffers, replayed token after token; where submissions are bounded it learns how long its pieces take.

use std::sync::Arc;

use crate::context::Context;
use crate::cut::{self, Pace};
use crate::error::VulkanError;
use crate::lane::Point;
use crate::pipeline::Pipelines;
use crate::recording::{Commands, Recording, Timing};

/// Where long submissions are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// GPU seconds that one submission may take; `None` leaves all whole.
    pub(crate) seconds_max: Option<f64>,
    /// What earlier recordings took, against what was estimated.
    pub(crate) pace: Pace,
}

/// An encoded recording.
pub(crate) struct Recorded {
    pub(crate) commands: Commands,
    pub(crate) recording: Recording,
    /// Seconds that each dispatch is expected to take.
    costs: Vec<f64>,
    /// Seconds that all dispatches together were expected to take, before anything was measured.
    estimated: f64,
    timing: Timing,
    ran: bool,
}

impl Recorded {
    /// Cuts and encodes a recording. `timed`: every dispatch is timed.
    pub(crate) fn new(
        context: &Arc<Context>,
        pipelines: &Pipelines,
        recording: Recording,
        timed: bool,
        bound: Bound,
    ) -> Result<Recorded, VulkanError> {
        let estimates: Vec<f64> = recording.dispatches.iter().map(cut::estimate).collect();
        let costs: Vec<f64> = estimates.iter().map(|c| c * bound.pace.factor()).collect();
        let learns = bound.seconds_max.is_some() && context.profile().timestamp_ns > 0.0;
        let timing = match (timed, learns) {
            (true, _) => Timing::Dispatches,
            (false, true) => Timing::Pieces,
            (false, false) => Timing::Off,
        };
        let pieces = cut::cut(&costs, bound.seconds_max);
        let commands = Commands::encode_pieces(context, pipelines, &recording, pieces, timing)?;
        Ok(Recorded { commands, recording, costs, estimated: estimates.iter().sum(), timing, ran: false })
    }

    /// Submits all pieces behind `after`. The earlier run is over.
    pub(crate) fn submit(&mut self, after: Point, what: &str) -> Result<u64, VulkanError> {
        // After a failure the times of some pieces would never come.
        self.ran = false;
        let value = self.commands.submit(after, what)?;
        self.ran = true;
        Ok(value)
    }

    /// Learns from the last run, which is over, and cuts anew where that pays.
    pub(crate) fn learn(
        &mut self,
        context: &Arc<Context>,
        pipelines: &Pipelines,
        bound: &mut Bound,
    ) -> Result<(), VulkanError> {
        let Some(most) = bound.seconds_max.filter(|_| self.ran) else { return Ok(()) };
        let Some(seconds) = self.commands.piece_times()? else { return Ok(()) };
        cut::correct(&mut self.costs, self.commands.pieces(), &seconds);
        bound.pace.learn(self.estimated, seconds.iter().sum());
        let after = cut::cut(&self.costs, Some(most));
        if cut::is_worth_recutting(&seconds, self.commands.pieces(), &after, most) {
            self.commands = Commands::encode_pieces(context, pipelines, &self.recording, after, self.timing)?;
            self.ran = false;
        }
        Ok(())
    }
}
