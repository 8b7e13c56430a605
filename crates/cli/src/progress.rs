//! Showing downloads: a bar where stderr is a terminal, a few plain lines elsewhere.

use std::ops::ControlFlow;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use unicorn_hub::{Event, HubConfig, HubError, Reference};

use crate::clean::one_line;
use crate::config::Config;
use crate::interrupt::Catch;
use crate::output::say;
use crate::term;
use crate::units;

/// A model on this machine.
pub struct Fetched {
    /// Its file or folder.
    pub path: PathBuf,
    /// Files beside the weights that it lacks, of which the user was told.
    pub lacking: Vec<String>,
}

/// Returns where the model lies, fetching it first where it must be. Ctrl-C stops the download; what is there stays.
pub fn fetch(reference: &Reference, config: &Config) -> Result<Fetched, HubError> {
    fetch_with(reference, config, &config.hub)
}

/// As [`fetch`], with another configuration of the hub.
pub fn fetch_with(reference: &Reference, config: &Config, hub: &HubConfig) -> Result<Fetched, HubError> {
    let catch = Catch::new();
    let mut display = Display::new(config.talks(), term::stderr_is_terminal());
    let mut lacking = Vec::new();
    let result = unicorn_hub::pull(reference, hub, &crate::preview::check, &mut |event| {
        if let Event::Lacking { files, .. } = event {
            lacking.extend(files.iter().map(ToString::to_string));
        }
        display.show(event);
        if catch.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    display.clear();
    result.map(|path| Fetched { path, lacking })
}

/// Runs what fetches, and shows how far it is.
pub fn watch<T>(config: &Config, fetch: impl FnOnce(&mut dyn FnMut(Event<'_>) -> ControlFlow<()>) -> T) -> T {
    let mut display = Display::new(config.talks(), term::stderr_is_terminal());
    let done = fetch(&mut |event| {
        display.show(event);
        ControlFlow::Continue(())
    });
    display.clear();
    done
}

/// One download after the other.
enum Display {
    Silent,
    Lines(Lines),
    Bar(Option<ProgressBar>),
}

impl Display {
    fn new(talks: bool, terminal: bool) -> Display {
        match (talks, terminal) {
            (false, _) => Display::Silent,
            (true, true) => Display::Bar(None),
            (true, false) => Display::Lines(Lines::default()),
        }
    }

    fn show(&mut self, event: Event<'_>) {
        match self {
            Display::Silent => {}
            Display::Lines(lines) => {
                if let Some(line) = lines.line(event) {
                    say!("{line}");
                }
            }
            Display::Bar(bar) => show_bar(bar, event),
        }
    }

    fn clear(&mut self) {
        if let Display::Bar(bar) = self
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

fn show_bar(slot: &mut Option<ProgressBar>, event: Event<'_>) {
    match event {
        Event::Message(text) | Event::Lacking { text, .. } => match slot {
            Some(bar) => bar.suspend(|| say!("{text}")),
            None => say!("{text}"),
        },
        Event::Begin { file, have, total } => *slot = Some(bar(file, have, total)),
        Event::Advance { have, total, .. } => {
            if let Some(bar) = slot {
                if bar.length() != total {
                    total.into_iter().for_each(|t| bar.set_length(t));
                }
                bar.set_position(have);
            }
        }
        Event::Waiting => slot.iter().for_each(ProgressBar::tick),
        Event::End { file, bytes, verified } => {
            slot.take().iter().for_each(ProgressBar::finish_and_clear);
            say!("{}", ended(file, bytes, verified));
        }
        _ => {}
    }
}

fn bar(file: &str, have: u64, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{msg} [{bar:28}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {eta}",
        None => "{msg} {spinner} {decimal_bytes} {decimal_bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let bar = bar.with_style(style.progress_chars("=> ")).with_message(one_line(file)).with_position(have);
    // What was there before is no speed of this download.
    bar.reset_eta();
    bar
}

fn ended(file: &str, bytes: u64, verified: bool) -> String {
    format!("{file}: {}{}", units::bytes(bytes), if verified { ", hash verified" } else { "" })
}

/// Plain lines: begin, every tenth, end.
#[derive(Default)]
struct Lines {
    tenth: u64,
}

impl Lines {
    fn line(&mut self, event: Event<'_>) -> Option<String> {
        let tenth = |have: u64, total: Option<u64>| {
            total.filter(|t| *t > 0).map_or(0, |t| (u128::from(have) * 10 / u128::from(t)) as u64)
        };
        match event {
            Event::Message(text) | Event::Lacking { text, .. } => Some(text.to_owned()),
            Event::Begin { file, have, total } => {
                self.tenth = tenth(have, total);
                let size = total.map_or_else(|| "size unknown".to_owned(), units::bytes);
                let from =
                    if have > 0 { format!(", continued at {}", units::bytes(have)) } else { String::new() };
                Some(format!("{file}: {size}{from}"))
            }
            Event::Advance { file, have, total } => {
                let now = tenth(have, total);
                let crossed = now > self.tenth && now < 10;
                self.tenth = now;
                crossed.then(|| format!("{file}: {} %", now * 10))
            }
            Event::End { file, bytes, verified } => Some(ended(file, bytes, verified)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_come_every_tenth() {
        let mut lines = Lines::default();
        let total = Some(1000);
        let begin = lines.line(Event::Begin { file: "f", have: 150, total });
        assert_eq!(begin.as_deref(), Some("f: 1.00 kB, continued at 150 B"));
        let said: Vec<String> = (16..=100)
            .filter_map(|i| lines.line(Event::Advance { file: "f", have: i * 10, total }))
            .collect();
        assert_eq!(said.len(), 8, "{said:?}");
        assert_eq!(said[0], "f: 20 %");
        assert!(lines.line(Event::End { file: "f", bytes: 1000, verified: true }).is_some());
    }

    #[test]
    fn unknown_and_zero_sizes_do_no_harm() {
        let mut lines = Lines::default();
        assert_eq!(
            lines.line(Event::Begin { file: "f", have: 0, total: None }).as_deref(),
            Some("f: size unknown")
        );
        assert_eq!(lines.line(Event::Advance { file: "f", have: 9, total: None }), None);
        assert_eq!(lines.line(Event::Advance { file: "f", have: u64::MAX, total: Some(0) }), None);
    }
}
