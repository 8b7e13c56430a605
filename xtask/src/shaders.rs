//! `cargo xtask shaders`: compiles the compute shaders, or checks the committed SPIR-V. The compiler is a workspace of its own under
//! `xtask/shaders`, since glslang takes minutes to build the first time.

use anyhow::Result;

use crate::{gate, sh};

/// Options of `cargo xtask shaders`.
#[derive(clap::Args)]
pub struct Args {
    /// Change nothing; fail where the committed modules are not what the sources give, or a pipeline is not fit for the Radeon 780M
    #[arg(long)]
    check: bool,
}

/// Compiles or checks; a check closes with one line that sums it up.
pub fn run(args: &Args) -> Result<()> {
    let root = sh::root();
    let mut command = sh::cargo("run --locked --release --quiet --manifest-path xtask/shaders/Cargo.toml");
    command.arg("--target-dir").arg(sh::target("shaders")).arg("--");
    command.arg(root.join("crates/vulkan/shaders")).arg(root.join("crates/vulkan/spirv"));
    if !args.check {
        return sh::run(&mut command);
    }
    let compared = sh::output(command.arg("--check"))?;
    let pipelines = gate::run()?;
    println!("{}; {pipelines}", compared.trim());
    Ok(())
}

/// What continuous integration runs.
pub fn check() -> Result<()> {
    run(&Args { check: true })
}
