//! A machine as the planner sees it: plain figures, measured on it, published about it, or estimated.

use unicorn_core::{DeviceKind, TensorType};

/// Where a figure comes from. The later one of two is the less certain one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// Timed on the machine itself.
    Measured,
    /// Told by its maker or by people who measured one.
    Published,
    /// A guess.
    Estimated,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Origin::Measured => "measured",
            Origin::Published => "published",
            Origin::Estimated => "estimated",
        })
    }
}

/// A number and where it comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figure {
    /// In the unit of its place.
    pub value: f64,
    /// Where it comes from.
    pub origin: Origin,
}

/// Seconds for something that depends on the number of rows: straight lines between known points, the last of them going on.
#[derive(Clone, PartialEq, Debug)]
pub struct Curve {
    /// Rows and seconds, rows ascending.
    points: Vec<(f64, f64)>,
    origin: Origin,
}

impl Curve {
    /// A curve through `(rows, seconds)`. `None` without a point, with rows that do not ascend from 1 on, or with seconds that are no time.
    pub fn new(points: &[(usize, f64)], origin: Origin) -> Option<Curve> {
        let ascending = points.windows(2).all(|w| w[0].0 < w[1].0);
        let sound = points.iter().all(|(rows, seconds)| *rows > 0 && seconds.is_finite() && *seconds >= 0.0);
        let points: Vec<(f64, f64)> = points.iter().map(|(rows, seconds)| (*rows as f64, *seconds)).collect();
        (ascending && sound && !points.is_empty()).then_some(Curve { points, origin })
    }

    /// The same seconds for any number of rows.
    pub fn constant(seconds: f64, origin: Origin) -> Option<Curve> {
        Curve::new(&[(1, seconds)], origin)
    }

    /// Seconds for so many rows.
    pub fn at(&self, rows: usize) -> f64 {
        let rows = rows as f64;
        let first = self.points[0];
        if rows <= first.0 || self.points.len() == 1 {
            return first.1;
        }
        let upper = self.points.iter().position(|p| p.0 >= rows).unwrap_or(self.points.len() - 1).max(1);
        let ((r0, s0), (r1, s1)) = (self.points[upper - 1], self.points[upper]);
        let slope = (s1 - s0) / (r1 - r0);
        // Beyond the last point more rows never take less time.
        let slope = if rows > r1 { slope.max(0.0) } else { slope };
        s1 + slope * (rows - r1)
    }

    /// The known points: rows and seconds.
    pub fn points(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.points.iter().map(|(rows, seconds)| (*rows as usize, *seconds))
    }

    /// Where the points come from.
    pub fn origin(&self) -> Origin {
        self.origin
    }
}

/// A memory that one or several devices work from.
#[derive(Clone, PartialEq, Debug)]
pub struct Memory {
    /// For people.
    pub name: String,
    /// Bytes that models may take of it.
    pub bytes: u64,
    /// Bytes a second that all devices together can read; `None` where one device alone uses it.
    pub read_bytes_per_second: Option<Figure>,
}

/// How long a device takes for what.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceModel {
    /// As `--device` and `--place` take it.
    pub name: String,
    /// Kind.
    pub kind: DeviceKind,
    /// For people.
    pub description: String,
    /// Index of the memory that it works from.
    pub memory: usize,
    /// Devices with the same number take turns on the same hardware: a software driver and the processor that runs it.
    pub hardware: usize,
    /// Bytes a second at which it reads weights and keys alone.
    pub read_bytes_per_second: Figure,
    /// Seconds per element of a matrix of this type, for so many rows at once. At least one.
    pub products: Vec<(TensorType, Curve)>,
    /// Seconds per operation of attention (scores and sums), for so many consecutive tokens of a sequence.
    pub attention: Curve,
    /// Seconds of a mixer beside its products and its attention.
    pub mixer: Curve,
    /// Seconds of an ffn beside its products.
    pub ffn: Curve,
    /// Seconds of a head beside its product and its logits.
    pub head: Curve,
    /// Seconds that each logit takes beside its part of the product, by the type of the head's matrix: short rows are slow to sum, and the
    /// best logits are looked for. None where that is not known.
    pub logits: Vec<(TensorType, Figure)>,
    /// Seconds from when work is ready to when its end is known, beside the work itself. It keeps nothing else waiting.
    pub latency_seconds: Figure,
    /// Bytes a second at which residual streams come in and go out; infinite where the device works in the shared buffer.
    pub crossing_bytes_per_second: Figure,
    /// Seconds that coming in or going out takes in any case.
    pub crossing_seconds: Figure,
    /// Streams come in and go out beside work on others, on queues of their own.
    pub crosses_beside: bool,
}

impl DeviceModel {
    /// Seconds per element of a matrix of this type. A type without a curve is taken to be like the one nearest in size, its bytes read at
    /// the device's rate.
    pub(crate) fn product(&self, ty: TensorType, rows: usize) -> f64 {
        let bytes = |ty: TensorType| ty.block_bytes() as f64 / ty.block_len() as f64;
        let distance = |other: TensorType| (bytes(other) / bytes(ty)).ln().abs();
        let nearest = self.products.iter().min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)));
        let read = 1.0 / self.read_bytes_per_second.value;
        match nearest {
            Some((known, curve)) if *known == ty => curve.at(rows),
            Some((known, curve)) => {
                (curve.at(rows) + (bytes(ty) - bytes(*known)) * read).max(bytes(ty) * read)
            }
            None => bytes(ty) * read,
        }
    }

    /// Seconds per logit beside the product, of the type that is nearest in size.
    pub(crate) fn logit(&self, ty: TensorType) -> f64 {
        let bytes = |ty: TensorType| ty.block_bytes() as f64 / ty.block_len() as f64;
        let distance = |other: TensorType| (bytes(other) / bytes(ty)).ln().abs();
        self.logits.iter().min_by(|a, b| distance(a.0).total_cmp(&distance(b.0))).map_or(0.0, |l| l.1.value)
    }

    /// True where a curve for products with this type was given.
    pub fn knows(&self, ty: TensorType) -> bool {
        self.products.iter().any(|p| p.0 == ty)
    }

    /// The least certain of the figures.
    pub fn origin(&self) -> Origin {
        let figures = [self.read_bytes_per_second, self.latency_seconds, self.crossing_bytes_per_second];
        let curves = [&self.attention, &self.mixer, &self.ffn, &self.head];
        let products = self.products.iter().map(|p| p.1.origin());
        let all = figures.iter().map(|f| f.origin).chain(curves.map(Curve::origin)).chain(products);
        all.max().unwrap_or(Origin::Estimated)
    }
}

