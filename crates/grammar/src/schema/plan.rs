//! From shapes to what is written: which names an object may have and in which order, what the items of an array are, and which
//! goals nothing can reach.

use std::collections::HashMap;
use std::rc::Rc;

use llguidance::derivre::RegexAst;

use super::expand::Expander;
use super::goal::Goal;
use super::numbers;
use super::regexes::{any_text, is_empty, language, matching, one_of, quoted};
use super::shape::{Array, Needed, Object, Shapes};
use crate::error::GrammarError;

type Result<T> = std::result::Result<T, GrammarError>;

/// Ways in which the patterns of an object can match a name at most.
const CLASSES_MAX: usize = 64;
/// Ways to write one object at most.
const WAYS_MAX: usize = 300;
/// Values of which all orders are allowed where items must differ; of more the order of the schema is kept.
pub(crate) const ORDERS_MAX: usize = 6;
/// Values at most where items must differ.
const UNIQUE_MAX: usize = 1000;

/// How the values of a goal are written.
#[derive(Default)]
pub(crate) struct Plan {
    /// Numbers, strings and constants.
    pub(crate) scalars: Vec<RegexAst>,
    pub(crate) arrays: Vec<PlannedArray>,
    pub(crate) objects: Vec<PlannedObject>,
}

/// How arrays are written.
pub(crate) struct PlannedArray {
    pub(crate) array: Array,
    /// For each item of the prefix, and last for the rest: which of `contains` it counts for, and what it satisfies then.
    pub(crate) roles: Vec<Vec<(u32, Goal)>>,
    /// All items that there are, where they must differ.
    pub(crate) unique: Option<Vec<RegexAst>>,
}

/// How objects are written: first the properties that the schema names, in its order, then others.
pub(crate) struct PlannedObject {
    pub(crate) named: Vec<Named>,
    pub(crate) extras: Vec<Extra>,
    /// One of these must be the last property, where there are any. Last, so that no other of the same name overrides it.
    pub(crate) last: Vec<Extra>,
    pub(crate) min: usize,
    pub(crate) max: Option<usize>,
}

/// A property that the schema names.
#[derive(Clone)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) goal: Goal,
    pub(crate) required: bool,
}

/// Properties that it does not name.
#[derive(Clone)]
pub(crate) struct Extra {
    /// Their names, without quotes.
    pub(crate) name: RegexAst,
    pub(crate) goal: Goal,
}

/// Plans of all goals that a goal leads to.
pub(crate) struct Plans {
    plans: HashMap<Goal, Plan>,
    productive: HashMap<Goal, bool>,
}

impl Plans {
    pub(crate) fn get(&self, goal: Goal) -> Option<&Plan> {
        self.plans.get(&goal)
    }

    /// Whether any value satisfies the goal.
    pub(crate) fn is_productive(&self, goal: Goal) -> bool {
        goal != Goal::NEVER && self.productive.get(&goal) == Some(&true)
    }
}

/// Plans a goal and all that it leads to.
pub(crate) fn plan(expander: &mut Expander<'_>, root: Goal) -> Result<Plans> {
    let mut plans = HashMap::new();
    let mut waiting = vec![root];
    while let Some(goal) = waiting.pop() {
        if goal == Goal::NEVER || plans.contains_key(&goal) {
            continue;
        }
        let shapes = expander.expand(goal)?;
        let plan = of_shapes(expander, &shapes)?;
        waiting.extend(plan.goals());
        plans.insert(goal, plan);
    }
    let mut all = Plans { plans, productive: HashMap::new() };
    loop {
        let mut found = Vec::new();
        for (goal, plan) in &all.plans {
            if !all.is_productive(*goal) && plan.is_productive(&all) {
                found.push(*goal);
            }
        }
        expander.check_time()?;
        if found.is_empty() {
            return Ok(all);
        }
        all.productive.extend(found.into_iter().map(|goal| (goal, true)));
    }
}

impl Plan {
    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for array in &self.arrays {
            goals.extend(array.roles.iter().flatten().map(|(_, goal)| *goal));
        }
        for object in &self.objects {
            goals.extend(object.named.iter().map(|named| named.goal));
            goals.extend(object.extras.iter().chain(&object.last).map(|extra| extra.goal));
        }
        goals
    }

    fn is_productive(&self, all: &Plans) -> bool {
        !self.scalars.is_empty()
            || self.arrays.iter().any(|array| array.is_productive(all))
            || self.objects.iter().any(|object| object.is_productive(all))
    }
}

