//! Medians and tables.

/// Median and spread of some samples.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// Median (of an even number the mean of the middle two), least and greatest; `None` of nothing.
pub fn spread(samples: &[f64]) -> Option<Spread> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 };
    Some(Spread { median, min, max })
}

impl std::fmt::Display for Spread {
    /// `123.4 (120.0-125.1)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.1} ({:.1}-{:.1})", self.median, self.min, self.max);
        f.pad(&text)
    }
}

/// A Markdown table whose source is aligned as well. The first column is left-aligned, the others right.
pub fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<String>| {
        let mut line = String::from("|");
        for (i, cell) in cells.iter().enumerate() {
            let padded = if i == 0 {
                format!(" {cell:<w$} |", w = widths[i])
            } else {
                format!(" {cell:>w$} |", w = widths[i])
            };
            line.push_str(&padded);
        }
        line + "\n"
    };
    let mut table = line(header.iter().map(|h| h.to_string()).collect());
    let rule =
        |(i, w): (usize, &usize)| if i == 0 { "-".repeat(*w) } else { format!("{}:", "-".repeat(w - 1)) };
    table.push_str(&line(widths.iter().enumerate().map(rule).collect()));
    for row in rows {
        table.push_str(&line(row.clone()));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(spread(&[100.04, 90.0]).unwrap().to_string(), "95.0 (90.0-100.0)");
    }

    #[test]
    fn tables_are_aligned() {
        let rows =
            vec![vec!["Q4_0".to_string(), "1.5".to_string()], vec!["F16".to_string(), "10.25".to_string()]];
        let expected = "| model | ratio |\n| ----- | ----: |\n| Q4_0  |   1.5 |\n| F16   | 10.25 |\n";
        assert_eq!(markdown(&["model", "ratio"], &rows), expected);
    }
}
