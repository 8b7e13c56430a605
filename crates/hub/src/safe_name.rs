//! Which names from outside may become file names in the cache.

use crate::HubError;

/// A relative file name from a server or an archive that stays below the folder it is joined to.
pub(crate) fn check_relative(name: &str) -> Result<(), HubError> {
    let refused = |reason: &str| Err(HubError::bad_name(name, reason));
    if name.is_empty() || name.len() > 1024 {
        return refused("its length is not within 1 to 1024");
    }
    if name.contains('\0') || name.contains('\\') {
        return refused("it contains a NUL character or a backslash");
    }
    if name.starts_with('/') || name.as_bytes().get(1) == Some(&b':') {
        return refused("it is an absolute path");
    }
    if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return refused("it contains an empty or relative folder");
    }
    Ok(())
}

/// A hash or commit that may be a file name: hexadecimal digits, or what the hub uses for them.
pub(crate) fn check_id(id: &str) -> Result<(), HubError> {
    let plain = !id.is_empty()
        && id.len() <= 128
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if plain && !id.contains("..") && id != "." {
        return Ok(());
    }
    Err(HubError::bad_name(id, "it is no commit or hash"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_names_from_outside() {
        for good in ["config.json", "sub/model-00001-of-00002.gguf", "a..b.gguf"] {
            assert!(check_relative(good).is_ok(), "{good:?}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../x", "a//x", "./x", "a\\x", "C:x", "a\0"] {
            assert!(check_relative(bad).is_err(), "{bad:?}");
        }
        assert!(check_id("e3b0c44298fc1c14").is_ok());
        for bad in ["", "..", "a/b", "a\\b", "."] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
