//! Limits on the memory of this process that the operating system enforces besides the size of the machine: control groups of both
//! versions, and the size of the address space (`ulimit -v`). Whoever goes past the first is ended without a word.

use std::path::{Component, Path};

/// A limit with what it leaves, in bytes; `None` where there is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Limit {
    /// Memory that may be used in all.
    pub(super) bytes: Option<u64>,
    /// What can be had beyond the memory in use now, swap space included.
    pub(super) left: Option<u64>,
}

impl Limit {
    /// Both limits hold.
    fn and(self, other: Limit) -> Limit {
        Limit { bytes: least(self.bytes, other.bytes), left: least(self.left, other.left) }
    }
}

/// The smaller of what is known.
pub(super) fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// All limits of this process. `swap_free` bytes of swap space are unused on the machine.
pub(super) fn of_process(swap_free: u64) -> Limit {
    let membership = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    control_groups(&membership, Path::new("/sys/fs/cgroup"), swap_free).and(address_space())
}

/// The limit of the control groups that `membership` (`/proc/self/cgroup`) names: each of them and each above it counts. `root` is where
/// the groups are mounted. In a container the path may be that of the host, so that only some of its end, or the root alone, is there.
fn control_groups(membership: &str, root: &Path, swap_free: u64) -> Limit {
    let mut limit = Limit::default();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (mount, read): (_, fn(&Path, u64) -> Limit) = match controllers {
            "" => (root.to_path_buf(), version_2),
            list if list.split(',').any(|c| c == "memory") => (root.join("memory"), version_1),
            _ => continue,
        };
        // A path from outside a namespace begins with `..`.
        let below: Vec<Component<'_>> =
            Path::new(path).components().filter(|c| matches!(c, Component::Normal(_))).collect();
        for depth in 0..=below.len() {
            let folder = below[..depth].iter().fold(mount.clone(), |folder, c| folder.join(c));
            limit = limit.and(read(&folder, swap_free));
        }
    }
    limit
}

fn version_2(folder: &Path, swap_free: u64) -> Limit {
    let Some(bytes) = number(folder, "memory.max") else { return Limit::default() };
    let used = number(folder, "memory.current").unwrap_or(0);
    let swap = number(folder, "memory.swap.max")
        .map_or(u64::MAX, |max| max.saturating_sub(number(folder, "memory.swap.current").unwrap_or(0)));
    let memory = bytes.saturating_sub(used.saturating_sub(page_cache(folder)));
    Limit { bytes: Some(bytes), left: Some(memory.saturating_add(swap.min(swap_free))) }
}

fn version_1(folder: &Path, swap_free: u64) -> Limit {
    let cache = page_cache(folder);
    let left = |limit: u64, usage: &str| {
        limit.saturating_sub(number(folder, usage).unwrap_or(0).saturating_sub(cache))
    };
    // "No limit" is the largest number of whole pages.
    let limit = |name: &str| number(folder, name).filter(|bytes| *bytes < i64::MAX as u64 / 2);
    let Some(bytes) = limit("memory.limit_in_bytes") else { return Limit::default() };
    let memory = left(bytes, "memory.usage_in_bytes").saturating_add(swap_free);
    let both = limit("memory.memsw.limit_in_bytes").map(|bytes| left(bytes, "memory.memsw.usage_in_bytes"));
    Limit { bytes: Some(bytes), left: least(Some(memory), both) }
}

/// A file with one number; `max` is none.
fn number(folder: &Path, name: &str) -> Option<u64> {
    std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

/// Pages of files that a group is charged for: the system drops them before it ends anyone. Version 1 counts those of groups below apart.
fn page_cache(folder: &Path) -> u64 {
    let text = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
    };
    ["inactive_file", "active_file"]
        .into_iter()
        .map(|name| field(&format!("total_{name}")).or_else(|| field(name)).unwrap_or(0))
        .fold(0, u64::saturating_add)
}

