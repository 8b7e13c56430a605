//! From goals to shapes: what each keyword says, and what its opposite says.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Instant;

use serde_json::{Map, Value};

use super::decimal::Decimal;
use super::document::Document;
use super::goal::{Goal, Goals, Term};
use super::regexes::Regexes;
use super::shape::{Array, Needed, Number, Object, Row, RowRef, Shapes, Text, products};
use crate::error::GrammarError;

/// Pairs of shapes that are intersected at a time at most.
const PRODUCTS_MAX: usize = 12_000;
/// Shapes in one set at most.
const SHAPES_MAX: usize = 2000;
/// Goals at most.
const GOALS_MAX: usize = 30_000;
/// Keywords that only narrow what is there.
const CHEAP: [&str; 3] = ["type", "const", "enum"];
/// How deep two shapes are compared to find out that they have nothing in common.
const LOOK_DEPTH: usize = 3;

/// Finds out what goals mean.
pub(crate) struct Expander<'a> {
    pub(crate) document: Document<'a>,
    pub(crate) goals: Goals<'a>,
    pub(crate) regexes: Regexes,
    terms: HashMap<(usize, bool, bool), Rc<Shapes>>,
    expanded: HashMap<Goal, Rc<Shapes>>,
    active: HashSet<(usize, bool, bool)>,
    only: HashMap<(String, Goal), RowRef>,
    deadline: Instant,
}

type Result<T> = std::result::Result<T, GrammarError>;

