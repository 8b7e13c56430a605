//! What single keywords say, and what their opposites say.

use std::rc::Rc;

use serde_json::{Map, Value};

use super::decimal::Decimal;
use super::expand::Expander;
use super::formats::{Format, lookup};
use super::goal::Goal;
use super::shape::{Array, Contains, Needed, Number, Object, Row, RowRef, Shapes, Text};
use crate::error::GrammarError;

type Result<T> = std::result::Result<T, GrammarError>;

impl<'a> Expander<'a> {
    pub(super) fn numeric(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        keyword: &str,
        holds: bool,
    ) -> Result<Shapes> {
        if keyword == "multipleOf" {
            let step = self.decimal(schema, map, keyword)?.map(Decimal::abs);
            let step = step.filter(|step| !step.is_zero() && step.places().is_some());
            let step = step.ok_or_else(|| {
                self.document.unsupported(schema, keyword, "only steps with up to 8 digits are followed")
            })?;
            let number = if holds {
                Number { multiples: vec![step], ..Number::default() }
            } else {
                Number { not_multiples: vec![step], ..Number::default() }
            };
            let shapes = Shapes::number(number);
            return Ok(if holds { shapes.or_other_types() } else { shapes });
        }
        let exclusive = if keyword == "minimum" { "exclusiveMinimum" } else { "exclusiveMaximum" };
        let plain = self.decimal(schema, map, keyword)?;
        let mut bounds = Vec::new();
        match map.get(exclusive) {
            // Draft 4: a remark on the other keyword.
            Some(Value::Bool(excluded)) => bounds.extend(plain.map(|bound| (bound, *excluded))),
            _ => {
                bounds.extend(plain.map(|bound| (bound, false)));
                bounds.extend(self.decimal(schema, map, exclusive)?.map(|bound| (bound, true)));
            }
        }
        let mut result = if holds { Shapes::all() } else { Shapes::none() };
        for (bound, excluded) in bounds {
            // The opposite of "at least" is "less than".
            let is_lower = (keyword == "minimum") == holds;
            let bound = Some((bound, excluded == holds));
            let number = if is_lower {
                Number { min: bound, ..Number::default() }
            } else {
                Number { max: bound, ..Number::default() }
            };
            let shapes = Shapes::number(number);
            result =
                if holds { self.both(&result, &shapes.or_other_types())? } else { result.union(&shapes) };
        }
        Ok(result)
    }

    /// A number, or none where the keyword is absent. One that is too large to be met by any number is left out.
    fn decimal(&self, schema: &Value, map: &Map<String, Value>, keyword: &str) -> Result<Option<Decimal>> {
        let Some(value) = map.get(keyword) else { return Ok(None) };
        let Some(number) = value.as_number() else {
            return Err(self.document.invalid(schema, format!("{keyword} is not a number")));
        };
        match Decimal::parse(&number.to_string()) {
            Some(decimal) => Ok(Some(decimal)),
            None => Err(self.document.unsupported(schema, keyword, "the number has too many digits")),
        }
    }

    /// A count. Validators take 2.0 for 2.
    fn count(&self, schema: &Value, map: &Map<String, Value>, keyword: &str) -> Result<usize> {
        let value = &map[keyword];
        let whole = value.as_u64().or_else(|| {
            let float = value.as_f64().filter(|float| *float >= 0.0 && float.fract() == 0.0);
            float.map(|float| float as u64)
        });
        let whole =
            whole.ok_or_else(|| self.document.invalid(schema, format!("{keyword} is not a count")))?;
        Ok(usize::try_from(whole).unwrap_or(usize::MAX).min(usize::MAX / 4))
    }

    /// The least and the most that a keyword such as `minItems` allows, or where it does not hold; `None` where nothing is allowed.
    fn bounds(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        keyword: &str,
        holds: bool,
    ) -> Result<Option<(usize, Option<usize>)>> {
        let count = self.count(schema, map, keyword)?;
        Ok(match (keyword.starts_with("min"), holds) {
            (true, true) => Some((count, None)),
            (true, false) => count.checked_sub(1).map(|most| (0, Some(most))),
            (false, true) => Some((0, Some(count))),
            (false, false) => Some((count + 1, None)),
        })
    }

