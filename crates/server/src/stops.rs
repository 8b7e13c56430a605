//! Stop strings: where a text ends, whatever the cut into tokens.

/// Looks for stop strings in a text that arrives in pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops {
    strings: Vec<String>,
    /// The end of the text so far, which may be the beginning of a stop string.
    held: String,
    found: Option<String>,
}

impl Stops {
    /// Ends at the first of any of these, none of which may be empty.
    pub fn new(strings: Vec<String>) -> Stops {
        Stops { strings, ..Stops::default() }
    }

    /// The stop string that was found.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// Takes more text; returns what certainly stands before any stop string.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        if self.strings.is_empty() {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        let places = self.strings.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        // The first that is complete, whatever comes after it: so the cut into pieces does not matter.
        if let Some((at, stop)) = places.min_by_key(|(at, stop)| (at + stop.len(), *at)) {
            self.found = Some(stop.clone());
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text has ended: what was held back belongs to it.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of what is held that a stop string may begin with.
    fn longest_beginning(&self) -> usize {
        let most = self.strings.iter().map(|s| s.len() - 1).max().unwrap_or(0).min(self.held.len());
        let begins = |n: &usize| {
            let at = self.held.len() - n;
            self.held.is_char_boundary(at)
                && self.strings.iter().any(|stop| stop.as_bytes().starts_with(&self.held.as_bytes()[at..]))
        };
        (1..=most).rev().find(begins).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text before the stop, with every cut into two or three pieces.
    fn cut_everywhere(text: &str, stops: &[&str]) -> (String, Option<String>) {
        let places: Vec<usize> = (0..=text.len()).filter(|i| text.is_char_boundary(*i)).collect();
        let mut results = Vec::new();
        for &a in &places {
            for &b in places.iter().filter(|b| **b >= a) {
                let mut stop = Stops::new(stops.iter().map(|s| (*s).to_owned()).collect());
                let mut out = String::new();
                for piece in [&text[..a], &text[a..b], &text[b..]] {
                    out += &stop.push(piece);
                }
                let found = stop.found().map(str::to_owned);
                if found.is_none() {
                    out += &stop.finish();
                }
                results.push((out, found));
            }
        }
        let first = results[0].clone();
        assert!(results.iter().all(|r| *r == first), "{results:?}");
        first
    }

    #[test]
    fn any_cut_gives_the_same_text() {
        for (text, stops, expected, found) in [
            ("Hello END more", &["END"][..], "Hello ", Some("END")),
            ("aab", &["aab"], "", Some("aab")),
            ("aaab", &["aab"], "a", Some("aab")),
            ("no stop EN", &["END"], "no stop EN", None),
            ("é🦄x🦄y", &["🦄y"], "é🦄x", Some("🦄y")),
            ("x\n\nQ: y", &["\n\n", "Q:"], "x", Some("\n\n")),
            ("abcX", &["abcX", "bc"], "a", Some("bc")),
            ("abcd", &[], "abcd", None),
        ] {
            assert_eq!(
                cut_everywhere(text, stops),
                (expected.to_owned(), found.map(str::to_owned)),
                "{text}"
            );
        }
    }

    #[test]
    fn nothing_that_could_begin_a_stop_is_let_out() {
        let mut stops = Stops::new(vec!["<|end|>".into()]);
        assert_eq!(stops.push("a<|en"), "a");
        assert_eq!(stops.push("x"), "<|enx");
        assert_eq!(stops.push("<|end|>z"), "");
        assert_eq!(stops.push("more"), "");
    }
}
