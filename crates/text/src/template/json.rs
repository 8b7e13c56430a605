//! The `tojson` filter as transformers defines it: Python's `json.dumps` with `ensure_ascii=False`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deeper values are refused rather than risk the stack.
const DEPTH_MAX: usize = 128;
const INDENT_MAX: usize = 64;

struct Writer<'s, 'a, 'e> {
    state: &'s State<'a, 'e>,
    output: String,
    /// One level of indentation; absent for a single line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ensure_ascii: bool,
    sort_keys: bool,
    /// A character that is written as it is.
    mark: Option<char>,
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`. The mark is no part of the
/// text and stays as it is.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    kwargs: Kwargs,
    mark: Option<char>,
) -> Result<Value, Error> {
    let ensure_ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false);
    let indent = indent(kwargs.get("indent")?)?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let (item_separator, key_separator) = match separators {
        Some(pair) => {
            <[String; 2]>::try_from(pair).map_err(|_| invalid("tojson: separators are a pair"))?.into()
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        state,
        output: String::new(),
        indent,
        item_separator,
        key_separator,
        ensure_ascii,
        sort_keys,
        mark,
    };
    writer.value(value, 0)?;
    Ok(Value::from(writer.output))
}

fn indent(value: Option<Value>) -> Result<Option<String>, Error> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    let text = match value.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(value).unwrap_or(usize::MAX).min(INDENT_MAX + 1)),
    };
    if text.len() > INDENT_MAX {
        return Err(invalid("tojson: the indentation is too wide"));
    }
    Ok(Some(text))
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        if depth > DEPTH_MAX {
            return Err(invalid("tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.output.push_str("null"),
            ValueKind::Bool => self.output.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                let text = match value.is_integer() {
                    true => value.to_string(),
                    false => float(f64::try_from(value.clone())?),
                };
                self.output.push_str(&text);
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            kind => return Err(invalid(format!("tojson: a value of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.output.push('[');
        let mut any = false;
        for item in value.try_iter()? {
            self.before_item(any, depth + 1)?;
            self.value(&item, depth + 1)?;
            any = true;
        }
        self.close(any, depth, ']')
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.output.push('{');
        for (at, key) in keys.iter().enumerate() {
            self.before_item(at > 0, depth + 1)?;
            match (key.kind(), key.as_str()) {
                (_, Some(text)) => self.string(text)?,
                (ValueKind::None, _) => self.string("null")?,
                (ValueKind::Bool, _) => self.string(if key.is_true() { "true" } else { "false" })?,
                (ValueKind::Number, _) => self.string(&key.to_string())?,
                (kind, _) => return Err(invalid(format!("tojson: keys cannot be of type {kind}"))),
            }
            self.output.push_str(&self.key_separator);
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.close(!keys.is_empty(), depth, '}')
    }

    fn before_item(&mut self, after_another: bool, depth: usize) -> Result<(), Error> {
        if after_another {
            self.output.push_str(&self.item_separator);
        }
        self.new_line(depth)
    }

    fn close(&mut self, any: bool, depth: usize, bracket: char) -> Result<(), Error> {
        if any {
            self.new_line(depth)?;
        }
        self.output.push(bracket);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            self.state.consume_fuel((indent.len() * depth) as u64 / 64 + 1)?;
            self.output.push('\n');
            (0..depth).for_each(|_| self.output.push_str(indent));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(text.len() as u64 / 16 + 1)?;
        self.output.push('"');
        for c in text.chars() {
            match c {
                '"' => self.output.push_str("\\\""),
                '\\' => self.output.push_str("\\\\"),
                '\n' => self.output.push_str("\\n"),
                '\r' => self.output.push_str("\\r"),
                '\t' => self.output.push_str("\\t"),
                '\u{8}' => self.output.push_str("\\b"),
                '\u{c}' => self.output.push_str("\\f"),
                c if Some(c) == self.mark => self.output.push(c),
                c if c < ' ' || (self.ensure_ascii && !c.is_ascii()) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        self.output.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.output.push(c),
            }
        }
        self.output.push('"');
        Ok(())
    }
}

/// A float as Python's `repr` and `json.dumps` write it.
fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = value.abs();
    if value == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{value:?}");
    }
    // Rust writes 1e-5 and 1.5e16, Python 1e-05 and 1.5e+16.
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::float;

    #[test]
    fn floats_as_python_writes_them() {
        for (value, expected) in [
            (0.5, "0.5"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (123456789012345.0, "123456789012345.0"),
            (1e-4, "0.0001"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(float(value), expected);
        }
    }
}
