//! The planner on this machine: its figures are measured and kept here, machines that are not here are read from files, and predictions
//! are graded. What is computed from figures is the engine's (`unicorn_engine::planner`).

mod calibrate;
mod choice;
pub mod figures;
pub mod grades;
mod here;
pub mod machine_file;
mod place;
mod room;

pub use choice::{Load, Place};
pub use grades::Grades;
pub use here::{Here, Want};
pub use place::{Grader, Placed, Wish, place};
pub use room::Room;