impl<'a> Expander<'a> {
    pub(crate) fn new(document: Document<'a>, deadline: Instant) -> Expander<'a> {
        Expander {
            document,
            goals: Goals::new(),
            regexes: Regexes::new(),
            terms: HashMap::new(),
            expanded: HashMap::new(),
            active: HashSet::new(),
            only: HashMap::new(),
            deadline,
        }
    }

    /// Fails when there is no time left.
    pub(crate) fn check_time(&self) -> Result<()> {
        if Instant::now() > self.deadline {
            return Err(GrammarError::TooComplex("the schema takes too long to compile".to_owned()));
        }
        if self.goals.len() > GOALS_MAX {
            return Err(GrammarError::TooComplex(format!(
                "the schema combines in more than {GOALS_MAX} ways"
            )));
        }
        Ok(())
    }

    /// The values that satisfy a goal.
    pub(crate) fn expand(&mut self, goal: Goal) -> Result<Rc<Shapes>> {
        if let Some(known) = self.expanded.get(&goal) {
            return Ok(known.clone());
        }
        self.check_time()?;
        let shapes = match goal {
            Goal::NEVER => Rc::new(Shapes::none()),
            _ => {
                let mut all: Option<Rc<Shapes>> = None;
                for (term, holds) in self.goals.terms(goal).iter() {
                    let next = self.term(*term, *holds)?;
                    all = Some(match all {
                        None => next,
                        Some(shapes) => Rc::new(self.both(&shapes, &next)?),
                    });
                }
                all.unwrap_or_else(|| Rc::new(Shapes::all()))
            }
        };
        self.expanded.insert(goal, shapes.clone());
        Ok(shapes)
    }

    fn term(&mut self, term: Term<'a>, holds: bool) -> Result<Rc<Shapes>> {
        let (value, is_value) = match term {
            Term::Schema(value) => (value, false),
            Term::Is(value) => (value, true),
        };
        let key = (std::ptr::from_ref(value) as usize, is_value, holds);
        if let Some(known) = self.terms.get(&key) {
            return Ok(known.clone());
        }
        if !self.active.insert(key) {
            return Err(self
                .document
                .invalid(value, "it refers to itself without an array or object between"));
        }
        let shapes = match term {
            Term::Schema(schema) => self.schema(schema, holds),
            Term::Is(value) => Ok(self.constant(value, holds)),
        };
        self.active.remove(&key);
        let shapes = Rc::new(shapes?);
        self.terms.insert(key, shapes.clone());
        Ok(shapes)
    }

    /// The values of a schema, or all others.
    fn schema(&mut self, schema: &'a Value, holds: bool) -> Result<Shapes> {
        let map = match schema {
            Value::Bool(every) => {
                return Ok(if *every == holds { Shapes::all() } else { Shapes::none() });
            }
            Value::Object(map) => map,
            _ => return Err(self.document.invalid(schema, "a schema is an object, true or false")),
        };
        if let Some(reference) = map.get("$ref").filter(|_| !self.document.ref_has_siblings()) {
            return self.reference(schema, reference, holds);
        }
        let mut result = if holds { Shapes::all() } else { Shapes::none() };
        for keyword in self.keywords(schema, map)? {
            let part = self.keyword(schema, map, keyword, holds)?;
            result = if holds { self.both(&result, &part)? } else { result.union(&part) };
            if result.len() > SHAPES_MAX {
                return Err(self.too_many(schema));
            }
            if holds && result.is_empty() {
                break;
            }
        }
        Ok(result)
    }

    fn too_many(&self, schema: &Value) -> GrammarError {
        let at = self.document.path(schema);
        GrammarError::TooComplex(format!("the schema at {at:?} combines in more than {SHAPES_MAX} ways"))
    }

    /// The keywords that say something of values, the cheapest first. Keywords that belong together are told by one of them.
    fn keywords(&self, schema: &'a Value, map: &'a Map<String, Value>) -> Result<Vec<&'static str>> {
        let there = |keyword: &str| map.contains_key(keyword) && self.document.knows(keyword);
        for keyword in ["unevaluatedProperties", "unevaluatedItems"] {
            let says_nothing = map
                .get(keyword)
                .is_none_or(|value| *value == Value::Bool(true) || *value == Value::Object(Map::new()));
            if there(keyword) && !says_nothing {
                return Err(self.document.unsupported(
                    schema,
                    keyword,
                    "what other keywords have looked at is not followed",
                ));
            }
        }
        for keyword in ["$dynamicRef", "$recursiveRef"] {
            if there(keyword) {
                return Err(self.document.unsupported(
                    schema,
                    keyword,
                    "what it means depends on the way that led to it",
                ));
            }
        }
        let groups: [(&'static str, &[&str]); 26] = [
            ("type", &["type"]),
            ("const", &["const"]),
            ("enum", &["enum"]),
            ("minimum", &["minimum", "exclusiveMinimum"]),
            ("maximum", &["maximum", "exclusiveMaximum"]),
            ("multipleOf", &["multipleOf"]),
            ("minLength", &["minLength"]),
            ("maxLength", &["maxLength"]),
            ("pattern", &["pattern"]),
            ("format", &["format"]),
            ("required", &["required"]),
            ("minProperties", &["minProperties"]),
            ("maxProperties", &["maxProperties"]),
            ("properties", &["properties", "patternProperties", "additionalProperties"]),
            ("propertyNames", &["propertyNames"]),
            ("dependencies", &["dependencies", "dependentRequired", "dependentSchemas"]),
            ("minItems", &["minItems"]),
            ("maxItems", &["maxItems"]),
            ("uniqueItems", &["uniqueItems"]),
            ("items", &["items", "prefixItems", "additionalItems"]),
            ("contains", &["contains"]),
            ("$ref", &["$ref"]),
            ("allOf", &["allOf"]),
            ("anyOf", &["anyOf"]),
            ("oneOf", &["oneOf"]),
            ("not", &["not"]),
        ];
        let mut found: Vec<&'static str> = groups
            .iter()
            .copied()
            .filter(|(_, members)| members.iter().any(|keyword| there(keyword)))
            .map(|(name, _)| name)
            .collect();
        // In the order of the schema, which is that of properties then. What narrows types comes first, for speed.
        let places: HashMap<&str, usize> =
            map.keys().enumerate().map(|(at, key)| (key.as_str(), at)).collect();
        let place = |name: &&'static str| {
            let members =
                groups.iter().find(|(group, _)| group == name).map_or(&[][..], |(_, members)| members);
            members.iter().filter_map(|member| places.get(member)).min().copied()
        };
        found.sort_by_key(|name| if CHEAP.contains(name) { None } else { place(name) });
        if there("if") && (there("then") || there("else")) {
            found.push("if");
        }
        Ok(found)
    }

