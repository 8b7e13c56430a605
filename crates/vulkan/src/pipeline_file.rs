//! Compiled pipelines on disk, one file per device and driver. Drivers check little of what they are given, so each file has a header of our
//! own with a checksum: one that is not whole, or another driver's, is not handed on.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::context::Identity;

const MAGIC: &[u8; 8] = b"UNIPIPE1";
const HEADER_BYTES: usize = 8 + 3 * 4 + 16 + 8 + 8;
/// Larger caches are neither read nor written.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Files of other devices and earlier drivers that stay.
const FILES_MAX: usize = 8;
const PREFIX: &str = "pipelines-";

/// Where one driver's pipelines are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PipelineFile {
    path: PathBuf,
    identity: Identity,
}

impl PipelineFile {
    /// The file of a driver in a folder that need not exist yet.
    pub(crate) fn new(folder: &Path, identity: Identity) -> PipelineFile {
        let uuid: String = identity.uuid.iter().map(|b| format!("{b:02x}")).collect();
        let Identity { vendor, device, driver, .. } = identity;
        PipelineFile {
            path: folder.join(format!("{PREFIX}{vendor:04x}-{device:04x}-{driver:08x}-{uuid}.bin")),
            identity,
        }
    }

    /// The driver's bytes; `None` where there is no file. Errors say why a file was passed over.
    pub(crate) fn load(&self) -> Result<Option<Vec<u8>>, String> {
        let passed_over = |why: &str| format!("{}: {why}; pipelines are compiled anew", self.path.display());
        let file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(passed_over(&e.to_string())),
        };
        let mut bytes = Vec::new();
        let limit = (HEADER_BYTES + PAYLOAD_BYTES_MAX + 1) as u64;
        file.take(limit).read_to_end(&mut bytes).map_err(|e| passed_over(&e.to_string()))?;
        if bytes.len() as u64 == limit {
            return Err(passed_over("too large"));
        }
        let payload = bytes.get(HEADER_BYTES..).ok_or_else(|| passed_over("not whole"))?;
        if bytes[..HEADER_BYTES] != self.header(payload) {
            return Err(passed_over("damaged, or of another driver"));
        }
        bytes.drain(..HEADER_BYTES);
        Ok(Some(bytes))
    }

    /// Writes the driver's bytes beside the file and puts them in its place, so that a reader sees the old file or the new one.
    pub(crate) fn save(&self, payload: &[u8]) -> io::Result<()> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Ok(());
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(".pipelines-").tempfile_in(folder)?;
        file.write_all(&self.header(payload))?;
        file.write_all(payload)?;
        file.persist(&self.path)?;
        self.prune(folder)
    }

    /// Keeps the newest files only: every driver update leaves one behind.
    fn prune(&self, folder: &Path) -> io::Result<()> {
        let mut others: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
            if ours && entry.path() != self.path {
                others.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        others.sort();
        for (_, path) in others.iter().rev().skip(FILES_MAX) {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }

    fn header(&self, payload: &[u8]) -> [u8; HEADER_BYTES] {
        let i = &self.identity;
        let mut header = [0; HEADER_BYTES];
        let words = [i.vendor, i.device, i.driver].map(u32::to_le_bytes);
        let long = [payload.len() as u64, checksum(payload)].map(u64::to_le_bytes);
        let parts = [&MAGIC[..], words.as_flattened(), &i.uuid, long.as_flattened()].concat();
        header.copy_from_slice(&parts);
        header
    }
}

/// FNV-1a over words of 8 bytes: finds damage, not malice.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(driver: u32) -> Identity {
        Identity { vendor: 0x1002, device: 0x15bf, driver, uuid: [7; 16] }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("unicorn-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn comes_back_whole_or_not_at_all() {
        let folder = folder("pipeline-file");
        let file = PipelineFile::new(&folder, identity(1));
        assert_eq!(file.load(), Ok(None));
        let payload: Vec<u8> = (0..1000).map(|i| (i * 7) as u8).collect();
        file.save(&payload).unwrap();
        assert_eq!(file.load(), Ok(Some(payload.clone())));
        let whole = std::fs::read(&file.path).unwrap();
        for at in [0, 9, 20, 40, 50, HEADER_BYTES, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            std::fs::write(&file.path, &damaged).unwrap();
            assert!(file.load().unwrap_err().contains("damaged"), "byte {at}");
        }
        for len in [0, 30, HEADER_BYTES, whole.len() - 1] {
            std::fs::write(&file.path, &whole[..len]).unwrap();
            assert!(file.load().is_err(), "{len} bytes");
        }
        let newer = PipelineFile::new(&folder, identity(2));
        assert_eq!(newer.load(), Ok(None));
        std::fs::write(&newer.path, &whole).unwrap();
        assert!(newer.load().is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn old_drivers_files_go() {
        let folder = folder("pipeline-files");
        for driver in 0..20 {
            PipelineFile::new(&folder, identity(driver)).save(b"x").unwrap();
        }
        std::fs::write(folder.join("other.bin"), b"stays").unwrap();
        let last = PipelineFile::new(&folder, identity(99));
        last.save(b"last").unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), FILES_MAX + 2);
        assert_eq!(last.load(), Ok(Some(b"last".to_vec())));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
