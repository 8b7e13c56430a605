//! What a placement would cost, told from figures alone: nothing is run, read or opened here.
//!
//! [`Machine`] says how fast the devices are, `predict` how long a piece of work takes, `simulate` how the engine's own schedule and
//! batches run on them, and [`plan`] compares placements and chooses.

mod candidates;
mod choose;
mod grade;
mod machine;
mod predict;
mod reason;
mod simulate;
#[cfg(test)]
mod testing;

pub use candidates::{Candidate, PlacementKind};
pub use choose::{Ask, Check, PhasePrediction, Plan, Prediction, plan};
pub use grade::{Correction, RUNS_MAX};
pub use machine::{Curve, DeviceModel, Figure, Machine, Memory, Origin};
pub use reason::{Misfit, Reason};
pub use simulate::Simulated;
