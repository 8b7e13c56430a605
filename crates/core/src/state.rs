//! What a mixer keeps of the positions it has seen, and how much of it a device holds.

use crate::TensorType;

/// What a mixer keeps per sequence. Mixers with equal specs form a state group: they share page numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StateSpec {
    /// Keys and values of all positions, in pages.
    Paged,
    /// Keys and values of the last positions, this many with the current one, in pages; what is older may be freed.
    Window(usize),
    /// One state of a fixed size, in which all positions so far are summed up: `f32 [floats]`. A page holds one state, however many
    /// positions went into it. It cannot be taken back by a position, only kept.
    Recurrent {
        /// Values of a state.
        floats: usize,
    },
}

impl StateSpec {
    /// First position of which a token at `position` still sees something of its own; for recurrent state that is none before it.
    pub fn first_seen(self, position: usize) -> usize {
        match self {
            StateSpec::Paged => 0,
            StateSpec::Window(window) => (position + 1).saturating_sub(window),
            StateSpec::Recurrent { .. } => position,
        }
    }

    /// True where a page is a state and not a number of positions.
    pub fn is_recurrent(self) -> bool {
        matches!(self, StateSpec::Recurrent { .. })
    }
}

impl std::fmt::Display for StateSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StateSpec::Paged => f.pad("all positions"),
            StateSpec::Window(window) => write!(f, "the last {window} positions"),
            StateSpec::Recurrent { floats } => write!(f, "a state of {floats} values"),
        }
    }
}

/// Element type of the KV cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[allow(missing_docs)]
pub enum KvType {
    F32,
    #[default]
    F16,
    Q8_0,
}

impl KvType {
    /// Parses `f32`, `f16` or `q8_0`, in any case.
    pub fn parse(name: &str) -> Option<KvType> {
        [KvType::F32, KvType::F16, KvType::Q8_0]
            .into_iter()
            .find(|t| t.tensor_type().name().eq_ignore_ascii_case(name))
    }

    /// The equivalent tensor type.
    pub fn tensor_type(self) -> TensorType {
        match self {
            KvType::F32 => TensorType::F32,
            KvType::F16 => TensorType::F16,
            KvType::Q8_0 => TensorType::Q8_0,
        }
    }
}

/// One state group and the pages reserved for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateGroup {
    /// What its mixers keep.
    pub spec: StateSpec,
    /// Pages in its pool.
    pub pages: usize,
}

/// Geometry of the state that devices keep for their mixers, the same on every device of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateLayout {
    /// Positions per page; a multiple of 32.
    pub page_tokens: usize,
    /// Positions of one sequence, at most.
    pub positions: usize,
    /// Element type of keys and values.
    pub ty: KvType,
    /// The groups. A page number names one page of every mixer of its group.
    pub groups: Vec<StateGroup>,
}

impl StateLayout {
    /// One group that keeps all positions.
    pub fn paged(page_tokens: usize, pages: usize, positions: usize, ty: KvType) -> StateLayout {
        let groups = vec![StateGroup { spec: StateSpec::Paged, pages }];
        StateLayout { page_tokens, positions, ty, groups }
    }

    /// Index of the group of mixers that keep this.
    pub fn group(&self, spec: StateSpec) -> Option<usize> {
        self.groups.iter().position(|g| g.spec == spec)
    }

    /// Pages of the group, 0 where there is none.
    pub fn pages(&self, spec: StateSpec) -> usize {
        self.group(spec).map_or(0, |g| self.groups[g].pages)
    }
}
