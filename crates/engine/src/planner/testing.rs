//! Devices for tests.

use unicorn_core::{DeviceKind, TensorType};

use super::machine::{Curve, DeviceModel, Figure, Machine, Memory, Origin};

/// A figure.
pub fn figure(value: f64) -> Figure {
    Figure { value, origin: Origin::Measured }
}

/// A device that takes no time for anything.
pub fn device(name: &str, memory: usize) -> DeviceModel {
    let free = || Curve::new(&[(1, 0.0)], Origin::Measured).unwrap();
    DeviceModel {
        name: name.into(),
        kind: DeviceKind::Cpu,
        description: "fake".into(),
        memory,
        hardware: memory + name.bytes().map(usize::from).sum::<usize>(),
        read_bytes_per_second: figure(1e30),
        products: vec![(TensorType::F32, free())],
        attention: free(),
        mixer: free(),
        ffn: free(),
        head: free(),
        logits: Vec::new(),
        latency_seconds: figure(0.0),
        crossing_bytes_per_second: figure(f64::INFINITY),
        crossing_seconds: figure(0.0),
        crosses_beside: false,
    }
}

/// A machine of such devices with a memory each, of this many bytes.
pub fn machine(devices: Vec<DeviceModel>, bytes: u64) -> Machine {
    let memory = |(i, d): (usize, &DeviceModel)| Memory {
        name: format!("memory of {}", d.name),
        bytes,
        read_bytes_per_second: (i > 99).then_some(figure(1.0)),
    };
    Machine { memories: devices.iter().enumerate().map(memory).collect(), devices }
}
