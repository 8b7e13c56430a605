//! Sets of JSON values as unions of shapes, one list for each type. Sets can be united, intersected and refined; what is inside
//! of arrays and objects is named by goals and looked at later.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;

use super::decimal::Decimal;
use super::goal::Goal;

/// A set of values.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Shapes {
    pub(crate) null: bool,
    pub(crate) yes: bool,
    pub(crate) no: bool,
    pub(crate) numbers: Vec<Number>,
    pub(crate) strings: Vec<Text>,
    pub(crate) arrays: Vec<Array>,
    pub(crate) objects: Vec<Object>,
}

/// Numbers that satisfy all of this.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Number {
    /// Only these.
    pub(crate) points: Option<Vec<Decimal>>,
    pub(crate) not_points: Vec<Decimal>,
    /// The bound, and whether it is excluded.
    pub(crate) min: Option<(Decimal, bool)>,
    pub(crate) max: Option<(Decimal, bool)>,
    /// Whole numbers only, or none of them.
    pub(crate) integer: Option<bool>,
    pub(crate) multiples: Vec<Decimal>,
    pub(crate) not_multiples: Vec<Decimal>,
}

/// Strings that satisfy all of this.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Text {
    /// Only these.
    pub(crate) literals: Option<Rc<Vec<String>>>,
    pub(crate) not_literals: Vec<Rc<Vec<String>>>,
    /// Regular expressions that are searched for, and whether they must be found or must not.
    pub(crate) patterns: Vec<(Rc<str>, bool)>,
    /// Regular expressions of the whole.
    pub(crate) formats: Vec<&'static str>,
    pub(crate) min: usize,
    pub(crate) max: Option<usize>,
}

/// Arrays that satisfy all of this.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Array {
    pub(crate) prefix: Vec<Goal>,
    pub(crate) rest: Goal,
    pub(crate) min: usize,
    pub(crate) max: Option<usize>,
    pub(crate) contains: Vec<Contains>,
    /// The schema that asks for items that differ, by its pointer.
    pub(crate) unique: Option<Rc<str>>,
}

/// How many items, from index `from` on, satisfy a goal.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Contains {
    pub(crate) from: usize,
    pub(crate) goal: Goal,
    pub(crate) min: usize,
    pub(crate) max: Option<usize>,
}

/// Objects that satisfy all of this.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Object {
    pub(crate) rows: Vec<RowRef>,
    pub(crate) required: Vec<Rc<str>>,
    pub(crate) min: usize,
    pub(crate) max: Option<usize>,
    /// Goals of all names, as strings.
    pub(crate) names: Vec<Goal>,
    /// For each of these there must be a property.
    pub(crate) some: Vec<Rc<Needed>>,
}

/// `properties`, `patternProperties` and `additionalProperties` of one schema.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) properties: Vec<(Rc<str>, Goal)>,
    places: HashMap<Rc<str>, usize>,
    /// Regular expressions that are searched for in names.
    pub(crate) patterns: Vec<(Rc<str>, Goal)>,
    pub(crate) additional: Goal,
    /// Whether it only excludes or asks for a property, and does not tell where that stands among others.
    pub(crate) in_passing: bool,
}

/// A row that is compared by address: the same place in a schema makes one row.
#[derive(Clone, Debug)]
pub(crate) struct RowRef(pub(crate) Rc<Row>);

impl PartialEq for RowRef {
    fn eq(&self, other: &RowRef) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for RowRef {}

impl Hash for RowRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Rc::as_ptr(&self.0).hash(state);
    }
}

impl Deref for RowRef {
    type Target = Row;

    fn deref(&self) -> &Row {
        &self.0
    }
}

/// A property that must be there: which names it may have, and what its value satisfies.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Needed {
    pub(crate) not_named: Vec<String>,
    pub(crate) patterns: Vec<(Rc<str>, bool)>,
    pub(crate) name: Option<Goal>,
    pub(crate) goal: Goal,
}

impl Default for Array {
    fn default() -> Array {
        Array { prefix: Vec::new(), rest: Goal::ANY, min: 0, max: None, contains: Vec::new(), unique: None }
    }
}

impl Row {
    pub(crate) fn new(
        properties: Vec<(Rc<str>, Goal)>,
        patterns: Vec<(Rc<str>, Goal)>,
        additional: Goal,
    ) -> Row {
        let places = properties.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        Row { properties, places, patterns, additional, in_passing: false }
    }

