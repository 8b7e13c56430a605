//! The tensors of a model, whichever format stores them.

use unicorn_core::{TensorType, Weight, WeightSpan};

/// Element type as stored. Files may hold types that no kernel reads; that matters only when such a tensor is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoredType {
    /// A type that the engine computes with.
    Supported(TensorType),
    /// Any other, by the name its format gives it.
    Other(String),
}

impl StoredType {
    /// The type's name.
    pub fn name(&self) -> &str {
        match self {
            StoredType::Supported(ty) => ty.name(),
            StoredType::Other(name) => name,
        }
    }
}

/// One tensor of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub ty: StoredType,
    /// Outermost dimension first: `[rows, cols]` for a matrix.
    pub shape: Vec<u64>,
    /// Where the bytes lie.
    pub span: WeightSpan,
}

impl TensorInfo {
    /// Number of elements; parsers have checked that it does not overflow.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// All tensors of a model, in file order, found by name.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    tensors: Vec<TensorInfo>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
}

impl TensorTable {
    /// Indexes the tensors. Errors with the name that occurs twice.
    pub(crate) fn new(tensors: Vec<TensorInfo>) -> Result<TensorTable, String> {
        let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
        by_name.sort_unstable_by_key(|i| tensors[*i as usize].name.as_str());
        for pair in by_name.windows(2) {
            let (a, b) = (&tensors[pair[0] as usize].name, &tensors[pair[1] as usize].name);
            if a == b {
                return Err(a.clone());
            }
        }
        Ok(TensorTable { tensors, by_name })
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        let found =
            self.by_name.binary_search_by_key(&name, |i| self.tensors[*i as usize].name.as_str()).ok()?;
        Some(&self.tensors[self.by_name[found] as usize])
    }

    /// All tensors in file order.
    pub fn iter(&self) -> std::slice::Iter<'_, TensorInfo> {
        self.tensors.iter()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

/// The tensor as a matrix `[rows, cols]`, a vector as `[1, cols]`. `None` when it is neither, or its type has no
/// kernel.
pub(crate) fn as_weight(info: &TensorInfo) -> Option<Weight> {
    let StoredType::Supported(ty) = info.ty else { return None };
    let (rows, cols) = match info.shape[..] {
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        _ => return None,
    };
    let (rows, cols) = (usize::try_from(rows).ok()?, usize::try_from(cols).ok()?);
    Some(Weight { name: info.name.clone(), ty, rows, cols, span: info.span })
}
