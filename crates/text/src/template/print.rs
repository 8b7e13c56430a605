//! Printing values as Python's `str` does, paid for while it happens.
//!
//! The engine charges for printed text once it exists. That is too late for lists that contain each other
//! many times over: sixty nested pairs print as 2^60 items.

use std::borrow::Cow;
use std::fmt::Write as _;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// Deeper values are refused rather than risk the stack.
const DEPTH_MAX: usize = 128;

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map)
}

/// Writes the value of a `{{ ... }}`.
pub(super) fn formatter(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if !is_container(value) {
        return minijinja::escape_formatter(output, state, value);
    }
    output.write_str(&str(state, value)?).map_err(Error::from)
}

/// The `string` filter: `str(value)`.
pub(super) fn string(state: &State, value: &Value) -> Result<Value, Error> {
    Ok(if value.as_str().is_some() { value.clone() } else { Value::from(str(state, value)?) })
}

/// A value as text, paid for.
pub(super) fn text<'v>(state: &State, value: &'v Value) -> Result<Cow<'v, str>, Error> {
    value.as_str().map_or_else(|| str(state, value).map(Cow::Owned), |text| Ok(Cow::Borrowed(text)))
}

/// The `join` filter: `str` of every item, or of one attribute of it, with a separator between.
pub(super) fn join(
    state: &State,
    value: &Value,
    separator: Option<&str>,
    attribute: Option<&str>,
) -> Result<Value, Error> {
    let separator = separator.unwrap_or_default();
    let mut output = String::new();
    for (at, item) in value.try_iter()?.enumerate() {
        let item = match attribute {
            Some(attribute) => item.get_attr(attribute)?,
            None => item,
        };
        if at > 0 {
            state.consume_fuel(separator.len() as u64 / 64 + 1)?;
            output.push_str(separator);
        }
        match item.as_str() {
            Some(text) => {
                state.consume_fuel(text.len() as u64 / 64 + 1)?;
                output.push_str(text);
            }
            None => output.push_str(&str(state, &item)?),
        }
    }
    Ok(Value::from(output))
}

/// Python's `iterable` test: `None` and numbers cannot be iterated over.
pub(super) fn is_iterable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

fn str(state: &State, value: &Value) -> Result<String, Error> {
    if !is_container(value) {
        return Ok(value.to_string());
    }
    let mut output = String::new();
    repr(state, value, 0, &mut output)?;
    Ok(output)
}

fn repr(state: &State, value: &Value, depth: usize, output: &mut String) -> Result<(), Error> {
    state.consume_fuel(1)?;
    if depth > DEPTH_MAX {
        return Err(invalid("the value is nested too deeply to be printed"));
    }
    if let Some(text) = value.as_str() {
        state.consume_fuel(text.len() as u64 / 16)?;
        repr_string(text, output);
        return Ok(());
    }
    match value.kind() {
        ValueKind::Map => {
            output.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                output.push_str(if at > 0 { ", " } else { "" });
                repr(state, &key, depth + 1, output)?;
                output.push_str(": ");
                repr(state, &value.get_item(&key)?, depth + 1, output)?;
            }
            output.push('}');
        }
        ValueKind::Seq => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            output.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                output.push_str(if count > 0 { ", " } else { "" });
                repr(state, &item, depth + 1, output)?;
                count += 1;
            }
            output.push_str(match (tuple, count) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        ValueKind::Undefined => output.push_str("Undefined"),
        _ => output.push_str(&value.to_string()),
    }
    Ok(())
}

/// A string literal as Python's `repr` writes it.
fn repr_string(text: &str, output: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    output.push(quote);
    for c in text.chars() {
        match c {
            '\n' => output.push_str("\\n"),
            '\r' => output.push_str("\\r"),
            '\t' => output.push_str("\\t"),
            '\\' => output.push_str("\\\\"),
            c if c == quote => output.extend(['\\', c]),
            c if c < ' ' || ('\u{7f}'..='\u{a0}').contains(&c) || c == '\u{ad}' => {
                // Writing to a string cannot fail.
                let _ = write!(output, "\\x{:02x}", u32::from(c));
            }
            c => output.push(c),
        }
    }
    output.push(quote);
}
