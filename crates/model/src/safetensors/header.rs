//! The header of one safetensors file: `u64` length, then JSON, then tensor bytes without holes.

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use unicorn_core::TensorType;

use super::error::{HEADER_BYTES_MAX, SafetensorsError, TENSORS_MAX};
use crate::read_at::ReadAt;
use crate::shown::shown;
use crate::tensors::StoredType;

const DIMS_MAX: usize = 8;

/// One tensor; offsets count from the start of the file.
#[derive(Clone, Debug)]
pub struct HeaderTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub ty: StoredType,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A parsed header.
#[derive(Debug, Default)]
pub struct Header {
    /// `__metadata__`.
    pub metadata: Vec<(String, String)>,
    /// Tensors in the order of their bytes.
    pub tensors: Vec<HeaderTensor>,
}

/// Bytes per element of the format's types; those without a kernel matter only to `inspect`.
const DTYPES: [(&str, u64); 18] = [
    ("F64", 8),
    ("F32", 4),
    ("F16", 2),
    ("BF16", 2),
    ("I64", 8),
    ("I32", 4),
    ("I16", 2),
    ("I8", 1),
    ("U64", 8),
    ("U32", 4),
    ("U16", 2),
    ("U8", 1),
    ("BOOL", 1),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("F8_E8M0", 1),
    ("C64", 8),
    ("C128", 16),
];

fn stored_type(dtype: &str) -> StoredType {
    match dtype {
        "F32" => StoredType::Supported(TensorType::F32),
        "F16" => StoredType::Supported(TensorType::F16),
        "BF16" => StoredType::Supported(TensorType::BF16),
        other => StoredType::Other(other.to_owned()),
    }
}

/// Parses the header of a file and checks every tensor's range.
pub fn parse(source: &(impl ReadAt + ?Sized)) -> Result<Header, SafetensorsError> {
    let file_bytes = source.len();
    let mut prefix = [0; 8];
    if file_bytes < 8 {
        return Err(SafetensorsError::Truncated { field: "header length", end: 8, file_bytes });
    }
    let io = |field| move |source| SafetensorsError::Io { field, source };
    source.read_exact_at(&mut prefix, 0).map_err(io("header length"))?;
    let len = u64::from_le_bytes(prefix);
    if len > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderTooLong { found: len });
    }
    if len > file_bytes - 8 {
        return Err(SafetensorsError::Truncated { field: "header", end: 8 + len, file_bytes });
    }
    let mut json = vec![0; len as usize];
    source.read_exact_at(&mut json, 8).map_err(io("header"))?;
    let raw: RawHeader = serde_json::from_slice(&json).map_err(SafetensorsError::Json)?;
    check(raw, 8 + len, file_bytes)
}

fn check(raw: RawHeader, data_start: u64, file_bytes: u64) -> Result<Header, SafetensorsError> {
    let data_bytes = file_bytes - data_start;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, t) in raw.tensors {
        let [start, end] = t.data_offsets;
        if start > end || end > data_bytes {
            return Err(SafetensorsError::Offsets { tensor: name, start, end, data_bytes });
        }
        let (shape, found) = (t.shape.0, end - start);
        if let Some((dtype, size)) = DTYPES.iter().find(|d| d.0 == t.dtype) {
            let expected = shape.iter().try_fold(*size, |n, d| n.checked_mul(*d));
            let Some(expected) = expected else {
                return Err(SafetensorsError::Overflow { tensor: name, shape });
            };
            if expected != found {
                let dtype = (*dtype).to_owned();
                return Err(SafetensorsError::Size { tensor: name, shape, dtype, expected, found });
            }
        } else if shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).is_none() {
            return Err(SafetensorsError::Overflow { tensor: name, shape });
        }
        let ty = stored_type(&t.dtype);
        tensors.push(HeaderTensor { name, ty, shape, offset: data_start + start, bytes: found });
    }
    tensors.sort_by_key(|t| (t.offset, t.bytes));
    let mut end = data_start;
    for (i, t) in tensors.iter().enumerate() {
        if t.offset < end {
            let first = tensors[i - 1].name.clone();
            return Err(SafetensorsError::Overlap { first, second: t.name.clone() });
        }
        if t.offset > end {
            return Err(SafetensorsError::Hole { start: end - data_start, end: t.offset - data_start });
        }
        end = t.offset + t.bytes;
    }
    if end != file_bytes {
        return Err(SafetensorsError::Hole { start: end - data_start, end: data_bytes });
    }
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|p| p[0] == p[1]) {
        return Err(SafetensorsError::Duplicate { tensor: pair[0].to_owned() });
    }
    Ok(Header { metadata: raw.metadata, tensors })
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// A shape of at most [`DIMS_MAX`] dimensions, so that a hostile header cannot make lists grow.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Shape, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {DIMS_MAX} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == DIMS_MAX {
                        return Err(A::Error::invalid_length(DIMS_MAX + 1, &self));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        d.deserialize_seq(Dims)
    }
}

/// The JSON object in file order, so that a name given twice is noticed.
#[derive(Default)]
struct RawHeader {
    metadata: Vec<(String, String)>,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<RawHeader, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut raw = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        raw.metadata = map.next_value::<Pairs>()?.0;
                        continue;
                    }
                    if raw.tensors.len() == TENSORS_MAX {
                        return Err(A::Error::custom(SafetensorsError::TooMany));
                    }
                    let tensor = map.next_value().map_err(|e| named(&name, &e))?;
                    raw.tensors.push((name, tensor));
                }
                Ok(raw)
            }
        }
        d.deserialize_map(Entries)
    }
}

fn named<E: de::Error>(tensor: &str, error: &E) -> E {
    E::custom(format_args!("tensor {}: {error}", shown(tensor)))
}

/// String pairs in file order.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Pairs, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        d.deserialize_map(Strings)
    }
}
