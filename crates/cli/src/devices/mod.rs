//! Backends by name. A backend is one file here with one entry in the table of `choice`; nothing else names it. What opens one is
//! told everything by its caller: nothing here knows flags or the environment.

mod backend;
pub mod cache;
mod choice;
mod cpu;
mod faults;
mod reference;
mod vulkan;
mod wrong;

pub use backend::{OpenOptions, Tier, Watch, Watched, WatchedDevice};
pub use choice::{DeviceChoice, preferred, present, unasked};
pub use faults::Faults;