impl PlannedArray {
    fn is_productive(&self, all: &Plans) -> bool {
        let last = self.roles.len() - 1;
        let possible = |at: usize| self.roles[at.min(last)].iter().any(|(_, goal)| all.is_productive(*goal));
        let counted = |index: usize| {
            let counts = |(mask, goal): &(u32, Goal)| mask >> index & 1 == 1 && all.is_productive(*goal);
            self.array.contains[index].min == 0 || self.roles.iter().flatten().any(counts)
        };
        (0..self.array.min.min(self.roles.len())).all(possible)
            && (0..self.array.contains.len()).all(counted)
            && self.unique.as_ref().is_none_or(|all| all.len() >= self.array.min)
    }
}

impl PlannedObject {
    fn is_productive(&self, all: &Plans) -> bool {
        let there = self.named.iter().filter(|named| all.is_productive(named.goal)).count();
        let extra = self.extras.iter().chain(&self.last).any(|extra| all.is_productive(extra.goal));
        self.named.iter().all(|named| !named.required || all.is_productive(named.goal))
            && there + usize::from(extra) >= self.min
            && (self.last.is_empty() || self.last.iter().any(|extra| all.is_productive(extra.goal)))
    }
}

fn of_shapes(expander: &mut Expander<'_>, shapes: &Shapes) -> Result<Plan> {
    let mut plan = Plan { scalars: scalars(shapes)?, ..Plan::default() };
    for array in &shapes.arrays {
        plan.arrays.push(of_array(expander, array)?);
    }
    for object in &shapes.objects {
        of_object(expander, object, &mut plan.objects)?;
    }
    Ok(plan)
}

fn scalars(shapes: &Shapes) -> Result<Vec<RegexAst>> {
    let constants = [(shapes.null, "null"), (shapes.yes, "true"), (shapes.no, "false")];
    let there = constants.into_iter().filter(|(there, _)| *there);
    let mut all: Vec<RegexAst> = there.map(|(_, text)| RegexAst::Literal(text.to_owned())).collect();
    all.extend(shapes.numbers.iter().filter_map(numbers::language));
    for text in &shapes.strings {
        all.extend(language(text)?.map(quoted));
    }
    Ok(all)
}

fn of_array(expander: &mut Expander<'_>, array: &Array) -> Result<PlannedArray> {
    if array.contains.len() > 3 {
        return Err(GrammarError::TooComplex(
            "an array must contain more than three kinds of items".to_owned(),
        ));
    }
    let mut roles = Vec::new();
    let most = array.max.unwrap_or(usize::MAX);
    let length = array.prefix.len().max(array.contains.iter().map(|c| c.from).max().unwrap_or(0));
    for at in 0..=length {
        let item = array.prefix.get(at).copied().unwrap_or(array.rest);
        let mut ways = Vec::new();
        if at < most {
            for mask in 0..1u32 << array.contains.len() {
                ways.extend(role(expander, array, at, item, mask).map(|goal| (mask, goal)));
            }
        }
        roles.push(ways);
    }
    let mut unique = None;
    if let Some(path) = array.unique.as_ref().filter(|_| most > 1) {
        let refused = |reason: &str| GrammarError::Unsupported {
            path: path.to_string(),
            keyword: "uniqueItems".to_owned(),
            reason: reason.to_owned(),
        };
        if array.prefix.iter().any(|item| *item != array.rest) || !array.contains.is_empty() {
            return Err(refused("it is followed only where all items are of one kind"));
        }
        let values = finite(expander, array.rest)?.filter(|values| values.len() <= UNIQUE_MAX);
        unique = Some(
            values.ok_or_else(|| refused("items are told apart only where there are few different ones"))?,
        );
    }
    Ok(PlannedArray { array: array.clone(), roles, unique })
}

/// What an item satisfies that counts for these of `contains` and for no other that has an upper bound.
fn role(expander: &mut Expander<'_>, array: &Array, at: usize, item: Goal, mask: u32) -> Option<Goal> {
    let mut goal = item;
    for (index, contains) in array.contains.iter().enumerate() {
        let counts = mask >> index & 1 == 1;
        if counts && at < contains.from {
            return None;
        }
        if counts {
            goal = expander.goals.and(goal, contains.goal);
        } else if contains.max.is_some() && at >= contains.from {
            let opposite = expander.goals.not(contains.goal)?;
            goal = expander.goals.and(goal, opposite);
        }
    }
    (goal != Goal::NEVER).then_some(goal)
}