    pub(super) fn textual(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        keyword: &str,
        holds: bool,
    ) -> Result<Shapes> {
        let text = match keyword {
            "minLength" | "maxLength" => {
                let Some((min, max)) = self.bounds(schema, map, keyword, holds)? else {
                    return Ok(Shapes::none());
                };
                Text { min, max, ..Text::default() }
            }
            "pattern" => {
                let Some(pattern) = map[keyword].as_str() else {
                    return Err(self.document.invalid(schema, "pattern is not a text"));
                };
                Text { patterns: vec![(self.pattern(schema, keyword, pattern)?, holds)], ..Text::default() }
            }
            _ => {
                let name = map[keyword].as_str().unwrap_or_default();
                match lookup(name) {
                    Format::Remark => return Ok(if holds { Shapes::all() } else { Shapes::none() }),
                    Format::Is(_) if !holds => {
                        return Err(self.document.unsupported(schema, keyword, "its opposite is not known"));
                    }
                    Format::Is(regex) => Text { formats: vec![regex], ..Text::default() },
                }
            }
        };
        let shapes = Shapes::string(text);
        Ok(if holds { shapes.or_other_types() } else { shapes })
    }

    /// A pattern that the library can read.
    fn pattern(&mut self, schema: &Value, keyword: &str, pattern: &str) -> Result<Rc<str>> {
        self.regexes.translated(pattern).map_err(|reason| {
            let shown: String = pattern.chars().take(80).collect();
            self.document.unsupported(schema, keyword, format!("{shown:?}: {reason}"))
        })
    }

    fn names(&self, schema: &Value, keyword: &str, value: &Value) -> Result<Vec<Rc<str>>> {
        let names = value.as_array().and_then(|names| {
            names.iter().map(|name| name.as_str().map(Rc::from)).collect::<Option<Vec<Rc<str>>>>()
        });
        match names {
            Some(mut names) => {
                let mut seen = std::collections::HashSet::new();
                names.retain(|name| seen.insert(name.clone()));
                Ok(names)
            }
            // Draft 3 had a flag on the property itself.
            None if value.is_boolean() => Ok(Vec::new()),
            None => Err(self.document.invalid(schema, format!("{keyword} is not a list of names"))),
        }
    }

    pub(super) fn of_objects(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        keyword: &str,
        holds: bool,
    ) -> Result<Shapes> {
        let object = match keyword {
            "required" => {
                let required = self.names(schema, keyword, &map[keyword])?;
                if !holds {
                    let objects = required.iter().map(|name| self.without_property(name)).collect();
                    return Ok(Shapes { objects, ..Shapes::none() });
                }
                Object { required, ..Object::default() }
            }
            "minProperties" | "maxProperties" => {
                let Some((min, max)) = self.bounds(schema, map, keyword, holds)? else {
                    return Ok(Shapes::none());
                };
                Object { min, max, ..Object::default() }
            }
            "propertyNames" => {
                let inner = self.document.reach(schema, &[keyword], &map[keyword]);
                let name = self.goals.schema(inner, true);
                if !holds {
                    let some = Needed {
                        not_named: Vec::new(),
                        patterns: Vec::new(),
                        name: self.goals.not(name),
                        goal: Goal::ANY,
                    };
                    return Ok(Shapes::object(Object { some: vec![Rc::new(some)], ..Object::default() }));
                }
                Object { names: vec![name], ..Object::default() }
            }
            "dependencies" => return self.dependencies(schema, map, holds),
            _ => return self.row(schema, map, holds),
        };
        let shapes = Shapes::object(object);
        Ok(if holds { shapes.or_other_types() } else { shapes })
    }

