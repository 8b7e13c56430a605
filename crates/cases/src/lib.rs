//! One table of kernel and block cases, run on every backend.
//!
//! A [`Case`] is plain data: a block with random weights, a batch, a tolerance, and the work it does. [`run`] feeds the same
//! random input to a device under test and to an oracle and compares what comes back. Linear products are tested as head
//! blocks with a norm weight of ones, so the trait that the engine uses is the only entry.
//!
//! [`synthetic`] and [`shapes`] make whole models of random weights, for timing a shape without its file. [`golden`] runs tiny models whose
//! logits are known. [`pages`] checks that pages of state keep their bytes on their way out and
//! in, [`states`] names the pages of slices, [`replay`] judges what a device computed
//! while it served, [`costs`] checks that kernels count what blocks cost.

mod case;
pub mod costs;
mod encoder;
mod feed;
mod flawed;
pub mod golden;
pub mod golden_encoder;
mod needs;
pub mod pages;
mod record;
mod replay;
mod run;
pub mod shapes;
pub mod states;
pub mod synthetic;
mod table;
mod tolerance;

pub use case::Case;
pub use feed::Feed;
pub use flawed::Flawed;
pub use needs::{Held, NeedsError};
pub use record::{Plan, plans, record};
pub use replay::{Judged, Oracles, replay};
pub use run::{CaseError, Outcome, judge, run};
pub use table::{select, table};
pub use tolerance::Tolerance;
