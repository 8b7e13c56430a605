//! Arguments that several commands have.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::devices::DeviceChoice;
use crate::memory_max::{self, MemoryMax};
use crate::parse::{self, OrAuto};
use crate::planner::Place;

/// What other programs call `--ctx`.
pub const CONTEXT_ALIASES: [&str; 5] = ["ctx-size", "num-ctx", "context", "max-context", "max-model-len"];

#[derive(Args, Debug)]
pub struct ModelArgs {
    /// Known name, file, directory, or Hugging Face `owner/repo[:quant]` [default: smollm2-135m]
    ///
    /// A name that exists as a path is taken as a path. `unicorn models` lists the known names. A model that is not
    /// on this machine is fetched first. UNICORN_MODEL sets another default.
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    pub model: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// `cpu`, `cpu:LEVEL`, `vulkan`, `vulkan:1`, `vulkan:NAME`, `reference` [default: the fastest GPU, else the CPU]
    ///
    /// NAME is any part of a GPU's name, LEVEL a set of kernels. A software driver is used only when its number or name is given.
    /// `unicorn devices` lists what is here.
    #[arg(long, value_name = "DEVICE", help_heading = "Device")]
    pub device: Option<DeviceChoice>,
    /// Worker threads; 0 or -1 for the default [default: one per physical core]
    #[arg(short, long, value_name = "N", value_parser = parse::threads, allow_negative_numbers = true, help_heading = "Device")]
    pub threads: Option<OrAuto<usize>>,
    /// Texts never depend on what else runs or on how prompts are cut, at the cost of speed on GPUs
    #[arg(long, hide = true, help_heading = "Device")]
    pub batch_invariant: bool,
    /// Devices get little work at a time: one that was lost may have been given too much.
    #[arg(skip)]
    pub small: bool,
}

impl DeviceArgs {
    /// Whatever device is chosen.
    pub fn any(threads: Option<OrAuto<usize>>) -> DeviceArgs {
        DeviceArgs { device: None, threads, batch_invariant: false, small: false }
    }

    /// The same with this device.
    pub fn on(&self, device: DeviceChoice) -> DeviceArgs {
        DeviceArgs { device: Some(device), ..self.clone() }
    }
}

#[derive(Args, Clone, Debug)]
pub struct PlaceArgs {
    /// Which device runs which part of the model, for example mixer=cpu,ffn=vulkan or 0-15=vulkan:0,16-31=vulkan:1 [default: auto]
    ///
    /// Parts are mixer, ffn, embedding, head, layers such as 0-15 or 3, or both as in 0-15.ffn. Of several rules for a part the last one
    /// counts. Unless said otherwise the embedding goes with the first mixer and the head with the last ffn. `auto` takes what is
    /// predicted to be fastest of all that the devices here can do; it knows them once `unicorn plan` has measured them, and takes the
    /// fastest GPU, else the CPU, until then.
    #[arg(long, value_name = "RULES", conflicts_with = "device", help_heading = "Device")]
    pub place: Option<Place>,
    /// Write what the devices did and when to FILE, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Device")]
    pub trace: Option<PathBuf>,
}

impl PlaceArgs {
    /// Which device runs which part; one that is named runs all.
    pub fn of(&self, device: &DeviceArgs) -> Place {
        let unsaid = if device.device.is_some() { Place::One } else { Place::Auto };
        self.place.clone().unwrap_or(unsaid)
    }
}

#[derive(Args, Clone, Debug)]
pub struct MemoryArgs {
    /// Memory that may be taken, of every device as in 6GiB, or of some as in cpu=8GiB,vulkan:0=6GiB [default: what there is]
    #[arg(long, value_name = "SIZE", value_parser = MemoryMax::of_this_machine, help_heading = "Device")]
    pub memory_max: Option<MemoryMax>,
}

#[derive(Args, Clone, Debug)]
pub struct KvDiskArgs {
    /// Disk that computed KV pages of all models may take, so that what was read once is not read again; 0 keeps none [default: 8GiB]
    ///
    /// They outlive the program, and any process with the same model finds them. Never more than half of what the file system has left is
    /// taken; the least useful pages go first. `unicorn kv` lists and removes them. Where text comes on stdin, `run` keeps none unless this
    /// is given.
    #[arg(long, value_name = "SIZE", value_parser = memory_max::size_or_none, help_heading = "Device")]
    pub kv_disk: Option<u64>,
}

/// What pages may take on disk where nobody says.
const KV_DISK_BYTES: u64 = 8 << 30;

impl KvDiskArgs {
    /// Bytes of disk that pages may take; 0 for none.
    pub fn bytes(&self) -> u64 {
        self.kv_disk.unwrap_or(KV_DISK_BYTES)
    }
}

#[derive(Args, Clone, Debug)]
pub struct KvArgs {
    /// Element type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse::KvTypeParser, help_heading = "Device")]
    pub kv: unicorn_core::KvType,
}