    /// properties, patternProperties and additionalProperties.
    fn row(&mut self, schema: &'a Value, map: &'a Map<String, Value>, holds: bool) -> Result<Shapes> {
        let mut properties = Vec::new();
        for (name, value) in self.members(schema, map, "properties")? {
            let value = self.document.reach(schema, &["properties", name], value);
            properties.push((Rc::from(name.as_str()), self.goals.schema(value, holds)));
        }
        let mut patterns = Vec::new();
        for (pattern, value) in self.members(schema, map, "patternProperties")? {
            let value = self.document.reach(schema, &["patternProperties", pattern], value);
            let translated = self.pattern(schema, "patternProperties", pattern)?;
            patterns.push((translated, self.goals.schema(value, holds)));
        }
        let additional = match map.get("additionalProperties") {
            Some(value) => {
                let value = self.document.reach(schema, &["additionalProperties"], value);
                self.goals.schema(value, holds)
            }
            None if holds => Goal::ANY,
            None => Goal::NEVER,
        };
        if holds {
            let row = RowRef(Rc::new(Row::new(properties, patterns, additional)));
            return Ok(Shapes::object(Object { rows: vec![row], ..Object::default() }).or_other_types());
        }
        // Some property is there whose value does not fit.
        let mut objects: Vec<Object> =
            properties.iter().map(|(name, goal)| self.with_property(name, *goal)).collect();
        let mut some = |some: Needed| {
            objects.push(Object { some: vec![Rc::new(some)], ..Object::default() });
        };
        for (pattern, goal) in &patterns {
            let patterns = vec![(pattern.clone(), true)];
            some(Needed { not_named: Vec::new(), patterns, name: None, goal: *goal });
        }
        if additional != Goal::NEVER {
            let not_named = properties.iter().map(|(name, _)| name.to_string()).collect();
            let patterns = patterns.iter().map(|(pattern, _)| (pattern.clone(), false)).collect();
            some(Needed { not_named, patterns, name: None, goal: additional });
        }
        objects.retain(|object| object.some.iter().all(|some| some.goal != Goal::NEVER));
        Ok(Shapes { objects, ..Shapes::none() })
    }

    fn members(
        &self,
        schema: &Value,
        map: &'a Map<String, Value>,
        keyword: &str,
    ) -> Result<Vec<(&'a String, &'a Value)>> {
        match map.get(keyword) {
            None => Ok(Vec::new()),
            Some(Value::Object(members)) => Ok(members.iter().collect()),
            Some(_) => Err(self.document.invalid(schema, format!("{keyword} is not an object"))),
        }
    }

    /// A property that asks for others, or for a schema: either it is absent, or what it asks for holds.
    fn dependencies(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        holds: bool,
    ) -> Result<Shapes> {
        let mut result = if holds { Shapes::all() } else { Shapes::none() };
        for keyword in ["dependencies", "dependentRequired", "dependentSchemas"] {
            if !self.document.knows(keyword) {
                continue;
            }
            for (name, asked) in self.members(schema, map, keyword)? {
                let present =
                    Shapes::object(Object { required: vec![Rc::from(name.as_str())], ..Object::default() });
                let consequence = match asked {
                    Value::Array(_) | Value::String(_) => {
                        let list = match asked {
                            Value::String(name) => vec![Rc::from(name.as_str())],
                            _ => self.names(schema, keyword, asked)?,
                        };
                        if holds {
                            Shapes::object(Object { required: list, ..Object::default() }).or_other_types()
                        } else {
                            let objects = list.iter().map(|name| self.without_property(name)).collect();
                            Shapes { objects, ..Shapes::none() }
                        }
                    }
                    _ => {
                        let asked = self.document.reach(schema, &[keyword, name], asked);
                        let goal = self.goals.schema(asked, holds);
                        (*self.expand(goal)?).clone()
                    }
                };
                let met = self.both(&present, &consequence)?;
                if holds {
                    let absent = self.without_property(name);
                    let either = Shapes::object(absent).union(&met).or_other_types();
                    result = self.both(&result, &either)?;
                } else {
                    result = result.union(&met);
                }
            }
        }
        Ok(result)
    }