/// All values of a goal, where they are few and have no parts.
fn finite(expander: &mut Expander<'_>, goal: Goal) -> Result<Option<Vec<RegexAst>>> {
    let shapes = expander.expand(goal)?;
    let open = !shapes.arrays.is_empty()
        || !shapes.objects.is_empty()
        || shapes.numbers.iter().any(|number| number.points.is_none())
        || shapes.strings.iter().any(|text| text.literals.is_none());
    if open {
        return Ok(None);
    }
    let constants = [(shapes.null, "null"), (shapes.yes, "true"), (shapes.no, "false")];
    let mut texts: Vec<String> =
        constants.iter().filter(|(there, _)| *there).map(|(_, t)| t.to_string()).collect();
    texts.extend(
        shapes.numbers.iter().flat_map(|number| number.points.iter().flatten()).filter_map(|p| p.text()),
    );
    let mut values: Vec<RegexAst> = Vec::new();
    for text in &shapes.strings {
        if let Some(RegexAst::Literal(one)) = language(text)? {
            texts.push(serde_json::Value::String(one).to_string());
        } else if let Some(RegexAst::Or(all)) = language(text)? {
            texts.extend(all.into_iter().filter_map(|one| match one {
                RegexAst::Literal(one) => Some(serde_json::Value::String(one).to_string()),
                _ => None,
            }));
        }
    }
    let mut seen = std::collections::HashSet::new();
    texts.retain(|text| seen.insert(text.clone()));
    values.extend(texts.into_iter().map(RegexAst::Literal));
    Ok(Some(values))
}

/// The ways to write an object. There are several where a property must be there that may have many names.
fn of_object(expander: &mut Expander<'_>, object: &Object, out: &mut Vec<PlannedObject>) -> Result<()> {
    let mut names: Vec<&Rc<str>> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let of_rows = |in_passing| {
        let rows = object.rows.iter().filter(move |row| row.in_passing == in_passing);
        rows.flat_map(|row| row.properties.iter().map(|(name, _)| name))
    };
    let all = of_rows(false).chain(of_rows(true)).chain(&object.required);
    names.extend(all.filter(|name| seen.insert(name.to_string())));
    let languages = name_languages(expander, &object.names)?;
    let mut allowed: Option<Vec<String>> = None;
    if !languages.is_empty() {
        allowed = Some(matching(&RegexAst::And(languages.clone()), names.iter().map(|name| &***name))?);
    }
    let required: std::collections::HashSet<&Rc<str>> = object.required.iter().collect();
    let mut named = Vec::with_capacity(names.len());
    for name in &names {
        let fits = allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|allowed| **allowed == ***name));
        let goal = if fits { expander.property(object, name)? } else { Goal::NEVER };
        let required = required.contains(*name);
        if required && goal == Goal::NEVER {
            return Ok(());
        }
        named.push(Named { name: name.to_string(), goal, required });
    }
    let taken: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    let extras = extras(expander, object, &taken, languages)?;
    let plan =
        |named, last| PlannedObject { named, extras: extras.clone(), last, min: object.min, max: object.max };
    // Each property that must be there is one of the named, or one of the others; those of the others are one property, which
    // comes last.
    let mut ways: Vec<(Vec<Named>, Vec<&Needed>)> = vec![(named, Vec::new())];
    for some in &object.some {
        let mut next = Vec::new();
        for (named, open) in ways {
            for at in 0..named.len() {
                let goal = expander.goals.and(named[at].goal, some.goal);
                if goal != Goal::NEVER && fits_some(expander, some, &named[at].name)? {
                    let mut named = named.clone();
                    (named[at].goal, named[at].required) = (goal, true);
                    next.push((named, open.clone()));
                }
            }
            let mut open = open;
            open.push(some);
            next.push((named, open));
        }
        ways = next;
        if ways.len() > WAYS_MAX {
            return Err(GrammarError::TooComplex(
                "an object must have too many different properties".to_owned(),
            ));
        }
    }
    for (named, open) in ways {
        if open.is_empty() {
            out.push(plan(named, Vec::new()));
            continue;
        }
        let last = last(expander, &open, &extras)?;
        if !last.is_empty() {
            out.push(plan(named, last));
        }
    }
    Ok(())
}

/// For each goal of names the texts that satisfy it.
fn name_languages(expander: &mut Expander<'_>, names: &[Goal]) -> Result<Vec<RegexAst>> {
    let mut languages = Vec::new();
    for goal in names {
        let shapes = expander.expand(*goal)?;
        let mut options = Vec::new();
        for text in &shapes.strings {
            options.extend(language(text)?);
        }
        languages.push(if options.is_empty() { RegexAst::NoMatch } else { RegexAst::Or(options) });
    }
    Ok(languages)
}

