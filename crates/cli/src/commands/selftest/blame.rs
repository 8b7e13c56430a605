//! From cases that came out wrong to the kernels that did it.

use std::collections::{BTreeMap, BTreeSet};

use crate::devices::cache::Wrong;

/// Wrong cases after which a kernel without a right one needs no more of them.
const WRONG_ENOUGH: usize = 3;

/// A case with the kernels that ran in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// Case name.
    pub case: String,
    /// Whether the result was right.
    pub right: bool,
    /// Kernels, as profiles name them.
    pub kernels: Vec<String>,
    /// Whether it is no part of the test but ran to learn about kernels.
    pub further: bool,
}

/// How often a kernel ran.
#[derive(Clone, Copy, Default)]
struct Count {
    right: usize,
    wrong: usize,
    further_right: usize,
    further_wrong: usize,
}

impl Count {
    fn share(self) -> f64 {
        self.wrong as f64 / (self.right + self.wrong).max(1) as f64
    }

    fn never_right(self) -> bool {
        self.right == 0 && self.wrong > 0
    }
}

fn count(runs: &[Ran]) -> BTreeMap<&str, Count> {
    let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
    for run in runs {
        // Once for a case, however often it ran there.
        for kernel in run.kernels.iter().collect::<BTreeSet<_>>() {
            let count = counts.entry(kernel).or_default();
            *(if run.right { &mut count.right } else { &mut count.wrong }) += 1;
            *(if run.right { &mut count.further_right } else { &mut count.further_wrong }) +=
                usize::from(run.further);
        }
    }
    counts
}

/// Whether there is a kernel about which more should be known: it ran in a wrong case of the test and in no right one, and not in enough
/// further cases either.
pub fn unsettled(runs: &[Ran]) -> bool {
    let counts = count(runs);
    let tested = runs.iter().filter(|r| !r.right && !r.further);
    tested.flat_map(|r| &r.kernels).any(|kernel| {
        let count = counts.get(kernel.as_str()).copied().unwrap_or_default();
        count.never_right() && count.further_wrong < WRONG_ENOUGH
    })
}

/// The kernels to blame for the wrong cases of the test. A kernel that ran in a wrong case and in no right one is to blame. Where every
/// kernel of a wrong case ran well elsewhere, something about the case matters (its shape, say), and those are to blame of which the largest
/// share of runs went wrong.
///
/// Further cases count as evidence. Where they convict a kernel of a wrong case, another kernel of it is not blamed on that case's account
/// if little else is known about it: it ran in no further case, and in few of the test.
pub fn blame(runs: &[Ran]) -> Vec<Wrong> {
    let counts = count(runs);
    let of = |kernel: &str| counts.get(kernel).copied().unwrap_or_default();
    let convicted = |kernel: &str| of(kernel).never_right() && of(kernel).further_wrong > 0;
    let unknown = |kernel: &str| {
        let Count { wrong, further_right, further_wrong, .. } = of(kernel);
        further_right + further_wrong == 0 && wrong < WRONG_ENOUGH
    };
    let mut blamed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for run in runs.iter().filter(|r| !r.right && !r.further) {
        let worst = run.kernels.iter().map(|k| of(k).share()).fold(0.0, f64::max);
        let culprit = run.kernels.iter().any(|k| convicted(k));
        for kernel in run.kernels.iter().filter(|k| of(k).share() >= worst && !(culprit && unknown(k))) {
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
        let kernels = kernels.iter().map(|k| k.to_string()).collect();
        Ran { case: case.into(), right, kernels, further: false }
    }

    fn further(case: &str, right: bool, kernels: &[&str]) -> Ran {
        Ran { further: true, ..ran(case, right, kernels) }
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
    #[test]
    fn further_cases_clear_helpers_and_convict() {
        let tested = ran("ffn/q4_0", false, &["norm", "gate_up q4_0", "down q4_0"]);
        let mut runs = vec![tested];
        assert!(unsettled(&runs));
        assert_eq!(names(&blame(&runs)), ["down q4_0", "gate_up q4_0", "norm"]);

        runs.push(further("ffn/q8_0", true, &["norm", "gate_up q8_0", "down q8_0"]));
        assert!(unsettled(&runs), "two kernels are still known from one case alone");
        assert_eq!(names(&blame(&runs)), ["down q4_0", "gate_up q4_0"]);

        runs.push(further("ffn/f16-q4_0", true, &["norm", "gate_up f16", "down q4_0"]));
        assert_eq!(names(&blame(&runs)), ["gate_up q4_0"]);
        assert!(unsettled(&runs), "no further case ran the last one");
        for case in ["a", "b", "c"] {
            runs.push(further(case, false, &["norm", "gate_up q4_0", "down f16"]));
        }
        assert!(!unsettled(&runs));
        let wrong = blame(&runs);
        assert_eq!(names(&wrong), ["gate_up q4_0"], "what was wrong in further cases alone is not judged");
        assert_eq!(wrong[0].cases, ["ffn/q4_0"]);
    }

    #[test]
    fn beside_a_convict_the_unknown_go_free() {
        let mut runs = vec![ran("ffn/q4_0", false, &["gate_up q4_0", "rare"])];
        assert_eq!(names(&blame(&runs)), ["gate_up q4_0", "rare"]);
        runs.push(further("ffn/q4_0 t2", false, &["gate_up q4_0"]));
        assert_eq!(names(&blame(&runs)), ["gate_up q4_0"]);
        // But not those that were wrong again and again.
        runs.extend(["a", "b"].map(|case| ran(case, false, &["gate_up q4_0", "rare"])));
        assert_eq!(names(&blame(&runs)), ["gate_up q4_0", "rare"]);
    }

    #[test]
    fn where_nothing_is_ever_right_all_are_to_blame() {
        let mut runs = vec![ran("one", false, &["norm", "tiled"])];
        runs.extend(["a", "b", "c"].map(|case| further(case, false, &["norm", "tiled"])));
        assert!(!unsettled(&runs));
        assert_eq!(names(&blame(&runs)), ["norm", "tiled"]);
    }

    #[test]
    fn what_ran_well_needs_no_further_cases() {
        assert!(!unsettled(&[ran("a", false, &["x"]), ran("b", true, &["x"])]));
        assert!(!unsettled(&[ran("a", true, &["x"])]));
    }
}
