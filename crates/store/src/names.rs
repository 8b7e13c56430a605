//! Names of folders and files below a root. What goes by another name is not the store's and stays as it is.

use std::ffi::OsStr;

use unicorn_core::PageKey;

/// File of a root that a process locks to take room; it holds the bytes that are taken.
pub(crate) const LOCK: &str = "lock";
/// What a folder's pages belong to, in the words of who opened it.
pub(crate) const ABOUT: &str = "about.json";
/// Beginning of the names of files that are being written.
pub(crate) const TEMPORARY: &str = ".part-";

const PAGE: &str = ".page";
const FOLDER: &str = "kv-";
/// Bytes of an identity that its folder's name tells.
const FOLDER_BYTES: usize = 16;

fn hex(bytes: &[u8]) -> String {
    let digits = b"0123456789abcdef";
    let pair = |b: &u8| [digits[usize::from(b >> 4)], digits[usize::from(b & 15)]];
    bytes.iter().flat_map(pair).map(char::from).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    let mut out = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

pub(crate) fn page_file(key: &PageKey) -> String {
    hex(&key.0) + PAGE
}

pub(crate) fn page_key(name: &OsStr) -> Option<PageKey> {
    unhex(name.to_str()?.strip_suffix(PAGE)?).map(PageKey)
}

pub(crate) fn folder(identity: &[u8; 32]) -> String {
    FOLDER.to_owned() + &hex(&identity[..FOLDER_BYTES])
}

pub(crate) fn is_folder(name: &OsStr) -> bool {
    let digits = name.to_str().and_then(|name| name.strip_prefix(FOLDER));
    digits.and_then(unhex::<FOLDER_BYTES>).is_some()
}

pub(crate) fn is_temporary(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(TEMPORARY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_not_ours() {
        let key = PageKey(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(page_key(page_file(&key).as_ref()), Some(key));
        let name = folder(&key.0);
        assert_eq!(name.len(), 35);
        assert!(is_folder(name.as_ref()));
        let upper = page_file(&key).to_uppercase();
        for other in ["", "..", "kv-", "kv-00", "lock", "about.json", &upper, &name[1..], "é.page"] {
            assert!(page_key(other.as_ref()).is_none() && !is_folder(other.as_ref()), "{other}");
        }
    }
}
