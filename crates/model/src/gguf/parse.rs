//! The parser of one file's head.
//!
//! It trusts nothing: every count and length is checked against the bytes that the file still has before anything is allocated
//! for it, and every error names the field.

use std::borrow::Cow;
use std::ops::Range;

use super::cursor::Cursor;
use super::error::GgufError;
use super::types::{self, ValueType};
use super::value::{self, ArrayValue, Value};
use crate::read_at::ReadAt;
use crate::tensors::StoredType;

/// Limits on counts; real files have some 50 keys and at most some 10,000 tensors.
const KEYS_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 20;
/// Least bytes of a key with its value, and of a tensor info.
const KEY_BYTES_MIN: u64 = 8 + 4 + 1;
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 4 + 8;

/// A tensor info of one file.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub ty: StoredType,
    /// Outermost dimension first (the file stores them innermost first).
    pub shape: Vec<u64>,
    /// Byte offset from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

#[derive(Debug)]
enum Slot {
    Scalar(ValueType, Range<usize>),
    String(Range<usize>),
    Array(ValueType, usize, Range<usize>),
}

/// The parsed head of one GGUF file: metadata and tensor infos.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    /// The head of the file; slots refer to it.
    buf: Vec<u8>,
    keys: Vec<(String, Slot)>,
    /// Indices into `keys`, sorted by key.
    by_key: Vec<u32>,
    pub(crate) tensors: Vec<GgufTensor>,
}

/// Parses the head of a file and checks every tensor's extent against the file's length.
pub fn parse(source: &(impl ReadAt + ?Sized)) -> Result<Gguf, GgufError> {
    let mut head = parse_up_to_end(&source, source.len());
    head.error.take().map_or(Ok(head.gguf), Err)
}

/// What the first bytes of a file hold: everything up to the first thing that is wrong or not there.
pub(crate) struct Head {
    pub gguf: Gguf,
    /// Why parsing ended before the end of the head.
    pub error: Option<GgufError>,
}

/// Parses as much as the source holds of a file of `file_bytes`. Tensors come last, so without an error all metadata and all
/// tensors are there.
pub(crate) fn parse_up_to_end(source: &dyn ReadAt, file_bytes: u64) -> Head {
    let mut c = Cursor::new(source, file_bytes);
    let mut keys = Vec::new();
    let counts = parse_keys(&mut c, &mut keys);
    let mut gguf = Gguf { version: 0, buf: Vec::new(), keys, by_key: Vec::new(), tensors: Vec::new() };
    gguf.by_key = (0..gguf.keys.len() as u32).collect();
    gguf.by_key.sort_unstable_by_key(|i| gguf.keys[*i as usize].0.as_str());
    let rest = counts.and_then(|(version, tensor_count)| {
        gguf.version = version;
        gguf.check_keys()?;
        // The alignment is read from the bytes that the cursor owns.
        std::mem::swap(&mut gguf.buf, &mut c.buf);
        let alignment = gguf.alignment();
        std::mem::swap(&mut gguf.buf, &mut c.buf);
        gguf.tensors = parse_tensors(&mut c, tensor_count, alignment?, file_bytes)?;
        Ok(())
    });
    gguf.buf = c.buf;
    Head { gguf, error: rest.err() }
}

/// Appends the metadata to `keys`, as far as it goes. Returns the version and the number of tensors.
fn parse_keys(c: &mut Cursor<'_>, keys: &mut Vec<(String, Slot)>) -> Result<(u32, u64), GgufError> {
    let magic = c.take(4, || "magic".into())?;
    if &c.buf[magic.clone()] != b"GGUF" {
        return Err(GgufError::BadMagic { found: c.buf[magic].escape_ascii().to_string() });
    }
    let version = c.u32(|| "version".into())?;
    match version {
        2 | 3 => {}
        // Versions are small: low bytes of zero mean that the bytes are swapped.
        v if v != 0 && v & 0xffff == 0 => return Err(GgufError::BigEndian),
        found => return Err(GgufError::Version { found }),
    }
    let tensor_count = c.u64(|| "tensor_count".into())?;
    let key_count = c.u64(|| "metadata_kv_count".into())?;
    check_count(c, "metadata_kv_count", key_count, KEY_BYTES_MIN, KEYS_MAX)?;
    check_count(c, "tensor_count", tensor_count, TENSOR_BYTES_MIN, TENSORS_MAX)?;
    keys.reserve(key_count.min(c.available() / KEY_BYTES_MIN) as usize);
    for i in 0..key_count {
        let key = c.text(|| format!("name of metadata key {i}"))?.to_owned();
        let slot = parse_value(c, &key)?;
        keys.push((key, slot));
    }
    Ok((version, tensor_count))
}

