//! The engine's pump as it would run: the same schedule, the same cut into batches, the same order of work, on devices that are only
//! figures.

use std::ops::Range;

use unicorn_core::{BatchShape, Crossing, ModelSpec, Span};

use super::machine::{DeviceModel, Machine};
use super::predict::{Piece, piece};
use crate::engine::batching::{self, Ready, Room};
use crate::need::room;
use crate::schedule::Schedule;
use crate::{EngineOptions, Placement};

/// What each of several equal sequences is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// A prompt of `prompt` tokens behind `past` positions, then so many tokens of an answer: with one it is prefill alone.
    Answer { past: usize, prompt: usize, tokens: usize },
    /// So many tokens one by one behind `past` positions.
    Decode { past: usize, tokens: usize },
}

/// How a task went.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Simulated {
    /// Seconds from the start until the last token is known; infinite if it never is.
    pub seconds: f64,
    /// Seconds in which each device worked.
    pub busy: Vec<f64>,
    /// Seconds in which at least two devices worked.
    pub several: f64,
    /// Pieces of work.
    pub submits: u64,
    /// Residual streams that crossed from one device to another.
    pub crossings: u64,
    /// Bytes of these.
    pub crossing_bytes: u64,
}

impl Simulated {
    /// The same over and over.
    pub(crate) fn times(self, factor: f64) -> Simulated {
        let count = |n: u64| (n as f64 * factor).round() as u64;
        Simulated {
            seconds: self.seconds * factor,
            busy: self.busy.into_iter().map(|busy| busy * factor).collect(),
            several: self.several * factor,
            submits: count(self.submits),
            crossings: count(self.crossings),
            crossing_bytes: count(self.crossing_bytes),
        }
    }
}

/// What a simulation knows about the devices.
pub(crate) struct Devices<'a> {
    /// What each works from, and shares.
    pub machine: &'a Machine,
    /// How long work takes: device, blocks, shape of the batch, crossing.
    pub piece: &'a PieceOf<'a>,
}

/// What work on a device over these blocks takes.
type PieceOf<'a> = dyn Fn(usize, &Range<usize>, &BatchShape, Crossing) -> Piece + 'a;

/// One sequence.
struct Sequence {
    launched: usize,
    /// Tokens that it has: prompt and generated.
    tokens: usize,
    prompt: usize,
    /// Tokens that it generates yet.
    left: usize,
    decodes: bool,
}

/// A batch on its way.
struct Flight {
    id: usize,
    shape: BatchShape,
    /// Its sequences, and whether their last token is read.
    slices: Vec<(usize, bool)>,
    /// When each step ended.
    ended: Vec<Option<f64>>,
    /// Steps handed to their devices.
    issued: usize,
    /// Flights before this one that have tokens of the same sequences.
    after: Vec<usize>,
    landed: Option<f64>,
}

/// What of a piece of work is done where: the stream comes in, the blocks run, the stream goes out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Import,
    Run,
    Export,
}

/// Work that is ready or runs.
#[derive(Clone, Copy)]
struct Job {
    flight: usize,
    step: usize,
    ready: f64,
    piece: Piece,
    part: Part,
    /// Seconds of this part that are left, alone on its device.
    left: f64,
}

impl Job {
    /// The same work's next part that takes time, or the last one.
    fn at(self, part: Part, ready: f64) -> Job {
        let seconds = match part {
            Part::Import => self.piece.import,
            Part::Run => self.piece.seconds,
            Part::Export => self.piece.export,
        };
        Job { part, ready, left: seconds, ..self }
    }
}

/// The simulation of a task under a placement with [`DeviceModel`]s.
pub(crate) fn simulate(
    spec: &ModelSpec,
    placement: &Placement,
    machine: &Machine,
    options: &EngineOptions,
    sequences: usize,
    task: Task,
) -> Simulated {
    let piece = |device: usize, blocks: &Range<usize>, shape: &BatchShape, crossing: Crossing| {
        let device: &DeviceModel = &machine.devices[device];
        piece(device, &spec.blocks[blocks.clone()], shape, options.kv_type, crossing, spec.width)
    };
    run(spec, placement, &Devices { machine, piece: &piece }, options, sequences, task)
}

