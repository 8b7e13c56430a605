//! Metadata values, borrowed from the header bytes that the parser keeps.

use std::borrow::Cow;

use super::types::ValueType;

/// A metadata value. Arrays stay in the file's encoding until they are iterated, so that opening a model does not build
/// a vocabulary of strings.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Cow<'a, str>),
    Array(ArrayValue<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value<'_> {
    /// The value as an integer, if it is one.
    pub(crate) fn as_int(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value as a float, if it is a float or an integer.
    pub(crate) fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => self.as_int().map(|v| v as f64),
        }
    }

    /// Type name, for example `u32` or `array of string`.
    pub fn type_name(&self) -> String {
        let ty = match self {
            Value::Array(a) => return format!("array of {}", a.ty.name()),
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        };
        ty.name().to_owned()
    }
}

impl std::fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => f.write_str(v),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
            Value::Array(a) => write!(f, "[{} x {}]", a.len, a.ty.name()),
        }
    }
}

/// An array of scalars or strings, in the file's encoding.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ArrayValue<'a> {
    ty: ValueType,
    len: usize,
    /// The elements; the parser has checked that they fill these bytes exactly.
    bytes: &'a [u8],
}

impl<'a> ArrayValue<'a> {
    pub(super) fn new(ty: ValueType, len: usize, bytes: &'a [u8]) -> ArrayValue<'a> {
        ArrayValue { ty, len, bytes }
    }

    /// Element type.
    pub(crate) fn element_type(&self) -> ValueType {
        self.ty
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements; strings that are not UTF-8 come with replacement characters.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (ty, mut rest) = (self.ty, self.bytes);
        (0..self.len).map_while(move |_| match ty.bytes() {
            Some(n) => {
                let (head, tail) = rest.split_at_checked(n as usize)?;
                rest = tail;
                scalar(ty, head)
            }
            None => next_string(&mut rest).map(|b| Value::String(String::from_utf8_lossy(b))),
        })
    }

    /// The raw bytes of each string; `None` when the elements are not strings.
    pub fn strings(&self) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        let mut rest = self.bytes;
        (self.ty == ValueType::String).then(|| (0..self.len).map_while(move |_| next_string(&mut rest)))
    }
}

/// Takes one length-prefixed string off the front.
fn next_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, tail) = rest.split_first_chunk::<8>()?;
    let (text, tail) = tail.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    *rest = tail;
    Some(text)
}

/// Decodes one scalar from exactly its bytes; `None` for strings, arrays and wrong lengths.
pub(super) fn scalar(ty: ValueType, bytes: &[u8]) -> Option<Value<'static>> {
    Some(match ty {
        ValueType::U8 => Value::U8(*bytes.first()?),
        ValueType::I8 => Value::I8(*bytes.first()? as i8),
        ValueType::Bool => Value::Bool(*bytes.first()? != 0),
        ValueType::U16 => Value::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
        ValueType::String | ValueType::Array => return None,
    })
}