    fn keyword(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        keyword: &str,
        holds: bool,
    ) -> Result<Shapes> {
        match keyword {
            "type" => self.types(schema, &map["type"], holds),
            "const" => Ok(self.constants(std::slice::from_ref(&map["const"]), holds)),
            "enum" => match &map["enum"] {
                Value::Array(values) => Ok(self.constants(values, holds)),
                _ => Err(self.document.invalid(schema, "enum is not a list")),
            },
            "minimum" | "maximum" | "multipleOf" => self.numeric(schema, map, keyword, holds),
            "minLength" | "maxLength" | "pattern" | "format" => self.textual(schema, map, keyword, holds),
            "required" | "minProperties" | "maxProperties" | "properties" | "propertyNames"
            | "dependencies" => self.of_objects(schema, map, keyword, holds),
            "minItems" | "maxItems" | "uniqueItems" | "items" | "contains" => {
                self.of_arrays(schema, map, keyword, holds)
            }
            "$ref" => self.reference(schema, &map["$ref"], holds),
            _ => self.combined(schema, map, keyword, holds),
        }
    }

    fn reference(&mut self, schema: &'a Value, reference: &'a Value, holds: bool) -> Result<Shapes> {
        let Some(reference) = reference.as_str() else {
            return Err(self.document.invalid(schema, "$ref is not a text"));
        };
        let target = self.document.resolve(schema, reference)?;
        let goal = self.goals.schema(target, holds);
        Ok((*self.expand(goal)?).clone())
    }

    /// Everything that is in both.
    pub(crate) fn both(&mut self, a: &Shapes, b: &Shapes) -> Result<Shapes> {
        let sizes = a.objects.len() * b.objects.len() + a.arrays.len() * b.arrays.len();
        if sizes + a.numbers.len() * b.numbers.len() + a.strings.len() * b.strings.len() > PRODUCTS_MAX {
            return Err(GrammarError::TooComplex(format!(
                "the schema combines in more than {SHAPES_MAX} ways"
            )));
        }
        self.check_time()?;
        let goals = std::cell::RefCell::new(&mut self.goals);
        let arrays =
            products(&a.arrays, &b.arrays, |a, b| a.both(b, &mut |x, y| goals.borrow_mut().and(x, y)));
        let objects = products(&a.objects, &b.objects, Object::both);
        let mut kept = Vec::with_capacity(objects.len());
        for (at, object) in objects.into_iter().enumerate() {
            if at % 64 == 63 {
                self.check_time()?;
            }
            if !self.contradicts_itself(&object)? {
                kept.push(object);
            }
        }
        Ok(Shapes {
            null: a.null && b.null,
            yes: a.yes && b.yes,
            no: a.no && b.no,
            numbers: products(&a.numbers, &b.numbers, Number::both),
            strings: products(&a.strings, &b.strings, Text::both),
            arrays,
            objects: kept,
        })
    }

