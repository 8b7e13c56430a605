//! What a server sends in the place of a file: a page to log in on, or the pointer that stands for a large file.

/// Says what `start`, the beginning of a file, is, where no file of a model begins like that.
pub(crate) fn not_the_file(start: &[u8]) -> Option<&'static str> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |text: &[u8]| start.get(..text.len()).is_some_and(|head| head.eq_ignore_ascii_case(text));
    if begins(b"version https://git-lfs.github.com/spec/")
        || begins(b"version https://hawser.github.com/spec/")
    {
        return Some("a Git LFS pointer");
    }
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<head") {
        return Some("an HTML page (is there a page to log in on between here and the hub?)");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_pointers_are_told_from_files() {
        for page in ["<!DOCTYPE html><html>", "\u{feff}\n <HTML lang=en>", "<html>"] {
            assert!(
                not_the_file(page.as_bytes()).is_some_and(|found| found.starts_with("an HTML page")),
                "{page}"
            );
        }
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        assert_eq!(not_the_file(pointer), Some("a Git LFS pointer"));
        for file in [&b"GGUF"[..], b"{\"version\": 1}", b"", b"{% if x %}<html>{% endif %}", b"version: 1"] {
            assert_eq!(not_the_file(file), None);
        }
    }
}
