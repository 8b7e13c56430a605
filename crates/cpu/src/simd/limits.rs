//! Limits on the memory of this process that the operating system enforces besides the size of the machine: control groups of both
//! versions, and the size of the address space (`ulimit -v`). Whoever goes past the first is ended without a word.

use std::path::{Component, Path, PathBuf};

use unicorn_core::MemoryRoom;

/// Address space that is asked for and never touched: mappings that are shared out in pieces, stacks, arenas of the allocator.
const UNTOUCHED_BYTES: u64 = 128 << 20;

/// A limit with what it leaves; `None` where there is no limit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Limit {
    /// Memory that may be used in all, in bytes.
    pub(super) bytes: Option<u64>,
    /// What can be had beyond the memory in use now.
    pub(super) left: Option<MemoryRoom>,
}

impl Limit {
    fn new(bytes: u64, left: u64, origin: String) -> Limit {
        Limit { bytes: Some(bytes), left: Some(MemoryRoom { bytes: left, origin }) }
    }

    /// Both limits hold.
    fn and(self, other: Limit) -> Limit {
        Limit { bytes: least(self.bytes, other.bytes), left: tighter(self.left, other.left) }
    }
}

/// The smaller of what is known.
pub(super) fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// The one that leaves less.
pub(super) fn tighter(a: Option<MemoryRoom>, b: Option<MemoryRoom>) -> Option<MemoryRoom> {
    a.into_iter().chain(b).min_by_key(|left| left.bytes)
}

/// All limits of this process. `swap_free` bytes of swap space are unused on the machine.
pub(super) fn of_process(swap_free: u64) -> Limit {
    let membership = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = control_groups(&membership, Path::new("/sys/fs/cgroup"), swap_free);
    groups.and(address_space()).and(data_segment())
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
        let (mount, read): (_, fn(&Path, &Path, u64) -> Limit) = match controllers {
            "" => (root.to_path_buf(), version_2),
            list if list.split(',').any(|c| c == "memory") => (root.join("memory"), version_1),
            _ => continue,
        };
        // A path from outside a namespace begins with `..`.
        let below: Vec<Component<'_>> =
            Path::new(path).components().filter(|c| matches!(c, Component::Normal(_))).collect();
        for depth in 0..=below.len() {
            let group = below[..depth].iter().fold(PathBuf::from("/"), |path, c| path.join(c));
            let folder = below[..depth].iter().fold(mount.clone(), |folder, c| folder.join(c));
            limit = limit.and(read(&folder, &group, swap_free));
        }
    }
    limit
}

/// The limit of one group. Past `memory.high` nothing is ended, but everything slows down until nothing moves.
fn version_2(folder: &Path, group: &Path, swap_free: u64) -> Limit {
    let used = number(folder, "memory.current").unwrap_or(0).saturating_sub(page_cache(folder));
    let swap = number(folder, "memory.swap.max")
        .map_or(u64::MAX, |max| max.saturating_sub(number(folder, "memory.swap.current").unwrap_or(0)));
    let limit = |name: &str, swap: u64| match number(folder, name) {
        Some(bytes) => {
            let left = bytes.saturating_sub(used).saturating_add(swap);
            Limit::new(bytes, left, format!("cgroup {} {name}", group.display()))
        }
        None => Limit::default(),
    };
    limit("memory.max", swap.min(swap_free)).and(limit("memory.high", swap.min(swap_free)))
}

fn version_1(folder: &Path, group: &Path, swap_free: u64) -> Limit {
    let cache = page_cache(folder);
    let limit = |name: &str, usage: &str, swap: u64| {
        // "No limit" is the largest number of whole pages.
        let Some(bytes) = number(folder, name).filter(|bytes| *bytes < i64::MAX as u64 / 2) else {
            return Limit::default();
        };
        let used = number(folder, usage).unwrap_or(0).saturating_sub(cache);
        let left = bytes.saturating_sub(used).saturating_add(swap);
        Limit::new(bytes, left, format!("cgroup {} {name}", group.display()))
    };
    let memory = limit("memory.limit_in_bytes", "memory.usage_in_bytes", swap_free);
    if memory.bytes.is_none() {
        return memory;
    }
    // Memory and swap together: what may be used in all is still the memory.
    let both = limit("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes", 0);
    Limit { bytes: memory.bytes, left: tighter(memory.left, both.left) }
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
    resource(libc::RLIMIT_AS, "VmSize:", "ulimit -v")
}