/// The devices of a machine and what they share.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Machine {
    /// The memories.
    pub memories: Vec<Memory>,
    /// The devices.
    pub devices: Vec<DeviceModel>,
}

impl Machine {
    /// Errors with what contradicts itself: figures must be positive numbers, and every device must have a memory that is there.
    pub fn check(&self) -> Result<(), String> {
        let positive = |what: String, value: f64| match value > 0.0 && !value.is_nan() {
            true => Ok(()),
            false => Err(format!("{what} is {value}, which is no positive number")),
        };
        for memory in &self.memories {
            if let Some(figure) = memory.read_bytes_per_second {
                positive(format!("the bandwidth of {}", memory.name), figure.value)?;
            }
        }
        for (index, device) in self.devices.iter().enumerate() {
            let name = &device.name;
            if self.devices[..index].iter().any(|other| other.name == *name) {
                return Err(format!("there are two devices with the name {name}"));
            }
            if device.memory >= self.memories.len() {
                return Err(format!("{name} has memory {}, which is not there", device.memory));
            }
            if device.products.is_empty() {
                return Err(format!("{name} has no rate for matrix products"));
            }
            positive(format!("the read bandwidth of {name}"), device.read_bytes_per_second.value)?;
            positive(format!("the crossing rate of {name}"), device.crossing_bytes_per_second.value)?;
            let logits = device.logits.iter().map(|l| ("time of a logit", l.1));
            let times = [("latency", device.latency_seconds), ("crossing", device.crossing_seconds)];
            for (what, figure) in times.into_iter().chain(logits) {
                if !figure.value.is_finite() || figure.value < 0.0 {
                    return Err(format!("the {what} of {name} is {} s, which is no time", figure.value));
                }
            }
        }
        if self.devices.is_empty() { Err("there is no device".to_owned()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::testing::device;

    #[test]
    fn curves_are_straight_between_points_and_go_on() {
        let curve = Curve::new(&[(1, 1.0), (9, 2.0), (17, 6.0)], Origin::Measured).unwrap();
        let at = [0, 1, 5, 9, 13, 17, 25].map(|rows| curve.at(rows));
        assert_eq!(at, [1.0, 1.0, 1.5, 2.0, 4.0, 6.0, 10.0]);
        // A last part that falls goes on level.
        let falling = Curve::new(&[(1, 3.0), (2, 1.0)], Origin::Measured).unwrap();
        assert_eq!((falling.at(2), falling.at(50)), (1.0, 1.0));
        assert_eq!(Curve::constant(2.0, Origin::Estimated).unwrap().at(1000), 2.0);
        for bad in [&[][..], &[(0, 1.0)], &[(2, 1.0), (2, 1.0)], &[(1, f64::NAN)], &[(1, -1.0)]] {
            assert_eq!(Curve::new(bad, Origin::Measured), None, "{bad:?}");
        }
    }

    #[test]
    fn unknown_types_are_like_the_nearest_and_never_faster_than_memory() {
        let mut device = device("a", 0);
        device.read_bytes_per_second.value = 1e9;
        let curve = |seconds| Curve::constant(seconds, Origin::Measured).unwrap();
        device.products = vec![(TensorType::Q8_0, curve(5e-9)), (TensorType::F32, curve(8e-9))];
        assert_eq!(device.product(TensorType::Q8_0, 1), 5e-9);
        // A Q6_K element has 0.820 bytes, a Q8_0 one 1.0625.
        let q6 = device.product(TensorType::Q6_K, 1);
        assert!((q6 - (5e-9 - 0.2422e-9)).abs() < 1e-12, "{q6}");
        device.products[0].1 = curve(1e-12);
        assert!((device.product(TensorType::Q6_K, 1) - 0.8203e-9).abs() < 1e-12);
    }

    #[test]
    fn contradictions_are_named() {
        let memory = Memory { name: "ram".into(), bytes: 1, read_bytes_per_second: None };
        let machine = Machine { memories: vec![memory], devices: vec![device("a", 0), device("b", 0)] };
        assert_eq!(machine.check(), Ok(()));
        let broken = |change: &dyn Fn(&mut Machine)| {
            let mut machine = machine.clone();
            change(&mut machine);
            machine.check().unwrap_err()
        };
        assert!(broken(&|m| m.devices.clear()).contains("no device"));
        assert!(broken(&|m| m.devices[1].name = "a".into()).contains("two devices"));
        assert!(broken(&|m| m.devices[1].memory = 1).contains("b has memory 1"));
        assert!(broken(&|m| m.devices[0].products.clear()).contains("matrix products"));
        assert!(broken(&|m| m.devices[0].read_bytes_per_second.value = 0.0).contains("read bandwidth of a"));
        assert!(broken(&|m| m.devices[0].latency_seconds.value = f64::NAN).contains("latency of a"));
    }
}
