//! From plans to rules.

use std::collections::HashMap;

use llguidance::derivre::RegexAst;
use serde_json::Value;

use super::goal::Goal;
use super::plan::{Extra, ORDERS_MAX, PlannedArray, PlannedObject, Plans};
use super::regexes::quoted;
use super::shape::Contains;
use crate::error::GrammarError;
use crate::rules::{Rules, Symbol};

type Result<T> = std::result::Result<T, GrammarError>;

/// States in which an array or object can be while its items or properties are counted.
const STATES_MAX: usize = 4000;

/// A state of items that are counted: whether the array may end in it, and which items lead where.
struct Step {
    may_end: bool,
    next: Vec<(Goal, usize)>,
}

/// Writes the rules of goals.
pub(crate) struct Emitter<'r, 'p> {
    rules: &'r mut Rules,
    plans: &'p Plans,
    symbols: HashMap<Goal, Symbol>,
    waiting: Vec<(Goal, Symbol)>,
}

/// The symbol of a goal. What it leads to is written, too.
pub(crate) fn emit(rules: &mut Rules, plans: &Plans, root: Goal) -> Result<Symbol> {
    let mut emitter = Emitter { rules, plans, symbols: HashMap::new(), waiting: Vec::new() };
    let symbol = emitter.goal(root)?;
    while let Some((goal, symbol)) = emitter.waiting.pop() {
        emitter.values(goal, symbol)?;
    }
    Ok(symbol)
}

impl Emitter<'_, '_> {
    fn goal(&mut self, goal: Goal) -> Result<Symbol> {
        if let Some(symbol) = self.symbols.get(&goal) {
            return Ok(*symbol);
        }
        let plan = self.plans.get(goal);
        let plain = plan.filter(|plan| plan.arrays.is_empty() && plan.objects.is_empty());
        let symbol = match plain {
            Some(plan) => self.rules.lexeme(either(&plan.scalars))?,
            None => {
                let symbol = self.rules.symbol("value")?;
                self.waiting.push((goal, symbol));
                symbol
            }
        };
        self.symbols.insert(goal, symbol);
        Ok(symbol)
    }

