//! What the kernel's driver lets an integrated AMD GPU take of the host's memory: the graphics translation table (GTT) and the limit of
//! the memory manager below it. Drivers tell it in heaps only roughly.

use std::path::{Path, PathBuf};

use unicorn_core::MemoryRoom;

/// Bytes of the pages that the memory manager counts in.
const PAGE_BYTES: u64 = 4096;

/// What a GPU of this vendor and model can still get; `root` is where sysfs is mounted. `None` where no such card tells.
pub(crate) fn room(root: &Path, vendor: u32, device: u32) -> Option<MemoryRoom> {
    let cards = std::fs::read_dir(root.join("class/drm")).ok()?.flatten().map(|entry| entry.path());
    let mut cards: Vec<PathBuf> = cards.filter(|path| is_card(path)).collect();
    cards.sort();
    let is_it = |card: &&PathBuf| {
        let id = |name: &str| hexadecimal(&card.join("device").join(name));
        (id("vendor"), id("device")) == (Some(vendor), Some(device))
    };
    let card = cards.iter().find(is_it)?;
    let number = |name: &str| decimal(&card.join("device").join(name));
    let name = card.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (total, used) = (number("mem_info_gtt_total")?, number("mem_info_gtt_used").unwrap_or(0));
    let pages = decimal(&root.join("module/ttm/parameters/pages_limit"));
    let managed =
        pages.map(|pages| pages.saturating_mul(PAGE_BYTES)).filter(|bytes| *bytes > 0 && *bytes < total);
    let origin = match managed {
        Some(_) => format!("pages_limit of the ttm module, {name}"),
        None => format!("GTT size of {name}"),
    };
    // Memory set aside for the GPU at boot comes first.
    let own =
        number("mem_info_vram_total").unwrap_or(0).saturating_sub(number("mem_info_vram_used").unwrap_or(0));
    let bytes = managed.unwrap_or(total).saturating_sub(used).saturating_add(own);
    Some(MemoryRoom { bytes, origin })
}

/// `card0`, but no connector such as `card0-DP-1`.
fn is_card(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.strip_prefix("card").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn decimal(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn hexadecimal(path: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    const CARD: [(&str, &str); 9] = [
        ("class/drm/card0/device/vendor", "0x10de\n"),
        ("class/drm/card0/device/device", "0x2330\n"),
        ("class/drm/card1/device/vendor", "0x1002\n"),
        ("class/drm/card1/device/device", "0x15bf\n"),
        ("class/drm/card1/device/mem_info_gtt_total", "16000000000\n"),
        ("class/drm/card1/device/mem_info_gtt_used", "1000000000\n"),
        ("class/drm/card1/device/mem_info_vram_total", "536870912\n"),
        ("class/drm/card1/device/mem_info_vram_used", "36870912\n"),
        ("class/drm/card1-eDP-1/status", "connected\n"),
    ];

    #[test]
    fn the_card_of_this_model_tells() {
        let root = sysfs(&CARD);
        let found = room(root.path(), 0x1002, 0x15bf).unwrap();
        assert_eq!((found.bytes, found.origin.as_str()), (15_500_000_000, "GTT size of card1"));
        assert_eq!(room(root.path(), 0x1002, 0x1900), None);
        // Another vendor's driver has no such table.
        assert_eq!(room(root.path(), 0x10de, 0x2330), None);
        assert_eq!(room(Path::new("/nowhere"), 0x1002, 0x15bf), None);
    }

    #[test]
    fn the_memory_manager_may_allow_less() {
        let mut files = CARD.to_vec();
        files.push(("module/ttm/parameters/pages_limit", "2000000\n"));
        let found = room(sysfs(&files).path(), 0x1002, 0x15bf).unwrap();
        assert_eq!(found.bytes, 2_000_000 * 4096 - 1_000_000_000 + 500_000_000);
        assert!(found.origin.contains("pages_limit") && found.origin.contains("card1"), "{}", found.origin);
        files.pop();
        files.push(("module/ttm/parameters/pages_limit", "99999999999\n"));
        assert_eq!(room(sysfs(&files).path(), 0x1002, 0x15bf).unwrap().bytes, 15_500_000_000);
    }
}
