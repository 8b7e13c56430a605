//! Which other cases tell most about the kernels of wrong ones.

use std::collections::BTreeMap;

use unicorn_cases::Case;

/// Most further cases that run.
const FURTHER_MAX: usize = 32;

/// Up to [`FURTHER_MAX`] of the candidates, those first that tell most. It is not known which kernels a case runs, but kernels serve kinds
/// of block, types of weights and numbers of rows; so in turn cases that share with a wrong one: the kind alone, which runs its helpers
/// with other products; the kind and some of the types, which mixes right and wrong ones; the kind and all types, which tells whether the
/// shape matters; and types alone. Within each of these, as many types, numbers of rows and caches as there are, small cases first.
pub fn further<'a>(candidates: Vec<&'a Case>, faults: &[&Case]) -> Vec<&'a Case> {
    let mut groups: [Vec<&Case>; 4] = Default::default();
    for case in candidates {
        if let Some(group) = group(case, faults) {
            groups[group].push(case);
        }
    }
    let mut queues = groups.map(|cases| varied(cases, faults).into_iter());
    let mut chosen = Vec::new();
    while chosen.len() < FURTHER_MAX {
        let round: Vec<&Case> = queues.iter_mut().filter_map(Iterator::next).collect();
        if round.is_empty() {
            break;
        }
        chosen.extend(round);
    }
    chosen.truncate(FURTHER_MAX);
    chosen
}

/// What a case shares with the wrong ones; the most telling of these relations. `None` where it shares nothing.
fn group(case: &Case, faults: &[&Case]) -> Option<usize> {
    let types = case.types();
    let relation = |fault: &&Case| {
        let theirs = fault.types();
        let shared = types.iter().filter(|t| theirs.contains(t)).count();
        let same_kind = fault.block.kind() == case.block.kind();
        match (same_kind, shared) {
            (true, 0) => Some(0),
            (true, _) if types != theirs => Some(1),
            (true, _) => Some(2),
            (false, 0) => None,
            (false, _) => Some(3),
        }
    };
    // Types that are wrong in one case are suspect in all: the closest relation counts.
    let relations: Vec<usize> = faults.iter().filter_map(relation).collect();
    [2, 1, 0, 3].into_iter().find(|r| relations.contains(r))
}

/// Cases in an order that shows many types, rows and caches early; those with the rows of a wrong case before others, small before large.
fn varied<'a>(mut cases: Vec<&'a Case>, faults: &[&Case]) -> Vec<&'a Case> {
    cases.sort_by_key(|c| (!faults.iter().any(|f| f.rows() == c.rows()), c.flops()));
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, &Case)> = Vec::new();
    for case in cases {
        let like = format!("{:?} {} {:?}", case.types(), case.rows(), case.kv);
        let rank = seen.entry(like).or_default();
        ranked.push((*rank, case));
        *rank += 1;
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, case)| case).collect()
}

#[cfg(test)]
mod tests {
    use unicorn_cases::{select, table};
    use unicorn_core::{BlockKind, TensorType};

    use super::*;

    #[test]
    fn few_cases_of_every_relation_are_chosen() {
        let (table, wrong) = (table(), select("ffn/q4_0/192x576/t1/silu"));
        let faults: Vec<&Case> = wrong.iter().collect();
        assert_eq!(faults.len(), 1);
        let chosen = further(table.iter().filter(|c| c.name != wrong[0].name).collect(), &faults);
        assert_eq!(chosen.len(), FURTHER_MAX);
        let any = |what: &dyn Fn(&Case) -> bool| chosen.iter().take(8).any(|c| what(c));
        let (ffn, q4_0) =
            (|c: &Case| c.block.kind() == BlockKind::Ffn, |c: &Case| c.types().contains(&TensorType::Q4_0));
        assert!(any(&|c| ffn(c) && !q4_0(c)));
        assert!(any(&|c| ffn(c) && q4_0(c) && c.types().len() > 1));
        assert!(any(&|c| ffn(c) && c.types() == [TensorType::Q4_0]));
        assert!(any(&|c| !ffn(c) && q4_0(c)));
        assert!(chosen[0].rows() == 1, "{}", chosen[0].name);
        let mut names: Vec<&str> = chosen.iter().map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FURTHER_MAX);
    }

    #[test]
    fn without_candidates_there_is_nothing_to_run() {
        let wrong = select("ffn/q4_0/192x576/t1/silu");
        assert!(further(Vec::new(), &wrong.iter().collect::<Vec<_>>()).is_empty());
    }
}