/// The bytes of a line such as `MemTotal:  24684096 kB`.
pub(super) fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit of `ulimit -v`.
#[cfg(target_os = "linux")]
fn address_space() -> Limit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one `rlimit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
        return Limit::default();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let used = kilobytes(&status, "VmSize:").unwrap_or(0);
    Limit { bytes: Some(limit.rlim_cur), left: Some(limit.rlim_cur.saturating_sub(used)) }
}

#[cfg(not(target_os = "linux"))]
fn address_space() -> Limit {
    Limit::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A folder of groups: path of a file, content.
    fn groups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    fn mib(bytes: u64, left: u64) -> Limit {
        Limit { bytes: Some(bytes * MIB), left: Some(left * MIB) }
    }

    #[test]
    fn version_2_counts_every_level_and_no_page_cache() {
        let root = groups(&[
            ("a/memory.max", "314572800\n"),
            ("a/memory.current", "209715200\n"),
            (
                "a/memory.stat",
                "anon 52428800\nfile 157286400\ninactive_file 104857600\nactive_file 52428800\n",
            ),
            ("a/b/memory.max", "max\n"),
            ("a/b/memory.current", "1000\n"),
        ]);
        // 300 MiB, of which 200 are used, 150 of these by pages of files.
        assert_eq!(control_groups("0::/a/b\n", root.path(), 0), mib(300, 250));
        assert_eq!(control_groups("0::/a\n", root.path(), 0), mib(300, 250));
        assert_eq!(control_groups("0::/\n", root.path(), 0), Limit::default());
        // Swap space counts where the group may use it: without a limit here.
        assert_eq!(control_groups("0::/a\n", root.path(), 50 * MIB), mib(300, 300));
    }

    #[test]
    fn version_2_limits_swap_too() {
        let root = groups(&[
            ("memory.max", "104857600"),
            ("memory.current", "0"),
            ("memory.swap.max", "20971520"),
            ("memory.swap.current", "10485760"),
        ]);
        assert_eq!(control_groups("0::/", root.path(), 1 << 40), mib(100, 110));
        assert_eq!(control_groups("0::/", root.path(), 0), mib(100, 100));
    }

    #[test]
    fn version_1_has_a_folder_of_its_own() {
        let root = groups(&[
            ("memory/memory.limit_in_bytes", "9223372036854771712"),
            ("memory/docker/c/memory.limit_in_bytes", "314572800"),
            ("memory/docker/c/memory.usage_in_bytes", "104857600"),
            (
                "memory/docker/c/memory.stat",
                "cache 9\ninactive_file 1\ntotal_inactive_file 52428800\ntotal_active_file 0\n",
            ),
            ("memory/docker/c/memory.memsw.limit_in_bytes", "335544320"),
            ("memory/docker/c/memory.memsw.usage_in_bytes", "104857600"),
        ]);
        let membership = "9:name=systemd:/x\n4:cpu,memory:/docker/c\n0::/\n";
        assert_eq!(control_groups(membership, root.path(), 0), mib(300, 250));
        // Memory and swap together have a limit of 320 MiB.
        assert_eq!(control_groups(membership, root.path(), 1 << 40), mib(300, 270));
        assert_eq!(control_groups("3:cpuset:/docker/c\n", root.path(), 0), Limit::default());
    }

    #[test]
    fn containers_see_a_part_of_the_path_and_files_may_hold_anything() {
        let root = groups(&[("memory.max", "104857600"), ("memory.current", "999999999999")]);
        // More in use than allowed, as just after the limit was lowered.
        let found = control_groups("0::/../../system.slice/docker-1.scope\nnonsense\n::\n", root.path(), 0);
        assert_eq!(found, mib(100, 0));
        let odd = groups(&[("memory.max", "-1"), ("memory/memory.limit_in_bytes", "")]);
        assert_eq!(control_groups("0::/\n1:memory:/", odd.path(), 0), Limit::default());
        assert_eq!(control_groups("0::/", Path::new("/nowhere"), 0), Limit::default());
    }

    #[test]
    fn the_limit_of_this_process_can_be_read() {
        let limit = of_process(0);
        assert!(limit.bytes.is_none_or(|b| b > MIB), "{limit:?}");
        assert_eq!(limit.bytes.is_some(), limit.left.is_some());
    }

    #[test]
    fn figures_of_the_system_are_in_kilobytes() {
        let text = "MemTotal:       24684096 kB\nMemFree:  x kB\nHugePages_Total:       0\n";
        assert_eq!(kilobytes(text, "MemTotal:"), Some(24_684_096 << 10));
        assert_eq!(kilobytes(text, "MemFree:"), None);
        assert_eq!(kilobytes(text, "HugePages_Total:"), None);
    }
}