    pub(super) fn of_arrays(
        &mut self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
        keyword: &str,
        holds: bool,
    ) -> Result<Shapes> {
        let array = match keyword {
            "minItems" | "maxItems" => {
                let Some((min, max)) = self.bounds(schema, map, keyword, holds)? else {
                    return Ok(Shapes::none());
                };
                Array { min, max, ..Array::default() }
            }
            "uniqueItems" => match (map[keyword] == Value::Bool(true), holds) {
                (true, true) => {
                    let path = Rc::from(self.document.path(schema));
                    Array { unique: Some(path), ..Array::default() }
                }
                (true, false) => {
                    return Err(self.document.unsupported(schema, keyword, "its opposite is not known"));
                }
                (false, true) => return Ok(Shapes::all()),
                (false, false) => return Ok(Shapes::none()),
            },
            "contains" => return self.contains(schema, map, holds),
            _ => return self.items(schema, map, holds),
        };
        let shapes = Shapes::array(array);
        Ok(if holds { shapes.or_other_types() } else { shapes })
    }

    fn contains(&mut self, schema: &'a Value, map: &'a Map<String, Value>, holds: bool) -> Result<Shapes> {
        let inner = self.document.reach(schema, &["contains"], &map["contains"]);
        let goal = self.goals.schema(inner, true);
        let bound = |keyword: &str| -> Result<Option<usize>> {
            if !map.contains_key(keyword) || !self.document.knows(keyword) {
                return Ok(None);
            }
            self.count(schema, map, keyword).map(Some)
        };
        let (min, max) = (bound("minContains")?.unwrap_or(1), bound("maxContains")?);
        let array =
            |min, max| Array { contains: vec![Contains { from: 0, goal, min, max }], ..Array::default() };
        if holds {
            return Ok(Shapes::array(array(min, max)).or_other_types());
        }
        // Too few of them, or too many.
        let few = min.checked_sub(1).map(|most| array(0, Some(most)));
        let many = max.map(|max| array(max + 1, None));
        Ok(Shapes { arrays: few.into_iter().chain(many).collect(), ..Shapes::none() })
    }

    /// items, prefixItems and additionalItems.
    fn items(&mut self, schema: &'a Value, map: &'a Map<String, Value>, holds: bool) -> Result<Shapes> {
        let there = |keyword: &str| map.get(keyword).filter(|_| self.document.knows(keyword));
        let (list, list_keyword, rest, rest_keyword) = match (there("items"), there("prefixItems")) {
            // Before draft 2020 the items of the beginning were a list here.
            (Some(Value::Array(list)), _) => {
                (Some(list), "items", there("additionalItems"), "additionalItems")
            }
            (rest, Some(Value::Array(list))) => (Some(list), "prefixItems", rest, "items"),
            (_, Some(_)) => return Err(self.document.invalid(schema, "prefixItems is not a list")),
            (rest, None) => (None, "", rest, "items"),
        };
        let mut prefix = Vec::new();
        for (at, item) in list.into_iter().flatten().enumerate() {
            let item = self.document.reach(schema, &[list_keyword, &at.to_string()], item);
            prefix.push(self.goals.schema(item, holds));
        }
        let rest = rest.map(|rest| self.document.reach(schema, &[rest_keyword], rest));
        let rest = rest.map(|rest| self.goals.schema(rest, holds));
        if holds {
            let rest = rest.unwrap_or(Goal::ANY);
            return Ok(Shapes::array(Array { prefix, rest, ..Array::default() }).or_other_types());
        }
        // Some item is there that does not fit.
        let length = prefix.len();
        let mut arrays: Vec<Array> = (0..length)
            .map(|at| {
                let mut before = vec![Goal::ANY; at];
                before.push(prefix[at]);
                Array { prefix: before, min: at + 1, ..Array::default() }
            })
            .collect();
        if let Some(goal) = rest.filter(|goal| *goal != Goal::NEVER) {
            let contains = vec![Contains { from: length, goal, min: 1, max: None }];
            arrays.push(Array { contains, ..Array::default() });
        }
        Ok(Shapes { arrays, ..Shapes::none() })
    }
}
