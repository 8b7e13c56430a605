//! What `unicorn plan` prints: the devices with their figures, the placements with what they would bring, the one to take with its reason.

use serde_json::{Value, json};
use unicorn_core::{ModelSpec, TensorType};
use unicorn_engine::EngineOptions;
use unicorn_engine::planner::{Curve, DeviceModel, Figure, Machine, PhasePrediction, Plan, Prediction};

use crate::clean::one_line;
use crate::planner::grades::corrected;
use crate::table::{Align, Table};
use crate::units;

/// What was planned.
pub struct Subject<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// How the engine would be set up.
    pub options: &'a EngineOptions,
    /// The devices.
    pub machine: &'a Machine,
    /// The machine, where it is not this one.
    pub about: Option<String>,
}

/// A plan for people and for programs.
pub struct Report<'a> {
    subject: &'a Subject<'a>,
    plan: &'a Plan,
}

/// Placements that are shown at most.
const SHOWN_MAX: usize = 12;
/// Characters of a full bar.
const BAR: usize = 30;

impl<'a> Report<'a> {
    /// Of this plan.
    pub fn new(subject: &'a Subject<'a>, plan: &'a Plan) -> Report<'a> {
        Report { subject, plan }
    }

    fn chosen(&self) -> Option<&Prediction> {
        self.plan.chosen.map(|index| &self.plan.ranked[index])
    }

    /// For a terminal, each line ended.
    pub fn text(&self) -> String {
        let Subject { spec, options, about, .. } = self.subject;
        let mut out = format!(
            "{}: {} parameters, {} of weights, context {} tokens\n",
            one_line(&spec.name),
            units::parameters(spec.parameters()),
            units::bytes(spec.weight_bytes()),
            options.context
        );
        out.extend(about.iter().map(|about| format!("{}\n", one_line(about))));
        out += "\n";
        out += &self.devices().text();
        out += "\n";
        out += &self.placements().text();
        match self.chosen() {
            Some(chosen) => out += &self.detail(chosen),
            None => out += &format!("\nno placement: {}\n", self.plan.reason),
        }
        out
    }

    /// Each device with its memory and its figures.
    fn devices(&self) -> Table {
        let machine = self.subject.machine;
        let mut table = Table::new([
            ("device", Align::Left),
            ("", Align::Left),
            ("memory", Align::Right),
            ("reads", Align::Right),
            ("type", Align::Left),
            ("products of 1 row", Align::Right),
            ("of 512", Align::Right),
            ("submits in", Align::Right),
            ("crossing", Align::Right),
            ("figures", Align::Left),
        ]);
        for device in &machine.devices {
            let ty = self.main_type(device);
            let rate = |rows: usize| {
                let curve = device.products.iter().find(|p| p.0 == ty).map(|p| &p.1);
                curve.map_or(0.0, |curve| 2.0 * rows as f64 / curve.at(rows).max(1e-30))
            };
            let crossing = device.crossing_bytes_per_second.value;
            table.row([
                device.name.clone(),
                device.description.clone(),
                units::bytes(machine.memories[device.memory].bytes),
                units::bandwidth(device.read_bytes_per_second.value),
                ty.name().to_owned(),
                units::arithmetic(rate(1), "FLOP"),
                units::arithmetic(rate(512), "FLOP"),
                units::seconds(device.latency_seconds.value),
                if crossing >= 1e12 { "free".to_owned() } else { units::bandwidth(crossing) },
                device.origin().to_string(),
            ]);
        }
        table
    }

    /// The type of most of the model's weights that a device has figures for.
    fn main_type(&self, device: &DeviceModel) -> TensorType {
        let weights = self.subject.spec.distinct_weights();
        let known = weights.iter().filter(|w| w.rows > 1 && device.knows(w.ty));
        let elements =
            |ty: TensorType| weights.iter().filter(|w| w.ty == ty).map(|w| w.elements() as u64).sum::<u64>();
        known.map(|w| w.ty).max_by_key(|ty| elements(*ty)).unwrap_or(device.products[0].0)
    }

    /// The best placements, and every device alone.
    fn placements(&self) -> Table {
        let machine = self.subject.machine;
        let mut columns = vec![
            ("placement", Align::Left),
            ("prompt tok/s", Align::Right),
            ("answer tok/s", Align::Right),
            ("together", Align::Right),
            ("overlap", Align::Right),
        ];
        columns.extend(machine.memories.iter().map(|m| (m.name.as_str(), Align::Right)));
        columns.push(("", Align::Left));
        let mut table = Table::new(columns);
        let shown = |(i, p): &(usize, &Prediction)| {
            *i < SHOWN_MAX || self.plan.chosen == Some(*i) || p.candidate.devices().len() == 1
        };
        for (index, p) in self.plan.ranked.iter().enumerate().filter(shown) {
            let rate = |phase: &Option<PhasePrediction>| {
                phase.as_ref().map_or("-".to_owned(), |p| units::three_digits(p.tokens_per_second()))
            };
            let mut row = vec![
                p.candidate.rules.clone(),
                rate(&p.prefill),
                rate(&p.decode),
                units::seconds(p.seconds()),
                p.prefill
                    .as_ref()
                    .or(p.decode.as_ref())
                    .map_or(String::new(), |p| units::percent(p.overlap())),
            ];
            row.extend(p.memory_bytes.iter().map(|b| units::bytes(*b)));
            row.push(match (&p.misfit, self.plan.chosen == Some(index)) {
                (Some(misfit), _) => misfit.to_string(),
                (None, true) => "<- this".to_owned(),
                (None, false) => String::new(),
            });
            table.row(row);
        }
        table
    }

    /// The placement to take: what each device does, what each memory holds, and why.
    fn detail(&self, chosen: &Prediction) -> String {
        let machine = self.subject.machine;
        let mut out = format!("\n{}: {}\n", chosen.candidate.rules, self.plan.reason);
        let phases = [("prompt", &chosen.prefill), ("answer", &chosen.decode)];
        for (what, phase) in phases {
            let Some(phase) = phase else { continue };
            let corrected = corrected(&phase.correction).map(|c| format!(", {c}")).unwrap_or_default();
            out += &format!(
                "{what} of {} tokens: {} tok/s, {}{corrected}\n",
                phase.tokens,
                units::three_digits(phase.tokens_per_second()),
                units::seconds(phase.seconds)
            );
            for device in chosen.candidate.devices() {
                let busy = phase.busy(device);
                let name = &machine.devices[device].name;
                out += &format!("  {name:<12} {} {}\n", bar(busy), units::percent(busy));
            }
        }
        for (memory, bytes) in machine.memories.iter().zip(&chosen.memory_bytes) {
            let share = *bytes as f64 / memory.bytes.max(1) as f64;
            let (used, all) = (units::bytes(*bytes), units::bytes(memory.bytes));
            out += &format!("{}: {used} of {all} {}\n", memory.name, bar(share));
        }
        out
    }

    /// One object; the names of its fields are the format.
    pub fn json(&self) -> Value {
        let Subject { spec, options, machine, about } = self.subject;
        let chosen = self.chosen();
        let rate = |phase: Option<&PhasePrediction>| phase.map(PhasePrediction::tokens_per_second);
        json!({
            "model": spec.name,
            "parameters": spec.parameters(),
            "weight_bytes": spec.weight_bytes(),
            "context": options.context,
            "simulated": about,
            "placement": chosen.map(|c| &c.candidate.rules),
            "prefill_tokens_per_second": rate(chosen.and_then(|c| c.prefill.as_ref())),
            "decode_tokens_per_second": rate(chosen.and_then(|c| c.decode.as_ref())),
            "memory_bytes": chosen.map(|c| self.memory(c)),
            "reason": self.plan.reason.to_string(),
            "devices": machine.devices.iter().map(|d| device_json(d, machine)).collect::<Vec<_>>(),
            "candidates": self.plan.ranked.iter().map(|p| self.candidate(p)).collect::<Vec<_>>(),
        })
    }

    /// Bytes by the name of the memory.
    fn memory(&self, p: &Prediction) -> Value {
        let memories = self.subject.machine.memories.iter().zip(&p.memory_bytes);
        Value::Object(memories.map(|(m, bytes)| (m.name.clone(), json!(bytes))).collect())
    }

    fn candidate(&self, p: &Prediction) -> Value {
        let devices = &self.subject.machine.devices;
        let phase = |phase: &Option<PhasePrediction>| {
            phase.as_ref().map(|phase| {
                let busy = p.candidate.devices().into_iter();
                let busy = busy.map(|d| (devices[d].name.clone(), json!(phase.busy(d)))).collect();
                json!({
                    "tokens_per_second": phase.tokens_per_second(),
                    "seconds": phase.seconds,
                    "busy": Value::Object(busy),
                    "overlap": phase.overlap(),
                    "crossings": phase.simulated.crossings,
                    "crossing_bytes": phase.simulated.crossing_bytes,
                    "correction": phase.correction.ratio,
                    "corrected_from_runs": phase.correction.runs,
                })
            })
        };
        json!({
            "placement": p.candidate.rules,
            "kind": p.candidate.kinds(self.subject.spec).map(|(kind, _)| kind.to_string()),
            "handover_seconds": p.handover_seconds,
            "seconds": p.seconds(),
            "prefill": phase(&p.prefill),
            "decode": phase(&p.decode),
            "memory_bytes": self.memory(p),
            "does_not_fit": p.misfit.as_ref().map(ToString::to_string),
        })
    }
}

fn device_json(device: &DeviceModel, machine: &Machine) -> Value {
    let figure = |f: Figure| json!({ "value": f.value, "origin": f.origin.to_string() });
    let curve = |c: &Curve| {
        let points: Vec<(usize, f64)> = c.points().collect();
        json!({ "rows_and_seconds": points, "origin": c.origin().to_string() })
    };
    let products = device.products.iter().map(|(ty, c)| (ty.name().to_owned(), curve(c))).collect();
    json!({
        "name": device.name,
        "description": device.description,
        "memory": machine.memories[device.memory].name,
        "memory_bytes": machine.memories[device.memory].bytes,
        "read_bytes_per_second": figure(device.read_bytes_per_second),
        "seconds_per_element": Value::Object(products),
        "seconds_per_attention_operation": curve(&device.attention),
        "mixer_seconds": curve(&device.mixer),
        "ffn_seconds": curve(&device.ffn),
        "head_seconds": curve(&device.head),
        "latency_seconds": figure(device.latency_seconds),
        "crossing_seconds": figure(device.crossing_seconds),
        "crossing_bytes_per_second": figure(device.crossing_bytes_per_second),
        "origin": device.origin().to_string(),
    })
}

/// A share as a bar: `[##########                    ]`.
fn bar(share: f64) -> String {
    let full = ((share * BAR as f64).round() as usize).min(BAR);
    format!("[{}{}]", "#".repeat(full), " ".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use unicorn_cases::shapes;
    use unicorn_engine::planner::{Ask, Candidate, Correction, plan};

    use super::*;
    use crate::planner::machine_file;

    fn planned(budget: Option<u64>) -> (ModelSpec, EngineOptions, Machine, Plan) {
        let spec = shapes::model("llama-1b", TensorType::Q4_K).unwrap();
        let options = EngineOptions { context: 640, ..EngineOptions::default() };
        let machine = machine_file::read("phoenix").unwrap().machine;
        let corrections = |_: &Candidate| [Correction { ratio: 1.25, error: 0.01, runs: 12 }; 2];
        let plan = plan(&Ask {
            spec: &spec,
            machine: &machine,
            options: &options,
            past: 0,
            prompt: 512,
            decode: 128,
            sequences: 1,
            budgets: &[budget; 3],
            check: None,
            corrections: &corrections,
            only: None,
        })
        .unwrap();
        (spec, options, machine, plan)
    }

    #[test]
    fn the_object_has_the_promised_fields() {
        let (spec, options, machine, plan) = planned(None);
        let subject = Subject { spec: &spec, options: &options, machine: &machine, about: None };
        let value = Report::new(&subject, &plan).json();
        let placement = value["placement"].as_str().unwrap();
        assert!(placement.parse::<unicorn_engine::PlaceRules>().is_ok(), "{placement}");
        for field in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
            assert!(value[field].as_f64().unwrap() > 1.0, "{field}");
        }
        let memory = value["memory_bytes"].as_object().unwrap();
        assert!(memory.values().next().unwrap().as_u64().unwrap() > spec.weight_bytes());
        assert!(value["candidates"].as_array().unwrap().len() > 10);
        assert_eq!(value["devices"][0]["origin"], "estimated");
        assert_eq!(value["devices"][0]["read_bytes_per_second"]["origin"], "estimated");
    }

    #[test]
    fn the_text_shows_devices_placements_bars_and_the_reason() {
        let (spec, options, machine, plan) = planned(None);
        let subject =
            Subject { spec: &spec, options: &options, machine: &machine, about: Some("phoenix: x".into()) };
        let text = Report::new(&subject, &plan).text();
        for part in ["Radeon 780M", "XDNA 1", "<- this", "0-15=cpu", "[###", "corrected by 0.80 from 12 runs"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains(&plan.reason.to_string()), "{text}");
        assert_eq!((bar(0.0).trim_matches(['[', ']']).trim(), bar(1.5).len()), ("", BAR + 2));
    }

    #[test]
    fn what_does_not_fit_is_shown_with_its_numbers() {
        let (spec, options, machine, plan) = planned(Some(100_000_000));
        let subject = Subject { spec: &spec, options: &options, machine: &machine, about: None };
        let report = Report::new(&subject, &plan);
        assert!(report.json()["placement"].is_null());
        let text = report.text();
        assert!(text.contains("no placement: it does not fit") && text.contains("of 100 MB"), "{text}");
    }
}
