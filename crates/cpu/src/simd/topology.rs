//! What the operating system tells about the processor: cores, memory, name.

use std::collections::BTreeSet;

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

/// Total memory in bytes; 0 where the system does not say.
pub(crate) fn memory_bytes() -> u64 {
    meminfo("MemTotal:").unwrap_or(0)
}

/// Memory that can be had now, in bytes; 0 where the system does not say.
pub(crate) fn free_bytes() -> u64 {
    meminfo("MemAvailable:").unwrap_or(0)
}

fn meminfo(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
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
        assert!(super::memory_bytes() >= super::free_bytes() && super::free_bytes() > 0);
    }
}
