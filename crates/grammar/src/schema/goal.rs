//! Goals: what a value must satisfy, as a conjunction of schemas and negated schemas. There are finitely many for a schema, so
//! recursive schemas become recursive grammars.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use serde_json::Value;

/// A number for a conjunction of terms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Goal(u32);

/// A schema, or a value that stands for itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Term<'a> {
    Schema(&'a Value),
    Is(&'a Value),
}

/// A term by address: two places in a document are two terms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct TermKey {
    address: usize,
    is_value: bool,
    holds: bool,
}

/// All goals that were named so far.
pub(crate) struct Goals<'a> {
    goals: Vec<Rc<[(Term<'a>, bool)]>>,
    numbers: HashMap<Vec<TermKey>, Goal>,
}

impl Goal {
    /// Every value.
    pub(crate) const ANY: Goal = Goal(0);
    /// No value.
    pub(crate) const NEVER: Goal = Goal(1);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl<'a> Goals<'a> {
    pub(crate) fn new() -> Goals<'a> {
        // The terms of `NEVER` are never asked for.
        let goals: Vec<Rc<[(Term<'a>, bool)]>> = vec![Rc::from([]), Rc::from([])];
        Goals { goals, numbers: HashMap::from([(Vec::new(), Goal::ANY)]) }
    }

    /// Number of goals.
    pub(crate) fn len(&self) -> usize {
        self.goals.len()
    }

    /// The terms of a goal, each with whether it must hold or must not.
    pub(crate) fn terms(&self, goal: Goal) -> Rc<[(Term<'a>, bool)]> {
        self.goals[goal.index()].clone()
    }

    /// That a schema holds, or does not.
    pub(crate) fn schema(&mut self, schema: &'a Value, holds: bool) -> Goal {
        match schema {
            Value::Bool(every) => {
                if *every == holds {
                    Goal::ANY
                } else {
                    Goal::NEVER
                }
            }
            Value::Object(map) if map.is_empty() => {
                if holds {
                    Goal::ANY
                } else {
                    Goal::NEVER
                }
            }
            _ => self.number(vec![(Term::Schema(schema), holds)]),
        }
    }

    /// That a value is this one, or is not.
    pub(crate) fn value(&mut self, value: &'a Value, holds: bool) -> Goal {
        self.number(vec![(Term::Is(value), holds)])
    }

    /// Both.
    pub(crate) fn and(&mut self, a: Goal, b: Goal) -> Goal {
        if a == b || b == Goal::ANY || a == Goal::NEVER {
            return a;
        }
        if a == Goal::ANY || b == Goal::NEVER {
            return b;
        }
        let terms = self.terms(a).iter().chain(self.terms(b).iter()).copied().collect();
        self.number(terms)
    }

    /// The opposite, where it is a single goal: of one term at most.
    pub(crate) fn not(&mut self, goal: Goal) -> Option<Goal> {
        match goal {
            Goal::ANY => Some(Goal::NEVER),
            Goal::NEVER => Some(Goal::ANY),
            _ => match *self.terms(goal) {
                [(term, holds)] => Some(self.number(vec![(term, !holds)])),
                _ => None,
            },
        }
    }

    fn number(&mut self, mut terms: Vec<(Term<'a>, bool)>) -> Goal {
        // Two goals of the same terms are one; the first tells in which order they stand, which is that of properties later.
        let mut seen = HashSet::new();
        terms.retain(|term| seen.insert(key(term)));
        let mut keys: Vec<TermKey> = terms.iter().map(key).collect();
        keys.sort();
        let contradiction =
            keys.windows(2).any(|pair| pair[0] == TermKey { holds: pair[0].holds, ..pair[1] });
        if contradiction {
            return Goal::NEVER;
        }
        let next = Goal(self.goals.len() as u32);
        let number = *self.numbers.entry(keys).or_insert(next);
        if number == next {
            self.goals.push(terms.into());
        }
        number
    }
}

fn key(term: &(Term<'_>, bool)) -> TermKey {
    let (value, is_value) = match term.0 {
        Term::Schema(value) => (value, false),
        Term::Is(value) => (value, true),
    };
    TermKey { address: std::ptr::from_ref(value) as usize, is_value, holds: term.1 }
}