/// The simulation of a task with any times of work.
pub(crate) fn run(
    spec: &ModelSpec,
    placement: &Placement,
    devices: &Devices<'_>,
    options: &EngineOptions,
    sequences: usize,
    task: Task,
) -> Simulated {
    let count = devices.machine.devices.len();
    let sequence = || match task {
        Task::Answer { past, prompt, tokens } => {
            Sequence { launched: past, tokens: past + prompt, prompt, left: tokens, decodes: false }
        }
        Task::Decode { past, tokens } => {
            Sequence { launched: past, tokens: past + 1, prompt: past, left: tokens, decodes: true }
        }
    };
    let mut pump = Pump {
        devices,
        schedules: [0, 1].map(|outputs| Schedule::new(spec, placement, outputs)),
        room: room(placement, options),
        row_bytes: (spec.width * size_of::<f32>()) as u64,
        sequences: (0..sequences).map(|_| sequence()).collect(),
        flights: Vec::new(),
        launched: 0,
        queues: vec![Vec::new(); LANES * count],
        running: vec![None; LANES * count],
        now: 0.0,
        out: Simulated { busy: vec![0.0; count], ..Simulated::default() },
    };
    pump.run();
    pump.out
}

/// What each device does at once: its work, streams on their way in, streams on their way out.
const LANES: usize = 3;

struct Pump<'a> {
    devices: &'a Devices<'a>,
    schedules: [Schedule; 2],
    room: Room,
    row_bytes: u64,
    sequences: Vec<Sequence>,
    flights: Vec<Flight>,
    launched: usize,
    /// Work that is ready, or will be: of all devices first what runs, then what comes in, then what goes out.
    queues: Vec<Vec<Job>>,
    running: Vec<Option<Job>>,
    now: f64,
    out: Simulated,
}