fn check_count(
    c: &Cursor<'_>,
    field: &'static str,
    count: u64,
    each: u64,
    limit: u64,
) -> Result<(), GgufError> {
    let (bytes_min, remaining) = (count as u128 * each as u128, c.remaining());
    if bytes_min > remaining as u128 {
        return Err(GgufError::Count { field, count, bytes_min, remaining });
    }
    if count > limit {
        return Err(GgufError::Limit { field, count, limit });
    }
    Ok(())
}

fn parse_value(c: &mut Cursor<'_>, key: &str) -> Result<Slot, GgufError> {
    let unknown = |id| GgufError::ValueType { key: key.to_owned(), id };
    let id = c.u32(|| format!("value type of key {key}"))?;
    let ty = ValueType::from_id(id).ok_or_else(|| unknown(id))?;
    let field = || format!("value of key {key}");
    if let Some(bytes) = ty.bytes() {
        let range = c.take(bytes, field)?;
        check_bools(c, key, ty, range.clone())?;
        return Ok(Slot::Scalar(ty, range));
    }
    if ty == ValueType::String {
        let range = c.string(field)?;
        if std::str::from_utf8(&c.buf[range.clone()]).is_err() {
            return Err(GgufError::Utf8 { field: field() });
        }
        return Ok(Slot::String(range));
    }
    let id = c.u32(|| format!("element type of key {key}"))?;
    let element = ValueType::from_id(id).ok_or_else(|| unknown(id))?;
    let count = c.u64(|| format!("array length of key {key}"))?;
    let start = c.pos;
    match element.bytes() {
        Some(bytes) => {
            // A product that overflows is past every end.
            let range = c.take(count.saturating_mul(bytes), field)?;
            check_bools(c, key, element, range)?;
        }
        None if element == ValueType::Array => return Err(GgufError::NestedArray { key: key.to_owned() }),
        None => {
            // Strings take at least their length prefix, so this ends within the file.
            for i in 0..count {
                c.string(|| format!("element {i} of key {key}"))?;
            }
        }
    }
    // Every element took at least a byte of what is now in memory, so the count fits.
    Ok(Slot::Array(element, count as usize, start..c.pos))
}

fn check_bools(c: &Cursor<'_>, key: &str, ty: ValueType, range: Range<usize>) -> Result<(), GgufError> {
    let bad = if ty == ValueType::Bool { c.buf[range].iter().find(|b| **b > 1) } else { None };
    match bad {
        Some(found) => Err(GgufError::BadBool { key: key.to_owned(), found: *found }),
        None => Ok(()),
    }
}

