//! From cases that came out wrong to the kernels that did it.

use std::collections::BTreeMap;

use crate::devices::cache::Wrong;

/// A case with the kernels that ran in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// Case name.
    pub case: String,
    /// Whether the result was right.
    pub right: bool,
    /// Kernels, as profiles name them.
    pub kernels: Vec<String>,
}

/// The kernels to blame for the wrong cases. A kernel that ran in a wrong case and in no right one is to blame. Where every kernel of a
/// wrong case ran well elsewhere, something about the case matters (its shape, say), and those are to blame of which the largest share of
/// runs went wrong.
pub fn blame(runs: &[Ran]) -> Vec<Wrong> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for run in runs {
        for kernel in &run.kernels {
            let (right, wrong) = counts.entry(kernel).or_default();
            *(if run.right { right } else { wrong }) += 1;
        }
    }
    let share = |kernel: &str| {
        let (right, wrong) = counts.get(kernel).copied().unwrap_or_default();
        wrong as f64 / (right + wrong).max(1) as f64
    };
    let mut blamed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for run in runs.iter().filter(|r| !r.right) {
        let worst = run.kernels.iter().map(|k| share(k)).fold(0.0, f64::max);
        for kernel in run.kernels.iter().filter(|k| share(k) >= worst) {
            let cases = blamed.entry(kernel).or_default();
            if !cases.contains(&run.case) {
                cases.push(run.case.clone());
            }
        }
    }
    blamed.into_iter().map(|(kernel, cases)| Wrong { kernel: kernel.to_owned(), cases }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(case: &str, right: bool, kernels: &[&str]) -> Ran {
        Ran { case: case.into(), right, kernels: kernels.iter().map(|k| k.to_string()).collect() }
    }

    fn names(wrong: &[Wrong]) -> Vec<&str> {
        wrong.iter().map(|w| w.kernel.as_str()).collect()
    }

    #[test]
    fn what_also_ran_well_is_not_to_blame() {
        let runs = [
            ran("ffn/q4_0", false, &["norm", "gate_up q4_0", "down q4_0"]),
            ran("ffn/q4_0-f16", true, &["norm", "gate_up f16", "down q4_0"]),
            ran("head", true, &["norm"]),
        ];
        let wrong = blame(&runs);
        assert_eq!(names(&wrong), ["gate_up q4_0"]);
        assert_eq!(wrong[0].cases, ["ffn/q4_0"]);
    }

    #[test]
    fn a_fault_of_some_shapes_is_found_by_its_share() {
        let runs = [
            ran("33 rows", false, &["norm", "tiled"]),
            ran("32 rows", true, &["norm", "tiled"]),
            ran("1 row", true, &["norm", "vector"]),
        ];
        assert_eq!(names(&blame(&runs)), ["tiled"]);
    }

    #[test]
    fn nothing_wrong_blames_nobody() {
        assert!(blame(&[ran("a", true, &["x"])]).is_empty());
        assert!(blame(&[ran("a", false, &[])]).is_empty());
    }
}