    /// Whether a required property cannot have any value, as far as shows at once.
    fn contradicts_itself(&mut self, object: &Object) -> Result<bool> {
        for name in &object.required {
            if self.property(object, name)? == Goal::NEVER {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the value of a property must satisfy, whatever its name must.
    pub(crate) fn property(&mut self, object: &Object, name: &str) -> Result<Goal> {
        let mut goal = Goal::ANY;
        for row in &object.rows {
            let mut looked_at = false;
            if let Some(named) = row.named(name) {
                goal = self.goals.and(goal, named);
                looked_at = true;
            }
            for (pattern, matched) in &row.patterns {
                if self.regexes.finds(pattern, name)? {
                    goal = self.goals.and(goal, *matched);
                    looked_at = true;
                }
            }
            if !looked_at {
                goal = self.goals.and(goal, row.additional);
            }
        }
        Ok(goal)
    }

    /// A row that says something of a single name.
    fn only(&mut self, name: &str, goal: Goal) -> RowRef {
        let row = self.only.entry((name.to_owned(), goal)).or_insert_with(|| {
            let mut row = Row::new(vec![(Rc::from(name), goal)], Vec::new(), Goal::ANY);
            row.in_passing = true;
            RowRef(Rc::new(row))
        });
        row.clone()
    }

    /// Objects that have a property, which satisfies a goal.
    pub(crate) fn with_property(&mut self, name: &str, goal: Goal) -> Object {
        Object { rows: vec![self.only(name, goal)], required: vec![Rc::from(name)], ..Object::default() }
    }

    /// Objects that do not have a property.
    pub(crate) fn without_property(&mut self, name: &str) -> Object {
        Object { rows: vec![self.only(name, Goal::NEVER)], ..Object::default() }
    }

    /// False when no value satisfies the goal. True may be wrong: it is looked only so far.
    pub(crate) fn is_possible(&mut self, goal: Goal, depth: usize) -> Result<bool> {
        if goal == Goal::NEVER {
            return Ok(false);
        }
        if goal == Goal::ANY || depth == 0 {
            return Ok(true);
        }
        let shapes = match self.expand(goal) {
            Ok(shapes) => shapes,
            Err(GrammarError::TooComplex(reason)) => return Err(GrammarError::TooComplex(reason)),
            // A schema that is being looked at already, or that will be refused when it is used.
            Err(_) => return Ok(true),
        };
        if shapes.null || shapes.yes || shapes.no || !shapes.numbers.is_empty() || !shapes.strings.is_empty()
        {
            return Ok(true);
        }
        for array in &shapes.arrays {
            let mut possible = true;
            for at in 0..array.min.min(8) {
                let item = array.prefix.get(at).copied().unwrap_or(array.rest);
                possible = possible && self.is_possible(item, depth - 1)?;
            }
            if possible {
                return Ok(true);
            }
        }
        for object in &shapes.objects {
            let mut possible = true;
            for name in &object.required {
                let goal = self.property(object, name)?;
                possible = possible && self.is_possible(goal, depth - 1)?;
            }
            if possible {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn types(&self, schema: &'a Value, types: &'a Value, holds: bool) -> Result<Shapes> {
        let names: Vec<&str> = match types {
            Value::String(name) => vec![name],
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if names.is_empty() {
            return Err(self.document.invalid(schema, "type names no type"));
        }
        let all = Shapes::all();
        let mut result = Shapes::none();
        let mut whole = false;
        for name in names {
            match name {
                "null" => result.null = true,
                "boolean" => (result.yes, result.no) = (true, true),
                "number" => result.numbers = all.numbers.clone(),
                "integer" => whole = true,
                "string" => result.strings = all.strings.clone(),
                "array" => result.arrays = all.arrays.clone(),
                "object" => result.objects = all.objects.clone(),
                "any" => result = Shapes::all(),
                other => return Err(self.document.invalid(schema, format!("there is no type {other:?}"))),
            }
        }
        let whole = whole && result.numbers.is_empty();
        if !holds {
            result = Shapes {
                null: !result.null,
                yes: !result.yes,
                no: !result.no,
                numbers: if result.numbers.is_empty() { all.numbers } else { Vec::new() },
                strings: if result.strings.is_empty() { all.strings } else { Vec::new() },
                arrays: if result.arrays.is_empty() { all.arrays } else { Vec::new() },
                objects: if result.objects.is_empty() { all.objects } else { Vec::new() },
            };
        }
        if whole {
            result.numbers = vec![Number { integer: Some(holds), ..Number::default() }];
        }
        Ok(result)
    }

    /// One of these values, or none of them.
    fn constants(&mut self, values: &'a [Value], holds: bool) -> Shapes {
        let decimal = |value: &Value| value.as_number().map(|number| Decimal::parse(&number.to_string()));
        let points: Vec<Decimal> = values.iter().filter_map(decimal).flatten().collect();
        let texts: Vec<String> = values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let texts = Rc::new(texts);
        let has = |value: Value| values.contains(&value);
        let (null, yes, no) = (has(Value::Null), has(Value::Bool(true)), has(Value::Bool(false)));
        let nested = values.iter().filter(|value| value.is_array() || value.is_object());
        if holds {
            let mut result = Shapes { null, yes, no, ..Shapes::none() };
            if !points.is_empty() {
                result.numbers = vec![Number { points: Some(points), ..Number::default() }];
            }
            if !texts.is_empty() {
                result.strings = vec![Text { literals: Some(texts), ..Text::default() }];
            }
            for value in nested {
                result = result.union(&self.constant(value, true));
            }
            return result;
        }
        let mut result = Shapes { null: !null, yes: !yes, no: !no, ..Shapes::all() };
        result.numbers = vec![Number { not_points: points, ..Number::default() }];
        if !texts.is_empty() {
            result.strings = vec![Text { not_literals: vec![texts], ..Text::default() }];
        }
        for value in nested {
            let other = self.constant(value, false);
            // The deadline is checked by whoever asked for this.
            result = self.both(&result, &other).unwrap_or_else(|_| Shapes::none());
        }
        result
    }

    /// This value, or every other.
    fn constant(&mut self, value: &'a Value, holds: bool) -> Shapes {
        match (value, holds) {
            (Value::Array(items), true) => {
                let prefix: Vec<Goal> = items.iter().map(|item| self.goals.value(item, true)).collect();
                let length = prefix.len();
                let array =
                    Array { prefix, rest: Goal::NEVER, min: length, max: Some(length), ..Array::default() };
                Shapes::array(array)
            }
            (Value::Array(items), false) => {
                let mut arrays = vec![Array { min: items.len() + 1, ..Array::default() }];
                if let Some(shorter) = items.len().checked_sub(1) {
                    arrays.push(Array { max: Some(shorter), ..Array::default() });
                }
                for (at, item) in items.iter().enumerate() {
                    let mut prefix = vec![Goal::ANY; at];
                    prefix.push(self.goals.value(item, false));
                    let length = items.len();
                    arrays.push(Array { prefix, min: length, max: Some(length), ..Array::default() });
                }
                Shapes { arrays, ..Shapes::all() }
            }
            (Value::Object(map), true) => {
                let goals = &mut self.goals;
                let properties =
                    map.iter().map(|(name, value)| (Rc::from(name.as_str()), goals.value(value, true)));
                let row = Row::new(properties.collect(), Vec::new(), Goal::NEVER);
                let required = map.keys().map(|name| Rc::from(name.as_str())).collect();
                Shapes::object(Object { rows: vec![RowRef(Rc::new(row))], required, ..Object::default() })
            }
            (Value::Object(map), false) => {
                let more = Needed {
                    not_named: map.keys().cloned().collect(),
                    patterns: Vec::new(),
                    name: None,
                    goal: Goal::ANY,
                };
                let mut objects = vec![Object { some: vec![Rc::new(more)], ..Object::default() }];
                for (name, value) in map {
                    objects.push(self.without_property(name));
                    let goal = self.goals.value(value, false);
                    objects.push(self.with_property(name, goal));
                }
                Shapes { objects, ..Shapes::all() }
            }
            _ => self.constants(std::slice::from_ref(value), holds),
        }
    }

    /// allOf, anyOf, oneOf, not, if.
    fn combined(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        keyword: &str,
        holds: bool,
    ) -> Result<Shapes> {
        if keyword == "not" {
            let inner = self.document.reach(schema, &["not"], &map["not"]);
            let goal = self.goals.schema(inner, !holds);
            return Ok((*self.expand(goal)?).clone());
        }
        if keyword == "if" {
            return self.conditional(schema, map, holds);
        }
        let Value::Array(parts) = &map[keyword] else {
            return Err(self.document.invalid(schema, format!("{keyword} is not a list")));
        };
        let parts: Vec<&'a Value> = parts
            .iter()
            .enumerate()
            .map(|(at, part)| self.document.reach(schema, &[keyword, &at.to_string()], part))
            .collect();
        match keyword {
            "allOf" => self.all_of(schema, &parts, holds),
            "anyOf" => self.any_of(schema, &parts, holds),
            _ => self.one_of(schema, &parts, holds),
        }
    }

    fn all_of(&mut self, schema: &'a Value, parts: &[&'a Value], holds: bool) -> Result<Shapes> {
        let mut result = if holds { Shapes::all() } else { Shapes::none() };
        for part in parts {
            let goal = self.goals.schema(part, holds);
            let shapes = self.expand(goal)?;
            result = if holds { self.both(&result, &shapes)? } else { result.union(&shapes) };
            if result.len() > SHAPES_MAX {
                return Err(self.too_many(schema));
            }
        }
        Ok(result)
    }

    fn any_of(&mut self, schema: &'a Value, parts: &[&'a Value], holds: bool) -> Result<Shapes> {
        let mut result = if holds { Shapes::none() } else { Shapes::all() };
        for part in parts {
            let goal = self.goals.schema(part, holds);
            let shapes = self.expand(goal)?;
            result = if holds { result.union(&shapes) } else { self.both(&result, &shapes)? };
            if result.len() > SHAPES_MAX {
                return Err(self.too_many(schema));
            }
        }
        Ok(result)
    }

    /// Exactly one: each branch without the others, as far as others have something in common with it.
    fn one_of(&mut self, schema: &'a Value, parts: &[&'a Value], holds: bool) -> Result<Shapes> {
        let goals: Vec<Goal> = parts.iter().map(|part| self.goals.schema(part, true)).collect();
        let mut overlaps = Vec::new();
        for i in 0..goals.len() {
            for j in i + 1..goals.len() {
                let both = self.goals.and(goals[i], goals[j]);
                if self.is_possible(both, LOOK_DEPTH)? {
                    overlaps.push((i, j));
                }
            }
        }
        let mut result = Shapes::none();
        if !holds {
            // None of them, or two at least.
            result = self.any_of(schema, parts, false)?;
            for (i, j) in overlaps {
                let both = self.goals.and(goals[i], goals[j]);
                result = result.union(&*self.expand(both)?);
            }
            return Ok(result);
        }
        for (i, goal) in goals.iter().enumerate() {
            let mut only = (*self.expand(*goal)?).clone();
            for (a, b) in overlaps.iter().filter(|(a, b)| *a == i || *b == i) {
                let other = self.goals.schema(parts[if *a == i { *b } else { *a }], false);
                let other = self.expand(other)?;
                only = self.both(&only, &other)?;
                if only.len() > SHAPES_MAX {
                    return Err(self.too_many(schema));
                }
            }
            result = result.union(&only);
        }
        Ok(result)
    }

    fn conditional(&mut self, schema: &'a Value, map: &'a Map<String, Value>, holds: bool) -> Result<Shapes> {
        let condition = self.document.reach(schema, &["if"], &map["if"]);
        let mut result = Shapes::none();
        for (branch, met) in [("then", true), ("else", false)] {
            let goal = self.goals.schema(condition, met);
            let when = self.expand(goal)?;
            let branch = map.get(branch).map(|value| self.document.reach(schema, &[branch], value));
            let goal = match branch {
                Some(branch) => self.goals.schema(branch, holds),
                None if holds => Goal::ANY,
                None => Goal::NEVER,
            };
            let consequence = self.expand(goal)?;
            result = result.union(&self.both(&when, &consequence)?);
        }
        Ok(result)
    }
}
