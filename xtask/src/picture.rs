//! A picture of a trace, for documents: a lane for each device, a box for each step, coloured by what the step ran.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde::Deserialize;

#[derive(clap::Args)]
pub struct Args {
    /// What `unicorn run --trace FILE` or `unicorn bench --trace FILE` wrote
    trace: PathBuf,
    /// The picture to write
    svg: PathBuf,
    /// First millisecond to show
    #[arg(long, default_value_t = 0.0)]
    from: f64,
    /// Milliseconds to show [default: all]
    #[arg(long)]
    length: Option<f64>,
}

/// An event of the trace; other fields are left alone.
#[derive(Deserialize)]
struct Event {
    name: String,
    ph: String,
    tid: u64,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Deserialize, Default)]
struct Arguments {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    batch: u64,
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 150.0;
const LANE: f64 = 34.0;
const GAP: f64 = 10.0;
const TOP: f64 = 30.0;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let read = || anyhow::Ok(serde_json::from_slice::<Vec<Event>>(&std::fs::read(&args.trace)?)?);
    let events = read().with_context(|| args.trace.display().to_string())?;
    let steps: Vec<&Event> = events.iter().filter(|e| e.ph == "X").collect();
    ensure!(!steps.is_empty(), "{}: no step in it", args.trace.display());
    let end = steps.iter().map(|e| e.ts + e.dur).fold(0.0, f64::max) / 1e3;
    let length = args.length.unwrap_or(end - args.from);
    ensure!(length > 0.0, "nothing after {} ms: the trace ends at {end:.1} ms", args.from);
    let svg = draw(&events, args.from, length)?;
    std::fs::write(&args.svg, svg).with_context(|| args.svg.display().to_string())
}

/// Colours that people with any kind of sight tell apart; batches in turn are lighter and darker.
fn colour(event: &Event) -> &'static str {
    let odd = event.args.batch % 2 == 1;
    let has = |kind: &str| event.name.contains(kind);
    match (has("mixer"), has("ffn")) {
        (true, true) => ["#4477aa", "#77a3cf"][usize::from(odd)],
        (true, false) => ["#228833", "#66bb77"][usize::from(odd)],
        (false, true) => ["#cc6644", "#e59a80"][usize::from(odd)],
        (false, false) => ["#888888", "#aaaaaa"][usize::from(odd)],
    }
}

fn draw(events: &[Event], from: f64, length: f64) -> anyhow::Result<String> {
    let mut lanes: BTreeMap<u64, String> = BTreeMap::new();
    for event in events.iter().filter(|e| e.name == "thread_name") {
        lanes.insert(event.tid, event.args.name.clone().unwrap_or_default());
    }
    let place: BTreeMap<u64, f64> =
        lanes.keys().enumerate().map(|(i, lane)| (*lane, TOP + i as f64 * (LANE + GAP))).collect();
    let bottom = TOP + lanes.len() as f64 * (LANE + GAP);
    let height = bottom + 46.0;
    let x = |ms: f64| LEFT + (ms - from).clamp(0.0, length) / length * (WIDTH - LEFT - 20.0);
    let mut svg = String::new();
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="#ffffff"/>"##
    )?;
    for (lane, name) in &lanes {
        let y = place[lane] + LANE / 2.0 + 4.0;
        writeln!(
            svg,
            r##"<text x="{}" y="{y}" text-anchor="end" fill="#222222">{}</text>"##,
            LEFT - 8.0,
            escape(name)
        )?;
    }
    axis(&mut svg, bottom, length, |ms| x(from + ms))?;
    for event in events.iter().filter(|e| e.ph == "X") {
        let (start, end) = (event.ts / 1e3, (event.ts + event.dur) / 1e3);
        let (Some(y), true) = (place.get(&event.tid), end > from && start < from + length) else { continue };
        let (left, right) = (x(start), x(end));
        writeln!(
            svg,
            r##"<rect x="{left:.2}" y="{y}" width="{:.2}" height="{LANE}" fill="{}" stroke="#ffffff" stroke-width="0.5"><title>{}, batch {}, {:.2} ms</title></rect>"##,
            (right - left).max(0.3),
            colour(event),
            escape(&event.name),
            event.args.batch,
            event.dur / 1e3
        )?;
    }
    legend(&mut svg, bottom + 36.0)?;
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Five marks at most, at round numbers.
fn axis(svg: &mut String, y: f64, length: f64, x: impl Fn(f64) -> f64) -> anyhow::Result<()> {
    let rough = length / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
    let mut at = 0.0;
    while at <= length {
        let left = x(at);
        writeln!(svg, r##"<line x1="{left:.1}" y1="{TOP}" x2="{left:.1}" y2="{y}" stroke="#dddddd"/>"##)?;
        writeln!(
            svg,
            r##"<text x="{left:.1}" y="{}" text-anchor="middle" fill="#555555">{at} ms</text>"##,
            y + 12.0
        )?;
        at += step;
    }
    Ok(())
}

fn legend(svg: &mut String, y: f64) -> anyhow::Result<()> {
    let entries =
        [("#228833", "mixer"), ("#cc6644", "ffn"), ("#4477aa", "mixers and ffns"), ("#888888", "other")];
    for (i, (fill, name)) in entries.into_iter().enumerate() {
        let left = LEFT + i as f64 * 150.0;
        writeln!(svg, r##"<rect x="{left}" y="{}" width="12" height="12" fill="{fill}"/>"##, y - 11.0)?;
        writeln!(svg, r##"<text x="{}" y="{y}" fill="#222222">{name}</text>"##, left + 18.0)?;
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_become_boxes_in_their_lanes() {
        let trace = r#"[{"name":"thread_name","ph":"M","pid":1,"tid":0,"args":{"name":"cpu"}},
            {"name":"thread_name","ph":"M","pid":1,"tid":1,"args":{"name":"a<b"}},
            {"name":"0 mixer","ph":"X","pid":1,"tid":0,"ts":0,"dur":2000,"args":{"batch":0,"rows":4}},
            {"name":"1 ffn","ph":"X","pid":1,"tid":1,"ts":2000,"dur":3000,"args":{"batch":1,"rows":4}}]"#;
        let events: Vec<Event> = serde_json::from_str(trace).unwrap();
        let svg = draw(&events, 0.0, 5.0).unwrap();
        assert!(svg.contains(">cpu<") && svg.contains(">a&lt;b<"), "{svg}");
        assert!(svg.contains("0 mixer, batch 0, 2.00 ms") && svg.contains("#e59a80"), "{svg}");
        // Only what lies in the part that is shown.
        assert!(!draw(&events, 2.5, 1.0).unwrap().contains("0 mixer"));
    }
}