/// The properties that are not named, by which patterns their names match.
fn extras(
    expander: &mut Expander<'_>,
    object: &Object,
    taken: &[String],
    languages: Vec<RegexAst>,
) -> Result<Vec<Extra>> {
    let mut patterns: Vec<Rc<str>> = Vec::new();
    for (pattern, _) in object.rows.iter().flat_map(|row| &row.patterns) {
        if !patterns.contains(pattern) {
            patterns.push(pattern.clone());
        }
    }
    let asks_names = !languages.is_empty();
    let mut base = vec![any_text()];
    base.extend(languages);
    if !taken.is_empty() {
        base.push(RegexAst::Not(Box::new(one_of(taken))));
    }
    // Each step parts the names of each class by one more pattern.
    let mut classes: Vec<(Vec<RegexAst>, Vec<bool>)> = vec![(base, Vec::new())];
    for pattern in &patterns {
        let search = RegexAst::SearchRegex(pattern.to_string());
        let mut parted = Vec::new();
        for (parts, matched) in classes {
            for found in [true, false] {
                let mut parts = parts.clone();
                parts.push(if found { search.clone() } else { RegexAst::Not(Box::new(search.clone())) });
                let matched: Vec<bool> = matched.iter().copied().chain([found]).collect();
                if patterns.len() < 2 || !is_empty(&RegexAst::And(parts.clone())) {
                    parted.push((parts, matched));
                }
            }
        }
        classes = parted;
        expander.check_time()?;
        if classes.len() > CLASSES_MAX {
            return Err(GrammarError::TooComplex("patternProperties overlap in too many ways".to_owned()));
        }
    }
    let mut extras = Vec::new();
    for (mut parts, matched) in classes {
        let found =
            |pattern: &Rc<str>| patterns.iter().zip(&matched).any(|(p, found)| *found && p == pattern);
        let mut goal = Goal::ANY;
        for row in &object.rows {
            let goals: Vec<Goal> =
                row.patterns.iter().filter(|(pattern, _)| found(pattern)).map(|(_, goal)| *goal).collect();
            let goals = if goals.is_empty() { vec![row.additional] } else { goals };
            for each in goals {
                goal = expander.goals.and(goal, each);
            }
        }
        if goal == Goal::NEVER {
            continue;
        }
        let name = if parts.len() == 1 { parts.remove(0) } else { RegexAst::And(parts) };
        // Beside a few names that are taken there are always others.
        if (asks_names || !patterns.is_empty()) && is_empty(&name) {
            continue;
        }
        extras.push(Extra { name, goal });
    }
    Ok(extras)
}

/// Whether a property of this name could be the one that must be there.
fn fits_some(expander: &mut Expander<'_>, some: &Needed, name: &str) -> Result<bool> {
    if some.not_named.iter().any(|other| other == name) {
        return Ok(false);
    }
    for (pattern, found) in &some.patterns {
        if expander.regexes.finds(pattern, name)? != *found {
            return Ok(false);
        }
    }
    let Some(goal) = some.name else { return Ok(true) };
    let languages = name_languages(expander, &[goal])?;
    Ok(!matching(&RegexAst::And(languages), std::iter::once(name))?.is_empty())
}

/// The properties that are everything that must be there.
fn last(expander: &mut Expander<'_>, somes: &[&Needed], extras: &[Extra]) -> Result<Vec<Extra>> {
    let mut parts = Vec::new();
    let mut wanted = Goal::ANY;
    for some in somes {
        wanted = expander.goals.and(wanted, some.goal);
        if !some.not_named.is_empty() {
            parts.push(RegexAst::Not(Box::new(one_of(&some.not_named))));
        }
        for (pattern, found) in &some.patterns {
            let search = RegexAst::SearchRegex(pattern.to_string());
            parts.push(if *found { search } else { RegexAst::Not(Box::new(search)) });
        }
        if let Some(goal) = some.name {
            parts.extend(name_languages(expander, &[goal])?);
        }
    }
    let mut last = Vec::new();
    for extra in extras {
        let goal = expander.goals.and(extra.goal, wanted);
        let name = RegexAst::And([vec![extra.name.clone()], parts.clone()].concat());
        if goal != Goal::NEVER && !is_empty(&name) {
            last.push(Extra { name, goal });
        }
    }
    Ok(last)
}
