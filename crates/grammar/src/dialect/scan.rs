//! Reading a text that comes in pieces: finding marks, and where a JSON value ends.

/// What is known about where a mark is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It begins and ends at these bytes.
    At(usize, usize),
    /// Up to this byte there is none; what follows may become one.
    NotBefore(usize),
}

/// Looks for the first of some marks.
pub(super) fn find(text: &str, marks: &[&str]) -> (Found, usize) {
    let first = marks
        .iter()
        .enumerate()
        .filter(|(_, mark)| !mark.is_empty())
        .filter_map(|(index, mark)| text.find(mark).map(|at| (at, index)))
        .min();
    if let Some((at, index)) = first {
        return (Found::At(at, at + marks[index].len()), index);
    }
    let open = marks.iter().filter(|mark| !mark.is_empty()).map(|mark| begun(text, mark)).max().unwrap_or(0);
    (Found::NotBefore(text.len() - open), 0)
}

/// Length of the longest beginning of a mark that a text ends with.
pub(super) fn begun(text: &str, mark: &str) -> usize {
    let longest = (mark.len() - 1).min(text.len());
    (1..=longest).rev().find(|length| text.as_bytes().ends_with(&mark.as_bytes()[..*length])).unwrap_or(0)
}

/// Follows a JSON value byte by byte.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    begun: bool,
    scalar: bool,
}

impl JsonScan {
    /// Takes more of the value and returns how many bytes of `text` belong to it, and whether it is complete.
    pub(super) fn take(&mut self, text: &str) -> (usize, bool) {
        for (at, byte) in text.bytes().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (at + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    self.begun = true;
                }
                b'{' | b'[' => {
                    self.depth += 1;
                    self.begun = true;
                }
                b'}' | b']' | b',' | b'<' | b';' if self.scalar && self.depth == 0 => return (at, true),
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                b' ' | b'\n' | b'\r' | b'\t' if self.scalar && self.depth == 0 => return (at, true),
                b' ' | b'\n' | b'\r' | b'\t' => {}
                _ if self.depth == 0 => {
                    self.scalar = true;
                    self.begun = true;
                }
                _ => {}
            }
        }
        (text.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_and_their_beginnings_kept() {
        assert_eq!(find("a<b>c", &["<b>"]), (Found::At(1, 4), 0));
        assert_eq!(find("a<", &["<b>"]), (Found::NotBefore(1), 0));
        assert_eq!(find("a<b", &["<b>", "<bc>"]), (Found::NotBefore(1), 0));
        assert_eq!(find("abc", &["<b>"]), (Found::NotBefore(3), 0));
        assert_eq!(find("x[/A]<b>", &["<b>", "[/A]"]), (Found::At(1, 5), 1));
    }

    #[test]
    fn json_values_end_where_they_end() {
        for (text, length) in [
            ("{\"a\":\"}\\\"\",\"b\":[1]}}", 19),
            ("[1,[2]],", 7),
            ("\"a\\\"b\" ", 6),
            ("12}", 2),
            ("true</", 4),
        ] {
            assert_eq!(JsonScan::default().take(text), (length, true), "{text}");
            // Byte by byte it is the same.
            let mut scan = JsonScan::default();
            let mut taken = 0;
            for at in 0..text.len() {
                let (used, done) = scan.take(&text[at..at + 1]);
                taken += used;
                if done {
                    break;
                }
            }
            assert_eq!(taken, length, "{text}");
        }
        assert_eq!(JsonScan::default().take("{\"a\":1"), (6, false));
    }
}