    /// What a property of this name must satisfy, where the row names it.
    pub(crate) fn named(&self, name: &str) -> Option<Goal> {
        self.places.get(name).map(|at| self.properties[*at].1)
    }
}

impl Shapes {
    pub(crate) fn none() -> Shapes {
        Shapes::default()
    }

    pub(crate) fn all() -> Shapes {
        Shapes {
            null: true,
            yes: true,
            no: true,
            numbers: vec![Number::default()],
            strings: vec![Text::default()],
            arrays: vec![Array::default()],
            objects: vec![Object::default()],
        }
    }

    pub(crate) fn number(number: Number) -> Shapes {
        Shapes { numbers: vec![number], ..Shapes::none() }
    }

    pub(crate) fn string(text: Text) -> Shapes {
        Shapes { strings: vec![text], ..Shapes::none() }
    }

    pub(crate) fn array(array: Array) -> Shapes {
        Shapes { arrays: vec![array], ..Shapes::none() }
    }

    pub(crate) fn object(object: Object) -> Shapes {
        Shapes { objects: vec![object], ..Shapes::none() }
    }

    /// These values, and all of the types that they have nothing of to say about.
    pub(crate) fn or_other_types(mut self) -> Shapes {
        let all = Shapes::all();
        let (numbers, strings) = (self.numbers.is_empty(), self.strings.is_empty());
        let (arrays, objects) = (self.arrays.is_empty(), self.objects.is_empty());
        (self.null, self.yes, self.no) = (true, true, true);
        if numbers {
            self.numbers = all.numbers;
        }
        if strings {
            self.strings = all.strings;
        }
        if arrays {
            self.arrays = all.arrays;
        }
        if objects {
            self.objects = all.objects;
        }
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of shapes.
    pub(crate) fn len(&self) -> usize {
        let constants = [self.null, self.yes, self.no].iter().filter(|there| **there).count();
        constants + self.numbers.len() + self.strings.len() + self.arrays.len() + self.objects.len()
    }

    pub(crate) fn union(mut self, other: &Shapes) -> Shapes {
        fn add<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
            for shape in from {
                if !to.contains(shape) {
                    to.push(shape.clone());
                }
            }
        }
        fn add_many<T: Clone + Eq + Hash>(to: &mut Vec<T>, from: &[T]) {
            let seen: HashSet<T> = to.iter().cloned().collect();
            to.extend(from.iter().filter(|shape| !seen.contains(shape)).cloned());
        }
        self.null |= other.null;
        self.yes |= other.yes;
        self.no |= other.no;
        add(&mut self.numbers, &other.numbers);
        add(&mut self.strings, &other.strings);
        add_many(&mut self.arrays, &other.arrays);
        add_many(&mut self.objects, &other.objects);
        self
    }
}

/// Every pair of shapes that have something in common.
pub(crate) fn products<T: PartialEq>(a: &[T], b: &[T], both: impl Fn(&T, &T) -> Option<T>) -> Vec<T> {
    let mut out = Vec::new();
    for shape in a.iter().flat_map(|a| b.iter().filter_map(|b| both(a, b)).collect::<Vec<_>>()) {
        if !out.contains(&shape) {
            out.push(shape);
        }
    }
    out
}

fn smaller<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn joined<T: Clone + PartialEq>(a: &[T], b: &[T]) -> Vec<T> {
    let mut all = a.to_vec();
    all.extend(b.iter().filter(|item| !a.contains(item)).cloned());
    all
}

