//! What the devices did and when: a file for Perfetto or chrome://tracing, and how much of the time they worked at once.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use unicorn_core::ModelSpec;
use unicorn_engine::{Engine, Occupancy, Timeline};

use crate::config::Config;
use crate::output::say;

/// A trace under way.
pub struct Trace {
    file: Option<PathBuf>,
    /// How busy the devices were is said at the end.
    tells: bool,
}

impl Trace {
    /// Keeps the timeline of an engine from now on, where a file wants it, or several devices and a verbose person.
    pub fn start(engine: &mut Engine, file: Option<&Path>, config: &Config) -> Trace {
        let tells = config.explains() && engine.devices().len() > 1;
        if tells || file.is_some() {
            engine.keep_timeline(true);
        }
        Trace { file: file.map(Path::to_owned), tells }
    }

    /// Writes the file and says how busy the devices were.
    ///
    /// Errors when the file cannot be written.
    pub fn finish(self, engine: &mut Engine) -> anyhow::Result<()> {
        let Some(timeline) = engine.keep_timeline(false) else { return Ok(()) };
        let names: Vec<String> = engine.devices().iter().map(|d| d.profile().name.clone()).collect();
        if self.tells {
            busy(&timeline.occupancy(names.len()), &names).iter().for_each(|line| say!("{line}"));
        }
        if let Some(path) = &self.file {
            let write = || -> std::io::Result<()> {
                let mut out = BufWriter::new(File::create(path)?);
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

/// One line on the whole, one for each device.
fn busy(occupancy: &Occupancy, names: &[String]) -> Vec<String> {
    let wall = occupancy.wall.as_secs_f64().max(1e-12);
    let mut lines = vec![format!(
        "overlap: {:.0} % of {wall:.2} s with several devices at work",
        100.0 * occupancy.overlap()
    )];
    lines.extend(names.iter().zip(&occupancy.busy).map(|(name, busy)| {
        let busy = busy.as_secs_f64();
        format!("  {name}: busy {:.0} %, idle {:.2} s", 100.0 * busy / wall, wall - busy)
    }));
    lines
}

/// The trace event format of Chrome: a lane (thread) for each device, times in microseconds.
fn write_events(
    out: &mut impl Write,
    timeline: &Timeline,
    spec: &ModelSpec,
    names: &[String],
) -> std::io::Result<()> {
    let Some(zero) = timeline.spans().iter().map(|s| s.start).min() else { return write!(out, "[]") };
    write!(out, "[")?;
    for (lane, name) in names.iter().enumerate() {
        let event = json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}});
        writeln!(out, "{event},")?;
    }
    for (i, span) in timeline.spans().iter().enumerate() {
        let kinds: Vec<String> = spec.blocks[span.blocks.clone()]
            .iter()
            .take(2)
            .map(|b| format!("{:?}", b.kind()).to_lowercase())
            .collect();
        let more = if span.blocks.len() > 2 { format!(" .. {}", span.blocks.end - 1) } else { String::new() };
        let start = span.start.duration_since(zero).as_secs_f64() * 1e6;
        let event = json!({
            "name": format!("{} {}{more}", span.blocks.start, kinds.join("+")),
            "ph": "X", "pid": 1, "tid": span.device, "ts": start,
            "dur": span.end.duration_since(span.start).as_secs_f64() * 1e6,
            "args": {"batch": span.flight, "rows": span.rows},
        });
        let comma = if i + 1 < timeline.spans().len() { "," } else { "" };
        writeln!(out, "{event}{comma}")?;
    }
    write!(out, "]")
}
