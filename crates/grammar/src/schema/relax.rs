//! Schemas of tools: what cannot be honoured is left out, and said.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::strict;
use crate::error::GrammarError;
use crate::rules::Rules;

/// Keywords left out one by one at most.
const STEPS_MAX: usize = 40;
/// Keywords that are left out together when leaving out single ones does not help.
const HARD: [&str; 16] = [
    "not",
    "oneOf",
    "if",
    "then",
    "else",
    "patternProperties",
    "minProperties",
    "maxProperties",
    "uniqueItems",
    "contains",
    "dependencies",
    "dependentSchemas",
    "dependentRequired",
    "propertyNames",
    "format",
    "pattern",
];

/// A schema that can be honoured, made from one that perhaps cannot.
pub(crate) struct Relaxed {
    /// What is honoured.
    pub(crate) schema: Value,
    /// What was left out, and why.
    pub(crate) notices: Vec<String>,
}

impl Relaxed {
    /// Leaves out of a schema what cannot be honoured. What is left describes objects at least.
    pub(crate) fn new(schema: &Value, deadline: Instant) -> Relaxed {
        let mut relaxed = Relaxed { schema: schema.clone(), notices: Vec::new() };
        for _ in 0..STEPS_MAX {
            let error = match attempt(&relaxed.schema, deadline) {
                Ok(()) => return relaxed,
                Err(error) => error,
            };
            let GrammarError::Unsupported { path, keyword, .. } = &error else { break };
            let removed = match relaxed.schema.pointer_mut(path) {
                Some(Value::Object(map)) => map.shift_remove(keyword).is_some(),
                _ => false,
            };
            if !removed {
                break;
            }
            relaxed.notices.push(format!("left out: {error}"));
        }
        if let Err(error) = attempt(&relaxed.schema, deadline) {
            strip(&mut relaxed.schema);
            relaxed.notices.push(format!("only the plain keywords are honoured: {error}"));
        }
        if let Err(error) = attempt(&relaxed.schema, deadline) {
            relaxed.schema = json!({"type": "object"});
            relaxed.notices.push(format!("any object is allowed: {error}"));
        }
        relaxed
    }
}

fn attempt(schema: &Value, deadline: Instant) -> Result<(), GrammarError> {
    let mut rules = Rules::new()?;
    strict(&mut rules, schema, deadline).map(|_| ())
}

/// Takes the hard keywords out of every object. A property may have the name of one; then its schema goes, which only allows
/// more.
fn strip(schema: &mut Value) {
    let mut waiting = vec![schema];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(map) => {
                remove_all(map);
                waiting.extend(map.values_mut());
            }
            _ => {}
        }
    }
}

fn remove_all(map: &mut Map<String, Value>) {
    for keyword in HARD {
        map.shift_remove(keyword);
    }
}