impl Pump<'_> {
    fn run(&mut self) {
        loop {
            self.land();
            self.launch_all();
            self.issue();
            self.begin();
            if self.sequences.iter().all(|s| s.left == 0) {
                self.out.seconds = self.now;
                return;
            }
            if !self.advance() {
                // Nothing runs and nothing will: a schedule that cannot end.
                self.out.seconds = f64::INFINITY;
                return;
            }
        }
    }

    fn schedule(&self, flight: &Flight) -> &Schedule {
        &self.schedules[usize::from(flight.shape.outputs > 0)]
    }

    /// The host reads what has landed by now.
    fn land(&mut self) {
        while let Some(at) = self.flights.iter().position(|f| f.landed.is_some_and(|at| at <= self.now)) {
            let flight = self.flights.remove(at);
            for (index, read) in flight.slices {
                let sequence = &mut self.sequences[index];
                if read {
                    sequence.left = sequence.left.saturating_sub(1);
                    sequence.tokens += 1;
                    sequence.decodes = true;
                }
            }
        }
    }

    fn launch_all(&mut self) {
        while self.flights.len() < self.room.flights {
            let ready = |s: &Sequence| s.left > 0 && s.launched < s.tokens;
            let indices: Vec<usize> =
                (0..self.sequences.len()).filter(|i| ready(&self.sequences[*i])).collect();
            let of = |i: &usize| {
                let s = &self.sequences[*i];
                Ready { pending: s.tokens - s.launched, prompt: s.prompt, decodes: s.decodes }
            };
            let turns: Vec<Ready> = indices.iter().map(of).collect();
            let decoding = self.sequences.iter().filter(|s| s.left > 0 && s.decodes).count();
            let next = batching::next(&turns, decoding, self.flights.len(), self.room);
            if next.is_empty() {
                return;
            }
            self.launch(next.into_iter().map(|(i, tokens)| (indices[i], tokens)).collect());
        }
    }

    fn launch(&mut self, planned: Vec<(usize, usize)>) {
        let mut shape = BatchShape { spans: Vec::new(), outputs: 0 };
        let mut slices = Vec::new();
        for (index, tokens) in planned {
            let sequence = &mut self.sequences[index];
            shape.spans.push(Span::new(sequence.launched, tokens));
            sequence.launched += tokens;
            let read = sequence.launched == sequence.tokens;
            shape.outputs += usize::from(read);
            slices.push((index, read));
        }
        let shares = |f: &&Flight| f.slices.iter().any(|s| slices.iter().any(|mine| mine.0 == s.0));
        let after = self.flights.iter().filter(shares).map(|f| f.id).collect();
        let steps = self.schedules[usize::from(shape.outputs > 0)].steps.len();
        let id = self.launched;
        self.launched += 1;
        let ended = vec![None; steps];
        self.flights.push(Flight { id, shape, slices, ended, issued: 0, after, landed: None });
    }

    /// When a step can begin: what it waits for has ended, and if on another device, that is known. `None` while that is open.
    fn ready(&self, flight: &Flight, step: usize) -> Option<f64> {
        let schedule = self.schedule(flight);
        let here = schedule.steps[step].device;
        let latency = |device: usize| self.devices.machine.devices[device].latency_seconds.value;
        // Of the two latencies each has half: telling the end, and beginning.
        let known = |ended: f64, device: usize| match device == here {
            true => ended,
            false => ended + (latency(device) + latency(here)) / 2.0,
        };
        let mut ready = self.now;
        if step > 0 {
            ready = ready.max(known(flight.ended[step - 1]?, schedule.steps[step - 1].device));
        }
        if schedule.steps[step].mixes {
            for other in self.flights.iter().filter(|f| flight.after.contains(&f.id)) {
                if let Some(ended) = other.ended.get(step) {
                    ready = ready.max(known((*ended)?, self.schedule(other).steps[step].device));
                }
            }
        }
        Some(ready)
    }

    /// Hands steps to their devices as soon as it is known when they can begin.
    fn issue(&mut self) {
        for at in 0..self.flights.len() {
            let flight = &self.flights[at];
            let step = flight.issued;
            if step >= flight.ended.len() || (step > 0 && flight.ended[step - 1].is_none()) {
                continue;
            }
            let Some(ready) = self.ready(flight, step) else { continue };
            let what = &self.schedule(flight).steps[step];
            let (device, crossing) = (what.device, what.crossing);
            let piece = (self.devices.piece)(device, &what.blocks, &flight.shape, crossing);
            self.out.submits += 1;
            if crossing.import {
                self.out.crossings += 1;
                self.out.crossing_bytes += self.row_bytes * flight.shape.rows() as u64;
            }
            let flight = flight.id;
            let job = Job { flight, step, ready, piece, part: Part::Run, left: piece.seconds };
            if piece.import > 0.0 {
                self.push(device, job.at(Part::Import, ready));
            } else {
                self.push(device, job);
            }
            self.flights[at].issued += 1;
        }
    }

    fn count(&self) -> usize {
        self.devices.machine.devices.len()
    }

    fn push(&mut self, device: usize, job: Job) {
        let lane = match job.part {
            Part::Run => 0,
            Part::Import => 1,
            Part::Export => 2,
        };
        let index = lane * self.count() + device;
        self.queues[index].push(job);
    }

    /// Idle devices take what has been ready longest.
    fn begin(&mut self) {
        for device in 0..self.queues.len() {
            if self.running[device].is_some() {
                continue;
            }
            let queue = &self.queues[device];
            let ready = (0..queue.len()).filter(|i| queue[*i].ready <= self.now);
            let order = |a: &usize, b: &usize| {
                let key = |i: usize| (queue[i].ready, queue[i].flight);
                key(*a).partial_cmp(&key(*b)).unwrap_or(std::cmp::Ordering::Equal)
            };
            if let Some(first) = ready.min_by(order) {
                self.running[device] = Some(self.queues[device].remove(first));
            }
        }
    }

    /// Goes on to the next moment at which something ends or becomes ready. False when there is none.
    fn advance(&mut self) -> bool {
        let speeds = self.speeds();
        let ends = self.running.iter().zip(&speeds).filter_map(|(job, speed)| {
            let job = job.as_ref()?;
            Some(self.now + job.left / speed.max(1e-12))
        });
        let later = |at: &f64| *at > self.now;
        let idle = |d: &usize| self.running[*d].is_none();
        let idle: Vec<usize> = (0..self.queues.len()).filter(idle).collect();
        let readies = idle.iter().flat_map(|d| self.queues[*d].iter().map(|j| j.ready)).filter(later);
        let landings = self.flights.iter().filter_map(|f| f.landed).filter(later);
        let Some(next) = ends.chain(readies).chain(landings).min_by(f64::total_cmp) else { return false };
        let passed = next - self.now;
        let working = self.running[..self.count()].iter().flatten().count();
        self.out.several += if working > 1 { passed } else { 0.0 };
        self.now = next;
        for lane in 0..self.running.len() {
            let Some(mut job) = self.running[lane].take() else { continue };
            let device = lane % self.count();
            if job.part == Part::Run {
                self.out.busy[device] += passed;
            }
            job.left -= passed * speeds[lane];
            if job.left > (job.piece.seconds * 1e-9).max(next * 1e-15) {
                self.running[lane] = Some(job);
            } else {
                self.end(device, job);
            }
        }
        true
    }

    fn end(&mut self, device: usize, job: Job) {
        match job.part {
            Part::Import => return self.push(device, job.at(Part::Run, self.now)),
            Part::Run if job.piece.export > 0.0 => return self.push(device, job.at(Part::Export, self.now)),
            Part::Run | Part::Export => {}
        }
        let latency = self.devices.machine.devices[device].latency_seconds.value;
        let now = self.now;
        if let Some(flight) = self.flights.iter_mut().find(|f| f.id == job.flight) {
            flight.ended[job.step] = Some(now);
            if job.step + 1 == flight.ended.len() {
                flight.landed = Some(now + latency);
            }
        }
    }

    /// How fast each device gets on, 1 where nothing is in its way: devices on the same hardware take turns, and those that read from
    /// one memory share what it can give, none more than it wants.
    fn speeds(&self) -> Vec<f64> {
        let machine = self.devices.machine;
        let runs = |device: usize| self.running[device].is_some();
        // Streams that cross are little beside weights: they slow nothing down.
        let all: Vec<usize> = (0..self.count()).filter(|d| runs(*d)).collect();
        let mut speeds = vec![1.0; self.running.len()];
        for device in &all {
            let hardware = machine.devices[*device].hardware;
            let turns = all.iter().filter(|d| machine.devices[**d].hardware == hardware).count();
            speeds[*device] = 1.0 / turns as f64;
        }
        for (index, memory) in machine.memories.iter().enumerate() {
            let Some(total) = memory.read_bytes_per_second else { continue };
            let here = all.iter().copied().filter(|d| machine.devices[*d].memory == index);
            let wants = here.filter_map(|device| {
                let piece = self.running[device].as_ref()?.piece;
                (piece.seconds > 0.0).then(|| (device, speeds[device] * piece.bytes / piece.seconds))
            });
            let mut wants: Vec<(usize, f64)> = wants.collect();
            wants.sort_by(|a, b| a.1.total_cmp(&b.1));
            let (mut left, count) = (total.value, wants.len());
            for (served, (device, want)) in wants.into_iter().enumerate() {
                let given = want.min(left / (count - served) as f64);
                // A device alone has the rate that was measured for it alone.
                if count > 1 && want > 0.0 {
                    speeds[device] *= given / want;
                }
                left -= given;
            }
        }
        speeds
    }
}

#[cfg(test)]
mod tests;
