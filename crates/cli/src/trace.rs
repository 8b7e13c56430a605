//! What the devices did and when: a file for Perfetto or chrome://tracing, and how much of the time they worked at once.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use unicorn_core::{MemoryUse, ModelSpec};
use unicorn_engine::{Activity, Engine, Lane, Occupancy, RunStats, Stalls, Timeline};

use crate::config::Config;
use crate::output::say;
use crate::units;

/// A trace under way.
pub struct Trace {
    file: Option<(PathBuf, File)>,
    /// What had crossed at the beginning, where it is said at the end what crossed and how busy the devices were.
    before: Option<Crossed>,
}

/// What went from device to device so far, and the bytes that each device copied and shared.
struct Crossed {
    stats: RunStats,
    devices: Vec<MemoryUse>,
}

impl Crossed {
    fn now(engine: &Engine) -> Crossed {
        Crossed { stats: engine.stats(), devices: engine.devices().iter().map(|d| d.memory()).collect() }
    }

    /// What came since `before`.
    fn lines(&self, before: &Crossed, names: &[String]) -> Vec<String> {
        let (now, then) = (&self.stats, &before.stats);
        let tokens = now.tokens - then.tokens;
        let all_and_each = |bytes: u64| match bytes.checked_div(tokens) {
            Some(each) if bytes > 0 => format!("{} ({} a token)", units::bytes(bytes), units::bytes(each)),
            _ => units::bytes(bytes),
        };
        let [hops, bytes, state] = [
            now.crossings - then.crossings,
            now.crossing_bytes - then.crossing_bytes,
            now.state_bytes - then.state_bytes,
        ];
        let each = units::bytes(bytes.checked_div(hops).unwrap_or(0));
        let mut lines = vec![format!(
            "crossings: {hops} of {each} each, {} in all; state that changed devices: {}",
            all_and_each(bytes),
            all_and_each(state)
        )];
        for (name, (now, then)) in names.iter().zip(self.devices.iter().zip(&before.devices)) {
            let [copied, shared] = [now.copied - then.copied, now.shared - then.shared].map(all_and_each);
            lines.push(format!("  {name}: copied {copied}, shared {shared}"));
        }
        lines
    }
}

impl Trace {
    /// Keeps the timeline of an engine from now on, where a file wants it, or several devices and a verbose person.
    ///
    /// Errors when the file cannot be made.
    pub fn start(engine: &mut Engine, file: Option<&Path>, config: &Config) -> anyhow::Result<Trace> {
        let before = (config.explains() && engine.devices().len() > 1).then(|| Crossed::now(engine));
        let make = |path: &Path| {
            let made = File::create(path).with_context(|| format!("--trace {}", path.display()));
            made.map(|file| (path.to_owned(), file))
        };
        let file = file.map(make).transpose()?;
        if before.is_some() || file.is_some() {
            engine.keep_timeline(true);
        }
        Ok(Trace { file, before })
    }

    /// Writes the file and says how busy the devices were.
    ///
    /// Errors when the file cannot be written.
    pub fn finish(self, engine: &mut Engine) -> anyhow::Result<()> {
        let Some(timeline) = engine.keep_timeline(false) else { return Ok(()) };
        let names: Vec<String> = engine.devices().iter().map(|d| d.profile().name.clone()).collect();
        if let Some(before) = &self.before {
            Crossed::now(engine).lines(before, &names).iter().for_each(|line| say!("{line}"));
            busy(&timeline.occupancy(names.len()), &names).iter().for_each(|line| say!("{line}"));
        }
        if let Some((path, file)) = self.file {
            let write = || -> std::io::Result<()> {
                let mut out = BufWriter::new(file);
                write_events(&mut out, &timeline, engine.spec(), &names)?;
                out.flush()
            };
            write().with_context(|| format!("--trace {}", path.display()))?;
            if timeline.dropped() > 0 {
                say!(
                    "--trace: the last {} steps are not in the file, which would grow too large",
                    timeline.dropped()
                );
            }
        }
        Ok(())
    }
}

