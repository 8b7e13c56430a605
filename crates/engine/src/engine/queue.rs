//! Sequences that wait, and whose turn it is.

use std::cmp::Reverse;
use std::collections::VecDeque;

use unicorn_core::SequenceId;

use super::sequence::Sequence;

/// The waiting sequences of one priority.
#[derive(Debug)]
struct Class {
    priority: i32,
    /// Those that ran before and were sent back, the oldest first: they go before all others.
    returned: VecDeque<Sequence>,
    /// The others in order of arrival, by group. The first group is the next to have a turn; then it goes to the end.
    groups: VecDeque<(u64, VecDeque<Sequence>)>,
}

impl Class {
    fn is_empty(&self) -> bool {
        self.returned.is_empty() && self.groups.is_empty()
    }

    /// Whose turn it is, who is next then, and so on.
    fn turns(&self) -> impl Iterator<Item = &Sequence> {
        let longest = self.groups.iter().map(|g| g.1.len()).max().unwrap_or(0);
        let round = |turn| self.groups.iter().filter_map(move |g| g.1.get(turn));
        self.returned.iter().chain((0..longest).flat_map(round))
    }

    /// Takes out one whose turn it is; its group goes to the end.
    fn take(&mut self, id: SequenceId) -> Option<Sequence> {
        let group = self.groups.iter().position(|g| g.1.iter().any(|s| s.id == id));
        let key = group.and_then(|at| self.groups.get(at)).map(|g| g.0);
        let sequence = self.remove(id)?;
        if let Some(at) = self.groups.iter().position(|g| Some(g.0) == key) {
            let last = self.groups.remove(at);
            self.groups.extend(last);
        }
        Some(sequence)
    }

    fn push(&mut self, sequence: Sequence) {
        match self.groups.iter_mut().find(|g| g.0 == sequence.group) {
            Some((_, sequences)) => sequences.push_back(sequence),
            None => self.groups.push_back((sequence.group, VecDeque::from([sequence]))),
        }
    }

    fn give_back(&mut self, sequence: Sequence) {
        let at = self.returned.partition_point(|s| s.id < sequence.id);
        self.returned.insert(at, sequence);
    }

    fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Some(at) = self.returned.iter().position(|s| s.id == id) {
            return self.returned.remove(at);
        }
        let at = self.groups.iter().position(|g| g.1.iter().any(|s| s.id == id))?;
        let sequences = &mut self.groups[at].1;
        let within = sequences.iter().position(|s| s.id == id)?;
        let sequence = sequences.remove(within);
        if sequences.is_empty() {
            self.groups.remove(at);
        }
        sequence
    }

    fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.returned.iter().chain(self.groups.iter().flat_map(|g| &g.1))
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.returned.iter_mut().chain(self.groups.iter_mut().flat_map(|g| &mut g.1))
    }
}

/// The waiting sequences: a higher priority first; among equals the groups take turns, so that one with many requests does not hold up
/// another's.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Highest priority first, none of them empty.
    classes: Vec<Class>,
}

impl Queue {
    /// Sequences that wait.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Whose turn it is, who is next then, and so on.
    pub fn turns(&self) -> impl Iterator<Item = &Sequence> {
        self.classes.iter().flat_map(Class::turns)
    }

    /// Takes out one whose turn it is, or before whom others have to wait.
    pub fn take(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = self.classes.iter_mut().find_map(|c| c.take(id));
        self.tidy();
        sequence
    }

    /// One of them, wherever it is.
    pub fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.classes.iter_mut().flat_map(Class::iter_mut).find(|s| s.id == id)
    }

    /// Takes out everybody.
    pub fn drain(&mut self) -> impl Iterator<Item = Sequence> {
        let classes = std::mem::take(&mut self.classes).into_iter();
        classes.flat_map(|c| c.returned.into_iter().chain(c.groups.into_iter().flat_map(|g| g.1)))
    }

    /// At the end of its group.
    pub fn push(&mut self, sequence: Sequence) {
        self.class(sequence.priority).push(sequence);
    }

    /// One that ran is first again among its priority, but for older ones that ran.
    pub fn give_back(&mut self, sequence: Sequence) {
        self.class(sequence.priority).give_back(sequence);
    }

    /// Takes out a sequence, wherever it is.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let sequence = self.classes.iter_mut().find_map(|c| c.remove(id));
        self.tidy();
        sequence
    }

    /// All of them, by priority and group.
    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.classes.iter().flat_map(Class::iter)
    }

    fn class(&mut self, priority: i32) -> &mut Class {
        let at = self.classes.partition_point(|c| c.priority > priority);
        if self.classes.get(at).is_none_or(|c| c.priority != priority) {
            let class = Class { priority, returned: VecDeque::new(), groups: VecDeque::new() };
            self.classes.insert(at, class);
        }
        &mut self.classes[at]
    }

    fn tidy(&mut self) {
        self.classes.retain(|c| !c.is_empty());
    }
}

/// The order in which running sequences take pages: the last ones are sent back first.
pub(super) fn rank(sequence: &Sequence) -> (Reverse<i32>, SequenceId) {
    (Reverse(sequence.priority), sequence.id)
}
