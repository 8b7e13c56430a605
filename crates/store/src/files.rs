//! Files and folders for their owner alone, opened without following links, read and written by position.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Bytes in which file systems give out room, as most do.
const BLOCK: u64 = 4096;

/// What a file of this length takes on disk.
pub(crate) fn on_disk(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Options that follow no link in the last part of a path, and make files for their owner alone.
pub(crate) fn private() -> OpenOptions {
    let mut options = File::options();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.mode(0o600).custom_flags(flags.bits() as i32);
    }
    options
}

/// Makes a folder for its owner alone, with those around it. One that is there stays as it is.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Takes a folder from everyone but its owner.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::symlink_metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Bytes that the file system of a folder has to give, where the system tells.
pub(crate) fn free(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let told = rustix::fs::statvfs(path).ok()?;
        Some(told.f_bavail.saturating_mul(told.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

#[cfg(unix)]
pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(unix)]
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(windows)]
pub(crate) fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// How useful a page is, told by its file's time: whole seconds are when it was used last, and the rest of the second falls with its place
/// in the chain, so that of pages that were used together the beginning stays longest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Used(SystemTime);

const SECOND: u32 = 1_000_000_000;
/// Of a second, what one place in a chain takes. File systems keep at least this.
const PLACE: u32 = 1000;

impl Used {
    /// Now, at this place in a chain.
    pub fn now(place: u32) -> Used {
        Used::at(SystemTime::now(), place)
    }

    pub fn at(when: SystemTime, place: u32) -> Used {
        let seconds = when.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let rest = (SECOND - 1).saturating_sub(place.saturating_mul(PLACE));
        Used(SystemTime::UNIX_EPOCH + Duration::new(seconds, rest))
    }

    /// As a file's time tells it.
    pub fn of(time: SystemTime) -> Used {
        Used(time)
    }

    pub fn time(self) -> SystemTime {
        self.0
    }

    /// The place in the chain.
    pub fn place(self) -> u32 {
        let rest = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        (SECOND - 1 - rest) / PLACE
    }
}

/// Sets a file's time. A file that is gone, or of a file system that cannot, does no harm.
pub(crate) fn set_used(file: &File, used: Used) {
    let _ = file.set_times(fs::FileTimes::new().set_modified(used.time()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_chain_is_more_useful_and_later_use_more_so() {
        let when = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_300);
        let of = |seconds: u64, place| Used::at(when + Duration::from_secs(seconds), place);
        assert!(of(0, 0) > of(0, 1) && of(0, 1) > of(0, 900));
        assert!(of(1, 900_000) > of(0, 0) && of(1, u32::MAX) > of(0, 0));
        for place in [0, 1, 77, 999_999] {
            assert_eq!(of(3, place).place(), place);
            assert_eq!(Used::of(of(3, place).time()), of(3, place));
        }
    }

    #[test]
    fn lengths_are_counted_in_blocks() {
        assert_eq!([0, 1, 4096, 4097].map(on_disk), [0, 4096, 4096, 8192]);
    }
}