/// One line on the whole, two for each device: how busy it was, and why it stood still for the rest.
fn busy(occupancy: &Occupancy, names: &[String]) -> Vec<String> {
    let wall = occupancy.wall.as_secs_f64().max(1e-12);
    let mut lines = vec![format!(
        "overlap: {:.0} % of {wall:.2} s with several devices at work",
        100.0 * occupancy.overlap()
    )];
    let share = |time: Duration| format!("{:.0} %", 100.0 * time.as_secs_f64() / wall);
    for ((name, busy), stalls) in names.iter().zip(&occupancy.busy).zip(&occupancy.stalls) {
        let Stalls { host, others, start, ends } = *stalls;
        let [busy, host, others, start, ends] = [*busy, host, others, start, ends].map(share);
        lines.push(format!(
            "  {name}: busy {busy}; waits for others {others}, for the host {host}, to start {start}; before its first work and after its last {ends}"
        ));
    }
    lines
}

/// A lane (thread) of the trace: a device, its copies, the host.
fn lane(lane: Lane, devices: usize) -> usize {
    match lane {
        Lane::Device(device) => device,
        Lane::Copies(device) => devices + device,
        Lane::Host => 2 * devices,
    }
}

fn lane_names(names: &[String]) -> Vec<String> {
    let copies = names.iter().map(|name| format!("{name}: copies"));
    names.iter().cloned().chain(copies).chain(["host: sampling".to_owned()]).collect()
}

/// `4 ffn`, `0 embedding+mixer .. 29`, `sampling`.
fn title(activity: &Activity, spec: &ModelSpec) -> String {
    let kind = |block: usize| {
        spec.blocks.get(block).map_or(String::new(), |b| format!("{:?}", b.kind()).to_lowercase())
    };
    match activity {
        Activity::Blocks(blocks) => {
            let kinds: Vec<String> = blocks.clone().take(2).map(kind).collect();
            let more = if blocks.len() > 2 { format!(" .. {}", blocks.end - 1) } else { String::new() };
            format!("{} {}{more}", blocks.start, kinds.join("+"))
        }
        Activity::Save(block) => format!("state of {block} out"),
        Activity::Restore(block) => format!("state of {block} in"),
        Activity::In(block) => format!("in for {block}"),
        Activity::Out(block) => format!("out of {block}"),
        Activity::Sampling => "sampling".to_owned(),
    }
}

/// The trace event format of Chrome, times in microseconds.
fn write_events(
    out: &mut impl Write,
    timeline: &Timeline,
    spec: &ModelSpec,
    names: &[String],
) -> std::io::Result<()> {
    let Some(zero) = timeline.spans().iter().map(|s| s.start).min() else { return write!(out, "[]") };
    write!(out, "[")?;
    let used: Vec<usize> = timeline.spans().iter().map(|s| lane(s.lane, names.len())).collect();
    for (lane, name) in lane_names(names).iter().enumerate().filter(|(lane, _)| used.contains(lane)) {
        let event = json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}});
        writeln!(out, "{event},")?;
        let order = json!({"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": lane, "args": {"sort_index": lane}});
        writeln!(out, "{order},")?;
    }
    for (i, (span, lane)) in timeline.spans().iter().zip(used).enumerate() {
        let start = span.start.duration_since(zero).as_secs_f64() * 1e6;
        let pages = matches!(span.activity, Activity::Save(_) | Activity::Restore(_));
        let count = if pages { "pages" } else { "rows" };
        let event = json!({
            "name": title(&span.activity, spec),
            "ph": "X", "pid": 1, "tid": lane, "ts": start,
            "dur": span.end.duration_since(span.start).as_secs_f64() * 1e6,
            "args": {"batch": span.flight, count: span.rows},
        });
        let comma = if i + 1 < timeline.spans().len() { "," } else { "" };
        writeln!(out, "{event}{comma}")?;
    }
    write!(out, "]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crosses_is_told_in_all_and_per_token() {
        let at = |tokens, crossing_bytes, copied| Crossed {
            stats: RunStats { tokens, crossings: 2 * tokens, crossing_bytes, ..RunStats::default() },
            devices: vec![MemoryUse { copied, ..MemoryUse::default() }],
        };
        let lines = at(30, 60_000, 25_000).lines(&at(10, 20_000, 5_000), &["cpu".to_owned()]);
        assert_eq!(
            lines,
            [
                "crossings: 40 of 1.00 kB each, 40.0 kB (2.00 kB a token) in all; state that changed devices: 0 B",
                "  cpu: copied 20.0 kB (1.00 kB a token), shared 0 B",
            ]
        );
        let nothing = at(10, 0, 0).lines(&at(10, 0, 0), &[]);
        assert_eq!(nothing, ["crossings: 0 of 0 B each, 0 B in all; state that changed devices: 0 B"]);
    }
}
