//! The kernels of the Vulkan device on Mesa's lavapipe.

use anyhow::{Result, ensure};

use super::harness::{Bench, Outcome, told};
use crate::mesa::{Driver, Mesa};
use crate::{lavapipe, sh};

/// The whole case table on lavapipe, against the reference; then the blocks that cover the integer dot kernels, which lavapipe emulates.
pub fn kernels(bench: &Bench<'_>) -> Result<Outcome> {
    let driver = match lavapipe::driver() {
        Ok(driver) => driver,
        Err(reason) => return Ok(Outcome::NotRun(reason)),
    };
    let selftest = |more: &[&str]| -> Result<String> {
        let mut command = bench.unicorn(&["selftest", "--device", "vulkan:0"]);
        command.args(more).env("VK_DRIVER_FILES", &driver).env("VK_ICD_FILENAMES", &driver);
        let told = sh::output(&mut command)?;
        ensure!(told.contains(" 0 wrong"), "{told}");
        Ok(told.trim().to_string())
    };
    let all = selftest(&[])?;
    told(format!("{all}; integer dot: {}", selftest(&["--tier", "dot", "--only", "ffn"])?))
}

/// A recent lavapipe, which has cooperative matrices, under the validation layer. It compiles each matrix kernel for up to a minute, so
/// the table is not run whole: some types stand for all.
pub fn kernels_and_validation(bench: &Bench<'_>) -> Result<Outcome> {
    let mesa = match Mesa::install() {
        Ok(mesa) => mesa,
        Err(reason) => return Ok(Outcome::NotRun(format!("{reason:#}"))),
    };
    let mut notes = vec![format!("Mesa {}", mesa.version)];
    for only in ["linear q4_k", "linear f16", "ffn q8_0", "attention f32 kv-f16 past"] {
        let mut command = mesa.command(Driver::Lavapipe, bench.binary)?;
        let arguments = ["selftest", "--device", "vulkan:0", "--validate", "--only", only];
        let told = sh::output(command.args(arguments))?;
        ensure!(told.contains(" 0 wrong") && told.contains("\n0 validation messages"), "{only}: {told}");
        notes.push(format!("{only}: {}", told.trim().replace('\n', ", ")));
    }
    told(notes.join("; "))
}
