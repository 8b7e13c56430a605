//! What calibration found out about a device and what predictions were worth, as it is kept and as the planner takes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use unicorn_core::{DeviceProfile, TensorType};
use unicorn_engine::planner::{Curve, DeviceModel, Figure, Origin};

/// Rows, or tokens, with seconds.
pub type Points = Vec<(usize, f64)>;

/// The figures of one device.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Calibration {
    /// Bytes a second that weights are read at.
    pub read_bytes_per_second: f64,
    /// By the name of the type of the weights: seconds per element of a matrix, for so many rows.
    pub products: BTreeMap<String, Points>,
    /// Seconds per operation of attention, for so many tokens of a sequence.
    pub attention: Points,
    /// Seconds of a mixer beside products and attention, for so many rows.
    pub mixer: Points,
    /// Seconds of an ffn beside its products, for so many rows.
    pub ffn: Points,
    /// By the name of the type of a head's matrix: seconds per logit beside the product.
    pub logits: BTreeMap<String, f64>,
    /// Seconds between work and the knowledge that it is done.
    pub latency_seconds: f64,
    /// Seconds that a residual stream takes to come in or to go out, beside its bytes.
    pub crossing_seconds: f64,
    /// Bytes of it a second.
    pub crossing_bytes_per_second: f64,
}

impl Calibration {
    /// The types of weights that were timed.
    pub fn types(&self) -> impl Iterator<Item = TensorType> + '_ {
        self.products.keys().filter_map(|name| TensorType::parse(name))
    }

    /// The device as the planner sees it. `None` where figures are no rates or times: a damaged file.
    pub fn model(&self, profile: &DeviceProfile, memory: usize, hardware: usize) -> Option<DeviceModel> {
        let curve = |points: &Points| Curve::new(points, Origin::Measured);
        let time = |value: f64| {
            (value.is_finite() && value >= 0.0).then_some(Figure { value, origin: Origin::Measured })
        };
        let rate = |value: f64| time(value).filter(|f| f.value > 0.0);
        let products =
            self.products.iter().map(|(name, points)| Some((TensorType::parse(name)?, curve(points)?)));
        let products = products.collect::<Option<Vec<_>>>().filter(|p| !p.is_empty())?;
        let logits =
            self.logits.iter().map(|(name, seconds)| Some((TensorType::parse(name)?, time(*seconds)?)));
        let logits = logits.collect::<Option<Vec<_>>>()?;
        Some(DeviceModel {
            name: profile.name.clone(),
            kind: profile.kind,
            description: profile.description.clone(),
            memory,
            hardware,
            read_bytes_per_second: rate(self.read_bytes_per_second)?,
            products,
            attention: curve(&self.attention)?,
            mixer: curve(&self.mixer)?,
            ffn: curve(&self.ffn)?,
            head: Curve::constant(0.0, Origin::Measured)?,
            logits,
            latency_seconds: time(self.latency_seconds)?,
            crossing_bytes_per_second: rate(self.crossing_bytes_per_second)?,
            crossing_seconds: time(self.crossing_seconds)?,
            // Those with a memory of their own have queues for that.
            crosses_beside: !profile.unified_memory,
        })
    }
}

/// One prediction that met its measurement.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Grade {
    /// What kind of placement, with the other devices that it used.
    pub placement: String,
    /// The type of most of the weights: predictions for one are right where those for another are not.
    pub weights: String,
    /// What was predicted.
    pub phase: Phase,
    /// Measured over predicted seconds, before any correction.
    pub ratio: f64,
}

/// What is predicted and measured apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Reading a prompt.
    Prefill,
    /// Writing an answer.
    Decode,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Phase::Prefill => "prompt",
            Phase::Decode => "answer",
        })
    }
}

#[cfg(test)]
mod tests {
    use unicorn_core::Device;
    use unicorn_cpu::ReferenceDevice;

    use super::*;

    /// Figures of a device that reads a gigabyte a second.
    pub fn calibration() -> Calibration {
        Calibration {
            read_bytes_per_second: 1e9,
            products: BTreeMap::from([("Q8_0".to_owned(), vec![(1, 1e-9), (512, 5e-8)])]),
            attention: vec![(1, 1e-10)],
            mixer: vec![(1, 1e-6)],
            ffn: vec![(1, 1e-6)],
            logits: BTreeMap::from([("Q8_0".to_owned(), 1e-9)]),
            latency_seconds: 1e-5,
            crossing_seconds: 0.0,
            crossing_bytes_per_second: 1e10,
        }
    }

    #[test]
    fn sound_figures_make_a_model_and_others_none() {
        let profile = ReferenceDevice::new().profile().clone();
        let model = |change: &dyn Fn(&mut Calibration)| {
            let mut calibration = calibration();
            change(&mut calibration);
            calibration.model(&profile, 2, 3)
        };
        let sound = model(&|_| {}).unwrap();
        assert_eq!((sound.memory, sound.hardware, sound.origin()), (2, 3, Origin::Measured));
        assert!(sound.knows(TensorType::Q8_0) && !sound.knows(TensorType::F16));
        assert_eq!(model(&|c| c.products.clear()), None);
        assert_eq!(model(&|c| c.attention.clear()), None);
        assert_eq!(model(&|c| c.latency_seconds = -1.0), None);
        assert_eq!(model(&|c| c.logits.values_mut().for_each(|l| *l = -1.0)), None);
        assert_eq!(model(&|c| c.read_bytes_per_second = 0.0), None);
        assert_eq!(model(&|c| drop(c.products.insert("Q9".into(), vec![(1, 1.0)]))), None);
        let text = serde_json::to_string(&calibration()).unwrap();
        assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), calibration());
    }
}
