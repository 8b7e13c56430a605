//! `unicorn bench`: speed beside the limits of the device.

pub mod ffn;
pub mod model;
mod profile;
mod report;
mod roof;
