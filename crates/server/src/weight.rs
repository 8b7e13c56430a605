//! What JSON takes in memory: more than its text.

/// Marks of JSON in a text that is parsed: each may take some hundred bytes of memory where it took one of the text.
pub(crate) const MARKS_MAX: usize = 1 << 19;
/// Bytes of memory that a value takes, with its place in a list or its name in an object, beside its text.
const VALUE_BYTES: usize = 160;

/// Brackets, commas and colons outside of strings: as many values there are, or fewer.
pub(crate) fn marks(text: &[u8]) -> usize {
    let (mut count, mut quoted, mut escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'[' | b'{' | b',' | b':' if !quoted => count += 1,
            _ => {}
        }
    }
    count
}

/// Bytes that values with so many marks take beside their texts.
pub(crate) fn bytes_of(marks: usize) -> usize {
    marks.saturating_mul(VALUE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_in_texts_do_not_count() {
        for (text, count) in
            [("{}", 1), ("{\"a\":[1,2]}", 4), ("{\"a,b:[\":\"x\\\",,{\"}", 2), ("\"\\\\\",", 1), ("", 0)]
        {
            assert_eq!(marks(text.as_bytes()), count, "{text}");
        }
    }
}
