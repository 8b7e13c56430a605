//! Aligned tables: plain text for terminals, and Markdown.

use crate::clean::one_line;

/// Alignment of a column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows of text under headings.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new<'h>(columns: impl IntoIterator<Item = (&'h str, Align)>) -> Table {
        Table { columns: columns.into_iter().map(|(h, a)| (h.to_owned(), a)).collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty, surplus ones are dropped. Cells come from files too: they stay on their line.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let mut row: Vec<String> = cells.into_iter().map(|cell| one_line(&cell.into())).collect();
        row.resize(self.columns.len(), String::new());
        self.rows.push(row);
    }

    /// Plain text: columns two spaces apart, no trailing spaces, each line ended.
    pub fn text(&self) -> String {
        let widths = self.widths(0);
        let mut out = String::new();
        let headings: Vec<String> = self.columns.iter().map(|(h, _)| h.clone()).collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let line: Vec<String> = self.pad(row, &widths);
            out.push_str(line.join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    /// A Markdown table, aligned for reading as text too.
    pub fn markdown(&self) -> String {
        let widths = self.widths(3);
        let headings: Vec<String> = self.columns.iter().map(|(h, _)| h.clone()).collect();
        let rule: Vec<String> = self
            .columns
            .iter()
            .zip(&widths)
            .map(|((_, align), width)| match align {
                Align::Left => "-".repeat(*width),
                Align::Right => format!("{}:", "-".repeat(width - 1)),
            })
            .collect();
        let mut out = String::new();
        for row in [&headings, &rule].into_iter().chain(&self.rows) {
            let cells: Vec<String> = row.iter().map(|c| c.replace('|', "\\|")).collect();
            out.push_str(&format!("| {} |\n", self.pad(&cells, &widths).join(" | ")));
        }
        out
    }

    fn widths(&self, least: usize) -> Vec<usize> {
        let cell = |i: usize| self.rows.iter().map(move |r| r[i].chars().count());
        let width = |(i, (h, _)): (usize, &(String, Align))| cell(i).chain([h.chars().count(), least]).max();
        self.columns.iter().enumerate().map(|c| width(c).unwrap_or(least)).collect()
    }

    fn pad(&self, row: &[String], widths: &[usize]) -> Vec<String> {
        let columns = self.columns.iter().zip(row).zip(widths);
        columns
            .map(|(((_, align), cell), width)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            })
            .collect()
    }
}

/// `text` cut to `width` characters, the end marked with `…`; control characters are shown escaped.
pub fn clip(text: &str, width: usize) -> String {
    // Escapes only lengthen, so a little more than `width` is enough to look at.
    let beginning: String = text.chars().take(width + 1).collect();
    let clean = one_line(&beginning);
    if clean.chars().count() <= width {
        return clean;
    }
    clean.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new([("name", Align::Left), ("n", Align::Right)]);
        table.row(["a|b", "5"]);
        table.row(["long name", "1234"]);
        table
    }

    #[test]
    fn text_is_aligned_without_trailing_spaces() {
        assert_eq!(sample().text(), "name          n\na|b           5\nlong name  1234\n");
    }

    #[test]
    fn markdown_escapes_bars_and_marks_alignment() {
        let text = sample().markdown();
        assert_eq!(text.lines().nth(1), Some("| --------- | ---: |"));
        assert_eq!(text.lines().nth(2), Some("| a\\|b      |    5 |"));
    }

    #[test]
    fn short_rows_are_filled() {
        let mut table = Table::new([("a", Align::Left), ("b", Align::Left)]);
        table.row(["only"]);
        assert_eq!(table.text(), "a     b\nonly\n");
    }

    #[test]
    fn cells_stay_in_their_place() {
        let mut table = Table::new([("a", Align::Left), ("b", Align::Left)]);
        table.row(["x\n\x1b[2J", "y"]);
        assert_eq!(table.text(), "a             b\nx\\n\\u001b[2J  y\n");
    }

    #[test]
    fn clip_escapes_and_marks() {
        assert_eq!(clip("a\nb", 10), "a\\nb");
        assert_eq!(clip("abcdef", 4), "abc…");
        assert_eq!(clip("abcd", 4), "abcd");
    }
}
