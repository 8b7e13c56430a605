//! What the operating system tells about the processor: cores, memory, name.

use std::collections::BTreeSet;

use unicorn_core::MemoryRoom;

use super::limits::{self, kilobytes, least, tighter};

/// Physical cores that this process may run on: its CPU affinity with SMT siblings counted once, and no more than its quota.
pub(crate) fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let cores: BTreeSet<String> = allowed_cpus().into_iter().filter_map(core_of).collect();
    if cores.is_empty() { allowed } else { cores.len().min(allowed) }
}

/// Names a core by the list of its hardware threads.
fn core_of(cpu: usize) -> Option<String> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    std::fs::read_to_string(path).ok().map(|s| s.trim().to_owned())
}

/// CPUs in the affinity mask; empty where the system does not say.
fn allowed_cpus() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a plain bit set, for which zero is valid.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes at most the size of the set.
        if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } == 0 {
            // SAFETY: indices stay below CPU_SETSIZE.
            return (0..libc::CPU_SETSIZE as usize)
                .filter(|i| unsafe { libc::CPU_ISSET(*i, &set) })
                .collect();
        }
    }
    Vec::new()
}

/// Memory that this process may use in all, in bytes: the machine's, or less where a limit is set. 0 where the system does not say.
pub(crate) fn memory_bytes() -> u64 {
    least(meminfo("MemTotal:"), limits::of_process(0).bytes).unwrap_or(0)
}

/// Memory that can be had now, in bytes; 0 where the system does not say.
pub(crate) fn free_bytes() -> u64 {
    available().map_or(0, |available| available.bytes)
}

/// Memory that this process can still get, swap space included: what the machine has left, or less where a control group or `ulimit`
/// sets a limit. Pages of files, which the system gives up when memory is short, count as free. `None` where the system does not say.
pub fn available() -> Option<MemoryRoom> {
    let swap_free = meminfo("SwapFree:").unwrap_or(0);
    let machine = meminfo("MemAvailable:").map(|bytes| MemoryRoom {
        bytes: bytes.saturating_add(swap_free),
        origin: "free memory of the machine".to_owned(),
    });
    tighter(machine, limits::of_process(swap_free).left)
}

fn meminfo(field: &str) -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, field)
}

/// The processor's brand string, or the architecture.
pub(crate) fn brand() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts_are_sane() {
        let cores = super::physical_cores();
        assert!(cores >= 1 && cores <= std::thread::available_parallelism().unwrap().get());
        assert!(!super::brand().is_empty());
        #[cfg(target_os = "linux")]
        assert!(super::memory_bytes() > 0 && super::free_bytes() > 0);
    }
}