    fn values(&mut self, goal: Goal, symbol: Symbol) -> Result<()> {
        let Some(plan) = self.plans.get(goal) else { return Ok(()) };
        let mut written = false;
        if !plan.scalars.is_empty() {
            let scalar = self.rules.lexeme(either(&plan.scalars))?;
            self.rules.rule(symbol, &[scalar])?;
            written = true;
        }
        for array in &plan.arrays {
            if let Some(array) = self.array(array)? {
                self.rules.rule(symbol, &[array])?;
                written = true;
            }
        }
        for object in &plan.objects {
            if let Some(object) = self.object(object)? {
                self.rules.rule(symbol, &[object])?;
                written = true;
            }
        }
        if !written {
            return Err(GrammarError::TooComplex(
                "an object must have properties whose names are left open, or items are counted too far"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn between(&mut self, open: &str, inner: Symbol, close: &str) -> Result<Symbol> {
        let (open, close) = (self.rules.literal(open)?, self.rules.literal(close)?);
        self.rules.sequence(&[open, inner, close])
    }

    /// One of the options, where there is any.
    fn options(&mut self, options: &[Option<Symbol>]) -> Result<Option<Symbol>> {
        let there: Vec<Symbol> = options.iter().copied().flatten().collect();
        if there.is_empty() { Ok(None) } else { self.rules.choice(&there).map(Some) }
    }

    fn object(&mut self, object: &PlannedObject) -> Result<Option<Symbol>> {
        let mut named = Vec::new();
        for property in &object.named {
            if self.plans.is_productive(property.goal) {
                let name = Value::String(property.name.clone()).to_string();
                let name = self.rules.literal(&name)?;
                let (colon, value) = (self.rules.literal(":")?, self.goal(property.goal)?);
                named.push((self.rules.sequence(&[name, colon, value])?, property.required));
            } else if property.required {
                return Ok(None);
            }
        }
        let required = named.iter().filter(|(_, required)| *required).count();
        let counts = object.max.is_some() || object.min > required;
        let top = match (counts, object.max) {
            (false, _) => 0,
            (true, Some(max)) => max.min(named.len() + object.min + 1),
            (true, None) => object.min,
        };
        if (top + 1).saturating_mul(named.len()) > STATES_MAX && counts {
            return Err(GrammarError::TooComplex("too many properties are counted".to_owned()));
        }
        let extra = self.extra(&object.extras)?;
        let last = self.extra(&object.last)?;
        let comma = self.rules.literal(",")?;
        let tails = |emitter: &mut Self, first: bool, count: usize| {
            if !object.last.is_empty() && last.is_none() {
                return Ok(None);
            }
            emitter.tail(object, extra, last, first, count)
        };
        // Backwards: what may follow property `at`, by how many there are already.
        let mut after = Vec::new();
        for count in 0..=top {
            after.push(tails(self, false, count)?);
        }
        let mut start = tails(self, true, 0)?;
        for (item, required) in named.into_iter().rev() {
            let next = |count: usize| match object.max {
                _ if !counts => Some(0),
                Some(max) if count + 1 > max => None,
                _ => Some((count + 1).min(top)),
            };
            let begun = match next(0).and_then(|count| after[count]) {
                Some(rest) => Some(self.rules.sequence(&[item, rest])?),
                None => None,
            };
            start = self.options(&[begun, start.filter(|_| !required)])?;
            let mut with = Vec::new();
            for count in 0..=top {
                let one_more = match next(count).and_then(|count| after[count]) {
                    Some(rest) => Some(self.rules.sequence(&[comma, item, rest])?),
                    None => None,
                };
                with.push(self.options(&[one_more, after[count].filter(|_| !required)])?);
            }
            after = with;
        }
        match start {
            Some(inner) => self.between("{", inner, "}").map(Some),
            None => Ok(None),
        }
    }

    /// A property that the schema does not name.
    fn extra(&mut self, extras: &[Extra]) -> Result<Option<Symbol>> {
        let mut options = Vec::new();
        for extra in extras.iter().filter(|extra| self.plans.is_productive(extra.goal)) {
            let name = self.rules.lexeme(quoted(extra.name.clone()))?;
            let (colon, value) = (self.rules.literal(":")?, self.goal(extra.goal)?);
            options.push(Some(self.rules.sequence(&[name, colon, value])?));
        }
        self.options(&options)
    }

    /// What follows the named properties. Two properties that are not named may have the same name, so they count for one
    /// where a number is asked for.
    fn tail(
        &mut self,
        object: &PlannedObject,
        extra: Option<Symbol>,
        last: Option<Symbol>,
        first: bool,
        count: usize,
    ) -> Result<Option<Symbol>> {
        let least = object.min.saturating_sub(count);
        let most = object.max.map(|max| max.saturating_sub(count));
        let comma = self.rules.literal(",")?;
        if least > 1 || (least > 0 && extra.is_none() && last.is_none()) {
            return Ok(None);
        }
        if let Some(last) = last {
            if most == Some(0) {
                return Ok(None);
            }
            let before = match extra {
                None => self.rules.empty(),
                Some(extra) => {
                    let parts = if first { [extra, comma] } else { [comma, extra] };
                    let item = self.rules.sequence(&parts)?;
                    self.rules.repeat(item, 0, most.map(|most| most - 1))?
                }
            };
            let parts: &[Symbol] = if first { &[before, last] } else { &[before, comma, last] };
            return self.rules.sequence(parts).map(Some);
        }
        let Some(extra) = extra.filter(|_| most != Some(0)) else {
            return Ok((least == 0).then_some(self.rules.empty()));
        };
        let item = self.rules.sequence(&[comma, extra])?;
        if !first {
            return self.rules.repeat(item, least, most).map(Some);
        }
        let more = self.rules.repeat(item, 0, most.map(|most| most - 1))?;
        let some = self.rules.sequence(&[extra, more])?;
        if least == 0 { self.rules.optional(some).map(Some) } else { Ok(Some(some)) }
    }

    fn array(&mut self, planned: &PlannedArray) -> Result<Option<Symbol>> {
        let inner = if let Some(values) = &planned.unique {
            self.unique(planned, values)?
        } else if planned.array.contains.is_empty() {
            self.items(planned)?
        } else {
            self.counted(planned)?
        };
        match inner {
            Some(inner) => self.between("[", inner, "]").map(Some),
            None => Ok(None),
        }
    }

    /// The only thing that an item at this place can be.
    fn item(&mut self, planned: &PlannedArray, at: usize) -> Result<Option<Symbol>> {
        let roles = &planned.roles[at.min(planned.roles.len() - 1)];
        let goal = roles.first().map(|(_, goal)| *goal).filter(|goal| self.plans.is_productive(*goal));
        goal.map(|goal| self.goal(goal)).transpose()
    }

    fn items(&mut self, planned: &PlannedArray) -> Result<Option<Symbol>> {
        let (min, max) = (planned.array.min, planned.array.max);
        let length = planned.roles.len() - 1;
        let comma = self.rules.literal(",")?;
        let mut prefix = Vec::new();
        for at in 0..length {
            let Some(item) = self.item(planned, at)? else { break };
            prefix.push(item);
        }
        let whole = prefix.len() == length;
        let rest = if whole { self.item(planned, length)? } else { None };
        let most =
            if rest.is_some() { max } else { Some(max.map_or(prefix.len(), |max| max.min(prefix.len()))) };
        if most.is_some_and(|most| most < min) {
            return Ok(None);
        }
        // Backwards: what may follow when `at` items are there.
        let mut after = self.rules.empty();
        if let Some(rest) = rest {
            let item = self.rules.sequence(&[comma, rest])?;
            let least = min.saturating_sub(length);
            let more = most.map(|most| most.saturating_sub(length));
            if length == 0 {
                if more == Some(0) {
                    return Ok(Some(after));
                }
                let others = self.rules.repeat(item, least.saturating_sub(1), more.map(|more| more - 1))?;
                let some = self.rules.sequence(&[rest, others])?;
                return if least == 0 { self.rules.optional(some).map(Some) } else { Ok(Some(some)) };
            }
            after = self.rules.repeat(item, least, more)?;
        }
        for at in (0..prefix.len()).rev() {
            if most.is_some_and(|most| at >= most) {
                continue;
            }
            let item = if at == 0 { prefix[0] } else { self.rules.sequence(&[comma, prefix[at]])? };
            let with = self.rules.sequence(&[item, after])?;
            after = if at >= min { self.rules.optional(with)? } else { with };
        }
        Ok(Some(after))
    }

    /// Items that are counted: states are how many there are and how many of each kind, as far as that matters.
    fn counted(&mut self, planned: &PlannedArray) -> Result<Option<Symbol>> {
        let array = &planned.array;
        let tops: Vec<usize> = array.contains.iter().map(|c| c.max.map_or(c.min, |max| max + 1)).collect();
        let last = array.max.unwrap_or(array.min).max(planned.roles.len() - 1);
        let states = tops.iter().try_fold(last + 2, |states, top| states.checked_mul(top + 1));
        if states.is_none_or(|states| states > STATES_MAX) {
            return Err(GrammarError::TooComplex("too many items are counted".to_owned()));
        }
        let steps = self.steps(planned, &tops, last);
        // A state from which no end can be reached is not written: the answer would be stuck there.
        let mut alive: Vec<bool> = steps.iter().map(|step| step.may_end).collect();
        loop {
            let more: Vec<usize> = (0..steps.len())
                .filter(|at| !alive[*at] && steps[*at].next.iter().any(|(_, to)| alive[*to]))
                .collect();
            if more.is_empty() {
                break;
            }
            more.into_iter().for_each(|at| alive[at] = true);
        }
        if !alive[0] {
            return Ok(None);
        }
        let comma = self.rules.literal(",")?;
        let symbols: Vec<Symbol> = steps.iter().map(|_| self.rules.symbol("items")).collect::<Result<_>>()?;
        for (at, step) in steps.iter().enumerate().filter(|(at, _)| alive[*at]) {
            if step.may_end {
                self.rules.rule(symbols[at], &[])?;
            }
            for (goal, to) in step.next.iter().filter(|(_, to)| alive[*to]) {
                let item = self.goal(*goal)?;
                let parts: &[Symbol] =
                    if at == 0 { &[item, symbols[*to]] } else { &[comma, item, symbols[*to]] };
                self.rules.rule(symbols[at], parts)?;
            }
        }
        Ok(Some(symbols[0]))
    }

    /// The states of items that are counted. The first is that of no item.
    fn steps(&self, planned: &PlannedArray, tops: &[usize], last: usize) -> Vec<Step> {
        let array = &planned.array;
        let mut states = vec![(0, vec![0; tops.len()])];
        let mut places = HashMap::from([(states[0].clone(), 0)]);
        let mut steps = Vec::new();
        while let Some((at, counts)) = states.get(steps.len()).cloned() {
            let fits = |(c, n): (&Contains, &usize)| *n >= c.min && c.max.is_none_or(|max| *n <= max);
            let may_end = at >= array.min && array.contains.iter().zip(&counts).all(fits);
            let mut next = Vec::new();
            let full = array.max.is_some_and(|max| at >= max);
            let roles = &planned.roles[at.min(planned.roles.len() - 1)];
            for (mask, goal) in roles.iter().filter(|_| !full) {
                let mut more = counts.clone();
                for (index, count) in more.iter_mut().enumerate() {
                    *count = (*count + (mask >> index & 1) as usize).min(tops[index]);
                }
                let over = array.contains.iter().zip(&more).any(|(c, n)| c.max.is_some_and(|max| *n > max));
                if over || !self.plans.is_productive(*goal) {
                    continue;
                }
                // The first item is told from others for the comma's sake.
                let state = ((at + 1).min(last.max(1)), more);
                let place = *places.entry(state.clone()).or_insert_with(|| {
                    states.push(state);
                    states.len() - 1
                });
                next.push((*goal, place));
            }
            steps.push(Step { may_end, next });
        }
        steps
    }

    /// Items that differ: in any order where they are few, else in the order of the schema.
    fn unique(&mut self, planned: &PlannedArray, values: &[RegexAst]) -> Result<Option<Symbol>> {
        let (min, max) = (planned.array.min, planned.array.max.unwrap_or(usize::MAX).min(values.len()));
        if min > max {
            return Ok(None);
        }
        let comma = self.rules.literal(",")?;
        let mut items = Vec::new();
        for value in values {
            items.push(self.rules.lexeme(value.clone())?);
        }
        if items.len() > ORDERS_MAX {
            return self.ordered(&items, min, max);
        }
        let states: Vec<Symbol> =
            (0..1usize << items.len()).map(|_| self.rules.symbol("set")).collect::<Result<_>>()?;
        for (used, symbol) in states.iter().enumerate() {
            let count = used.count_ones() as usize;
            if count >= min && count <= max {
                self.rules.rule(*symbol, &[])?;
            }
            for (at, item) in items.iter().enumerate().filter(|(at, _)| used >> at & 1 == 0) {
                if count < max {
                    let target = states[used | 1 << at];
                    let parts: &[Symbol] = if used == 0 { &[*item, target] } else { &[comma, *item, target] };
                    self.rules.rule(*symbol, parts)?;
                }
            }
        }
        Ok(Some(states[0]))
    }

    fn ordered(&mut self, items: &[Symbol], min: usize, max: usize) -> Result<Option<Symbol>> {
        let top = if max < items.len() { max } else { min };
        if (top + 1).saturating_mul(items.len()) > STATES_MAX {
            return Err(GrammarError::TooComplex("too many different items are counted".to_owned()));
        }
        let comma = self.rules.literal(",")?;
        let empty = self.rules.empty();
        let mut after: Vec<Option<Symbol>> = (0..=top).map(|count| (count >= min).then_some(empty)).collect();
        let mut start = (min == 0).then_some(empty);
        for item in items.iter().rev() {
            let next = |count: usize| (count < max || max >= items.len()).then_some((count + 1).min(top));
            let begun = match next(0).and_then(|count| after[count]) {
                Some(rest) => Some(self.rules.sequence(&[*item, rest])?),
                None => None,
            };
            start = self.options(&[begun, start])?;
            let mut with = Vec::new();
            for count in 0..=top {
                let one_more = match next(count).and_then(|count| after[count]) {
                    Some(rest) => Some(self.rules.sequence(&[comma, *item, rest])?),
                    None => None,
                };
                with.push(self.options(&[one_more, after[count]])?);
            }
            after = with;
        }
        Ok(start)
    }
}

fn either(options: &[RegexAst]) -> RegexAst {
    match options {
        [one] => one.clone(),
        _ => RegexAst::Or(options.to_vec()),
    }
}
