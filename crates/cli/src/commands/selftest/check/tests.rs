//! The loop from a wrong kernel to its name, on a device that is wrong on purpose.

use unicorn_cases::{Flawed, select, table};
use unicorn_core::{Activation, Block, TensorType};
use unicorn_cpu::ReferenceDevice;

use super::*;

/// The kernels that a block would use on a device that names them.
fn kernels(block: &Block) -> Vec<String> {
    let mut kernels = Vec::new();
    if matches!(block, Block::Ffn { .. } | Block::Head { .. }) {
        kernels.push("norm norm".to_owned());
    }
    if let Block::Ffn { weights, .. } = block {
        kernels.push(format!("ffn_gate_up {}", weights.gate.ty));
        kernels.push(format!("ffn_down {}", weights.down.ty));
    }
    kernels
}

/// What a device is wrong in.
type Flaw = fn(&mut Block);

/// All feed-forward blocks get the wrong activation.
fn every_gate(block: &mut Block) {
    if let Block::Ffn { spec, .. } = block {
        spec.activation = match spec.activation {
            Activation::Silu => Activation::GeluTanh,
            Activation::GeluTanh => Activation::Silu,
        };
    }
}

/// Those with a gate in Q4_0 do.
fn gate_q4_0(block: &mut Block) {
    if matches!(block, Block::Ffn { weights, .. } if weights.gate.ty == TensorType::Q4_0) {
        every_gate(block);
    }
}

/// Norms of feed-forward blocks and heads are wrong.
fn norm(block: &mut Block) {
    match block {
        Block::Ffn { spec, .. } => spec.norm.eps += 1.0,
        Block::Head { spec, .. } => spec.norm.eps += 1.0,
        _ => {}
    }
}

/// Names of the kernels that are blamed, what was checked, and the lines that were told.
fn outcome(flaw: Flaw, only: &[&str]) -> (Vec<String>, Checked, Vec<(String, bool)>) {
    let cases: Vec<Case> = only.iter().flat_map(|f| select(f)).collect();
    assert!(!cases.is_empty());
    let mut lines = Vec::new();
    let mut tell = |line: &str, important: bool| {
        lines.push((line.to_owned(), important));
        Ok(())
    };
    let device = Flawed::new(ReferenceDevice::new()).block(flaw).kernels(kernels);
    let checked = check(&cases, &table(), &device, &ReferenceDevice::new(), 1, &mut tell).unwrap();
    assert_eq!(checked.right + checked.faults + checked.unsupported, cases.len());
    (checked.wrong.iter().map(|w| w.kernel.clone()).collect(), checked, lines)
}

#[test]
fn a_wrong_kernel_is_named_and_no_other() {
    let (names, checked, lines) = outcome(gate_q4_0, &["ffn/q4_0", "ffn/q8_0", "linear/q4_0 t1"]);
    assert_eq!(names, ["ffn_gate_up Q4_0"]);
    assert!(checked.faults > 0 && checked.right > 0 && checked.wrong[0].cases[0].starts_with("ffn/q4_0"));
    assert!(lines.iter().any(|(line, important)| *important && line.contains("FAILED")));
}

#[test]
fn where_all_of_a_narrow_choice_is_wrong_helpers_are_not_blamed() {
    let one = "ffn/q4_0/192x576/t1/silu";
    let (names, checked, lines) = outcome(gate_q4_0, &[one]);
    assert_eq!(names, ["ffn_gate_up Q4_0"]);
    assert_eq!((checked.right, checked.faults), (0, 1), "further cases are no part of the test");
    assert_eq!(checked.wrong[0].cases, [one]);
    let further = lines.iter().filter(|(line, _)| line.starts_with("to find the kernel")).count();
    assert!((1..=32).contains(&further), "{further}");

    // Other kinds of block clear the norm where every block of the kind is wrong.
    let (names, ..) = outcome(every_gate, &["ffn/q4_0"]);
    assert!(names.contains(&"ffn_gate_up Q4_0".to_owned()), "{names:?}");
    assert!(!names.iter().any(|n| n.contains("norm")), "{names:?}");
}

#[test]
fn a_helper_that_is_wrong_is_blamed() {
    let (names, checked, _) = outcome(norm, &["ffn/q4_0/192x576/t1/silu"]);
    assert_eq!(checked.faults, 1);
    assert!(names.contains(&"norm norm".to_owned()), "{names:?}");
}

#[test]
fn what_is_right_needs_no_further_cases() {
    let (names, checked, lines) = outcome(gate_q4_0, &["ffn/q8_0"]);
    assert!(names.is_empty() && checked.faults == 0);
    assert!(!lines.iter().any(|(line, _)| line.starts_with("to find the kernel")));
}
