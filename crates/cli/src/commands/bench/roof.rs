//! What a device could do at best: measured limits over the work that a model's shapes dictate.

use unicorn_core::{Cost, Instrument, RateKind, Roofline};
use unicorn_engine::bench::{BenchResult, Test};

/// Least seconds in which the bytes can be read.
pub fn seconds_to_read(cost: &Cost, roof: &Roofline) -> f64 {
    cost.bytes() as f64 / roof.read_bytes_per_second
}

/// Least seconds in which the operations can be done; matrix products by the rate that bounds their weights' type here, or by that of
/// matrix units where the device has them.
pub fn seconds_to_compute(cost: &Cost, roof: &Roofline, device: &dyn Instrument) -> f64 {
    let matrices =
        cost.matrix_flops.iter().map(|(ty, flops)| *flops as f64 / roof.best_rate(device.rate_kind(*ty)));
    matrices.sum::<f64>() + cost.attention_flops as f64 / roof.best_rate(RateKind::Float)
}

/// Part of the speed that the limit allows, in the median: of the read bandwidth for decode, of the arithmetic rate for prefill, of the
/// one that is reached first for many sequences.
pub fn share(result: &BenchResult, roof: &Roofline, device: &dyn Instrument) -> f64 {
    let least = match result.test {
        Test::Prefill(_) => seconds_to_compute(&result.cost, roof, device),
        Test::Decode(_) => seconds_to_read(&result.cost, roof),
        // Many sequences share a reading of the weights, until the products take longer.
        Test::Together { .. } => {
            seconds_to_read(&result.cost, roof).max(seconds_to_compute(&result.cost, roof, device))
        }
    };
    least * result.median_min_max().0 / result.test.total() as f64
}

#[cfg(test)]
mod tests {
    use unicorn_core::TensorType;
    use unicorn_cpu::ReferenceDevice;

    use super::*;

    const ROOF: Roofline = Roofline {
        read_bytes_per_second: 100.0,
        integer_ops_per_second: 50.0,
        float_ops_per_second: 25.0,
        matrix_ops_per_second: None,
        copy_bytes_per_second: None,
    };

    fn result(test: Test, tokens_per_second: f64) -> BenchResult {
        let cost = Cost {
            weight_bytes: 150,
            kv_bytes: 50,
            matrix_flops: vec![(TensorType::F32, 50)],
            attention_flops: 25,
        };
        BenchResult { test, depth: 0, seconds: vec![], tokens_per_second: vec![tokens_per_second], cost }
    }

    #[test]
    fn shares_by_hand() {
        let device = ReferenceDevice::new();
        // 200 bytes at 100 a second: 2 s for 4 tokens, so 2 tokens a second at best.
        assert_eq!(share(&result(Test::Decode(4), 1.0), &ROOF, &device), 0.5);
        let float = device.rate_kind(TensorType::F32) == RateKind::Float;
        assert!(float, "the reference multiplies in floating point");
        // 50 + 25 operations at 25 a second: 3 s for 6 tokens.
        assert_eq!(share(&result(Test::Prefill(6), 2.0), &ROOF, &device), 1.0);
        // With matrix units three times as fast, that is a third.
        let matrix = Roofline { matrix_ops_per_second: Some(75.0), ..ROOF };
        assert!((share(&result(Test::Prefill(6), 2.0), &matrix, &device) - 1.0 / 3.0).abs() < 1e-12);
    }
}