impl Number {
    pub(crate) fn both(&self, other: &Number) -> Option<Number> {
        let points = match (&self.points, &other.points) {
            (Some(a), Some(b)) => Some(a.iter().filter(|point| b.contains(point)).copied().collect()),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        let lower = match (self.min, other.min) {
            // The same bound excluded is the tighter one.
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        let upper = match (self.max, other.max) {
            (Some(a), Some(b)) => Some(if (a.0, !a.1) < (b.0, !b.1) { a } else { b }),
            (a, b) => a.or(b),
        };
        let integer = match (self.integer, other.integer) {
            (Some(a), Some(b)) if a != b => return None,
            (a, b) => a.or(b),
        };
        Number {
            points,
            not_points: joined(&self.not_points, &other.not_points),
            min: lower,
            max: upper,
            integer,
            multiples: joined(&self.multiples, &other.multiples),
            not_multiples: joined(&self.not_multiples, &other.not_multiples),
        }
        .simplified()
    }

    /// The same numbers, without points that are none of them. `None` where no number is left.
    fn simplified(mut self) -> Option<Number> {
        if let (Some((min, no_min)), Some((max, no_max))) = (self.min, self.max)
            && (min > max || (min == max && (no_min || no_max)))
        {
            return None;
        }
        if let Some(points) = self.points.take() {
            let kept: Vec<Decimal> = points.into_iter().filter(|point| self.has(*point)).collect();
            if kept.is_empty() {
                return None;
            }
            return Some(Number { points: Some(kept), ..Number::default() });
        }
        Some(self)
    }

    /// Whether a number satisfies everything but the list of points.
    pub(crate) fn has(&self, point: Decimal) -> bool {
        !self.not_points.contains(&point)
            && self.min.is_none_or(|(min, excluded)| if excluded { point > min } else { point >= min })
            && self.max.is_none_or(|(max, excluded)| if excluded { point < max } else { point <= max })
            && self.integer.is_none_or(|integer| point.is_integer() == integer)
            && self.multiples.iter().all(|step| point.is_multiple_of(*step) == Some(true))
            && self.not_multiples.iter().all(|step| point.is_multiple_of(*step) == Some(false))
    }
}

impl Text {
    pub(crate) fn both(&self, other: &Text) -> Option<Text> {
        let literals = match (&self.literals, &other.literals) {
            (Some(a), Some(b)) => {
                let kept: HashSet<&String> = b.iter().collect();
                Some(Rc::new(a.iter().filter(|text| kept.contains(text)).cloned().collect::<Vec<_>>()))
            }
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        Text {
            literals,
            not_literals: joined(&self.not_literals, &other.not_literals),
            patterns: joined(&self.patterns, &other.patterns),
            formats: joined(&self.formats, &other.formats),
            min: self.min.max(other.min),
            max: smaller(self.max, other.max),
        }
        .simplified()
    }

    fn simplified(mut self) -> Option<Text> {
        if self.max.is_some_and(|max| max < self.min) {
            return None;
        }
        if self.patterns.iter().any(|(pattern, found)| self.patterns.contains(&(pattern.clone(), !found))) {
            return None;
        }
        if let Some(literals) = self.literals.take() {
            let not: HashSet<&String> = self.not_literals.iter().flat_map(|texts| texts.iter()).collect();
            let fits = |text: &&String| {
                let length = text.chars().count();
                length >= self.min && self.max.is_none_or(|max| length <= max) && !not.contains(text)
            };
            let kept: Vec<String> = literals.iter().filter(fits).cloned().collect();
            if kept.is_empty() {
                return None;
            }
            self.literals = Some(Rc::new(kept));
            self.not_literals = Vec::new();
            (self.min, self.max) = (0, None);
        }
        Some(self)
    }
}

impl Array {
    /// Both, with `and` to intersect goals.
    pub(crate) fn both(&self, other: &Array, and: &mut impl FnMut(Goal, Goal) -> Goal) -> Option<Array> {
        let length = self.prefix.len().max(other.prefix.len());
        let item = |array: &Array, at: usize| array.prefix.get(at).copied().unwrap_or(array.rest);
        let mut prefix: Vec<Goal> = (0..length).map(|at| and(item(self, at), item(other, at))).collect();
        let rest = and(self.rest, other.rest);
        let min = self.min.max(other.min);
        let mut max = smaller(self.max, other.max);
        let stop = prefix.iter().position(|goal| *goal == Goal::NEVER);
        let stop = stop.or((rest == Goal::NEVER).then_some(length));
        if let Some(stop) = stop {
            max = smaller(max, Some(stop));
        }
        if max.is_some_and(|max| max < min) {
            return None;
        }
        prefix.truncate(max.unwrap_or(usize::MAX));
        let contains = joined(&self.contains, &other.contains);
        Some(Array {
            prefix,
            rest,
            min,
            max,
            contains,
            unique: self.unique.clone().or_else(|| other.unique.clone()),
        })
    }
}

impl Object {
    pub(crate) fn both(&self, other: &Object) -> Option<Object> {
        let max = smaller(self.max, other.max);
        let min = self.min.max(other.min);
        let required = joined(&self.required, &other.required);
        if max.is_some_and(|max| max < min || max < required.len()) {
            return None;
        }
        Some(Object {
            rows: joined(&self.rows, &other.rows),
            required,
            min,
            max,
            names: joined(&self.names, &other.names),
            some: joined(&self.some, &other.some),
        })
    }
}