/// The limit of `ulimit -d`, which counts all private memory that may be written.
#[cfg(target_os = "linux")]
fn data_segment() -> Limit {
    resource(libc::RLIMIT_DATA, "VmData:", "ulimit -d")
}

#[cfg(target_os = "linux")]
fn resource(resource: libc::__rlimit_resource_t, used: &str, origin: &str) -> Limit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one `rlimit`.
    if unsafe { libc::getrlimit(resource, &mut limit) } != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
        return Limit::default();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let used = kilobytes(&status, used).unwrap_or(0).saturating_add(UNTOUCHED_BYTES);
    Limit::new(limit.rlim_cur, limit.rlim_cur.saturating_sub(used), origin.to_owned())
}

#[cfg(not(target_os = "linux"))]
fn address_space() -> Limit {
    Limit::default()
}

#[cfg(not(target_os = "linux"))]
fn data_segment() -> Limit {
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

    fn mib(bytes: u64, left: u64, origin: &str) -> Limit {
        Limit::new(bytes * MIB, left * MIB, origin.to_owned())
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
        let origin = "cgroup /a memory.max";
        assert_eq!(control_groups("0::/a/b\n", root.path(), 0), mib(300, 250, origin));
        assert_eq!(control_groups("0::/a\n", root.path(), 0), mib(300, 250, origin));
        assert_eq!(control_groups("0::/\n", root.path(), 0), Limit::default());
        // Swap space counts where the group may use it: without a limit here.
        assert_eq!(control_groups("0::/a\n", root.path(), 50 * MIB), mib(300, 300, origin));
    }

    #[test]
    fn version_2_limits_swap_too() {
        let root = groups(&[
            ("memory.max", "104857600"),
            ("memory.current", "0"),
            ("memory.swap.max", "20971520"),
            ("memory.swap.current", "10485760"),
        ]);
        let origin = "cgroup / memory.max";
        assert_eq!(control_groups("0::/", root.path(), 1 << 40), mib(100, 110, origin));
        assert_eq!(control_groups("0::/", root.path(), 0), mib(100, 100, origin));
    }

    #[test]
    fn a_group_that_is_slowed_down_counts_as_full() {
        let root = groups(&[
            ("user.slice/memory.max", "max"),
            ("user.slice/memory.high", "209715200"),
            ("user.slice/memory.current", "104857600"),
            ("user.slice/app/memory.max", "314572800"),
            ("user.slice/app/memory.high", "max"),
            ("user.slice/app/memory.current", "104857600"),
        ]);
        let found = control_groups("0::/user.slice/app", root.path(), 0);
        assert_eq!(found, mib(200, 100, "cgroup /user.slice memory.high"));
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
        let origin = "cgroup /docker/c memory.limit_in_bytes";
        assert_eq!(control_groups(membership, root.path(), 0), mib(300, 250, origin));
        // Memory and swap together have a limit of 320 MiB.
        assert_eq!(
            control_groups(membership, root.path(), 1 << 40),
            mib(300, 270, "cgroup /docker/c memory.memsw.limit_in_bytes")
        );
        assert_eq!(control_groups("3:cpuset:/docker/c\n", root.path(), 0), Limit::default());
    }

    #[test]
    fn containers_see_a_part_of_the_path_and_files_may_hold_anything() {
        let root = groups(&[("memory.max", "104857600"), ("memory.current", "999999999999")]);
        // More in use than allowed, as just after the limit was lowered.
        let found = control_groups("0::/../../system.slice/docker-1.scope\nnonsense\n::\n", root.path(), 0);
        assert_eq!(found, mib(100, 0, "cgroup / memory.max"));
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