fn parse_tensors(
    c: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
    file: u64,
) -> Result<Vec<GgufTensor>, GgufError> {
    check_count(c, "tensor_count", count, TENSOR_BYTES_MIN, TENSORS_MAX)?;
    let mut tensors = Vec::with_capacity(count.min(c.available() / TENSOR_BYTES_MIN) as usize);
    for i in 0..count {
        tensors.push(parse_tensor(c, i, alignment)?);
    }
    // The data begins at the next aligned byte; offsets so far are relative to it.
    let data = (c.pos as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    for t in &mut tensors {
        let overflow = || GgufError::OffsetOverflow { tensor: t.name.clone(), offset: t.offset };
        let start = t.offset.checked_add(data).ok_or_else(overflow)?;
        let end = start.checked_add(t.bytes).ok_or_else(overflow)?;
        if end > file {
            return Err(GgufError::PastEnd { tensor: t.name.clone(), start, end, file_bytes: file });
        }
        t.offset = start;
    }
    check_overlap(&tensors)?;
    Ok(tensors)
}

fn parse_tensor(c: &mut Cursor<'_>, index: u64, alignment: u64) -> Result<GgufTensor, GgufError> {
    let name = c.text(|| format!("name of tensor {index}"))?.to_owned();
    let tensor = || name.clone();
    let n_dims = c.u32(|| format!("n_dims of tensor {name}"))?;
    if n_dims > 4 {
        return Err(GgufError::Dims { tensor: tensor(), found: n_dims });
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for dim in 0..n_dims {
        let size = c.u64(|| format!("dimension {dim} of tensor {name}"))?;
        if size == 0 {
            return Err(GgufError::ZeroDim { tensor: tensor(), dim });
        }
        shape.push(size);
    }
    let cols = shape.first().copied().unwrap_or(1);
    shape.reverse();
    let id = c.u32(|| format!("type of tensor {name}"))?;
    let offset = c.u64(|| format!("offset of tensor {name}"))?;
    let Some((ty, block_len, block_bytes)) = types::tensor_type(id) else {
        return Err(GgufError::TensorType { tensor: tensor(), id });
    };
    if cols % block_len != 0 {
        return Err(GgufError::PartialBlock { tensor: tensor(), cols, ty: ty.name().to_owned(), block_len });
    }
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let bytes = elements.and_then(|n| (n / block_len).checked_mul(block_bytes));
    let Some(bytes) = bytes.filter(|b| *b <= i64::MAX as u64) else {
        return Err(GgufError::Overflow { tensor: tensor(), shape });
    };
    if offset % alignment != 0 {
        return Err(GgufError::Misaligned { tensor: tensor(), offset, alignment });
    }
    Ok(GgufTensor { name, ty, shape, offset, bytes })
}

fn check_overlap(tensors: &[GgufTensor]) -> Result<(), GgufError> {
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by_key(|i| tensors[*i as usize].offset);
    for pair in order.windows(2) {
        let (a, b) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
        // Ends were checked against the file's length, so the sum does not wrap.
        if a.offset + a.bytes > b.offset {
            return Err(GgufError::Overlap { first: a.name.clone(), second: b.name.clone() });
        }
    }
    Ok(())
}

impl Gguf {
    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Tensor infos in file order. Names are unique within a model, see [`crate::OpenModel`].
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// All metadata in file order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.keys.iter().map(|(key, slot)| (key.as_str(), self.value(slot)))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let found = self.by_key.binary_search_by_key(&key, |i| self.keys[*i as usize].0.as_str()).ok()?;
        Some(self.value(&self.keys[self.by_key[found] as usize].1))
    }

    fn value(&self, slot: &Slot) -> Value<'_> {
        match slot {
            // The parser has taken exactly the bytes of the type.
            Slot::Scalar(ty, range) => value::scalar(*ty, &self.buf[range.clone()]).unwrap_or(Value::U8(0)),
            Slot::String(range) => Value::String(String::from_utf8_lossy(&self.buf[range.clone()])),
            Slot::Array(ty, len, range) => Value::Array(ArrayValue::new(*ty, *len, &self.buf[range.clone()])),
        }
    }

    fn check_keys(&self) -> Result<(), GgufError> {
        let name = |i: &u32| self.keys[*i as usize].0.as_str();
        match self.by_key.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            Some(pair) => Err(GgufError::DuplicateKey { key: name(&pair[0]).to_owned() }),
            None => Ok(()),
        }
    }

    fn alignment(&self) -> Result<u64, GgufError> {
        let alignment = self.int("general.alignment")?.unwrap_or(32);
        if !alignment.is_power_of_two() {
            return Err(GgufError::Alignment { found: alignment });
        }
        Ok(alignment)
    }

    /// A non-negative integer of any width.
    pub fn int(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let int = value.as_int().ok_or_else(|| wrong_type(key, "an integer", &value))?;
        match u64::try_from(int) {
            Ok(int) => Ok(Some(int)),
            Err(_) => Err(out_of_range(key, "a count", int)),
        }
    }

    /// A number of any width.
    pub fn float(&self, key: &str) -> Result<Option<f32>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_float().map(|v| Some(v as f32)).ok_or_else(|| wrong_type(key, "a number", &value))
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(key, "bool", &other)),
        }
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<Cow<'_, str>>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(key, "string", &other)),
        }
    }

    /// An array of any element type.
    pub fn array(&self, key: &str) -> Result<Option<ArrayValue<'_>>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(other) => Err(wrong_type(key, "an array", &other)),
        }
    }

    /// An array of strings; one that is not UTF-8 is an error that names its index.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let Some(strings) = array.strings() else {
            return Err(wrong_type(key, "array of string", &Value::Array(array)));
        };
        let mut out = Vec::with_capacity(array.len());
        for (i, bytes) in strings.enumerate() {
            let text = std::str::from_utf8(bytes);
            out.push(
                text.map_err(|_| GgufError::Utf8 { field: format!("element {i} of key {key}") })?.to_owned(),
            );
        }
        Ok(Some(out))
    }

    /// An array of non-negative integers.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let mut out = Vec::with_capacity(array.len());
        for value in array.iter() {
            let int =
                value.as_int().ok_or_else(|| wrong_type(key, "array of integers", &Value::Array(array)))?;
            out.push(u64::try_from(int).map_err(|_| out_of_range(key, "a count", int))?);
        }
        Ok(Some(out))
    }

    /// An array of integers that fit 32 bits.
    pub(crate) fn ints32(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let mut out = Vec::with_capacity(array.len());
        for value in array.iter() {
            let int =
                value.as_int().ok_or_else(|| wrong_type(key, "array of integers", &Value::Array(array)))?;
            out.push(i32::try_from(int).map_err(|_| out_of_range(key, "a 32-bit integer", int))?);
        }
        Ok(Some(out))
    }

    /// An array of numbers.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let mut out = Vec::with_capacity(array.len());
        for value in array.iter() {
            let value =
                value.as_float().ok_or_else(|| wrong_type(key, "array of numbers", &Value::Array(array)))?;
            out.push(value as f32);
        }
        Ok(Some(out))
    }
}

fn wrong_type(key: &str, expected: &'static str, found: &Value<'_>) -> GgufError {
    GgufError::WrongType { key: key.to_owned(), expected, found: found.type_name() }
}

fn out_of_range(key: &str, expected: &'static str, found: i128) -> GgufError {
    GgufError::OutOfRange { key: key.to_owned(), expected, found: found.to_string() }
}
