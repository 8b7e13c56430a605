//! What the blocks record with: dispatches with what they read and write, and the norms that all kinds of blocks have.

use std::sync::Arc;

use unicorn_core::{KvType, StateGroup, StateSpec};

use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::profile::GpuProfile;
use crate::recording::{Dispatch, Groups, Range, Recording};
use crate::scratch::Scratch;
use crate::select::{self, Form, Path, Router};
use crate::weights::Matrix;

/// What the next block's first products read.
#[derive(Clone, Copy)]
pub(crate) struct NextInput<'a> {
    /// The block's pre-norm.
    pub(crate) norm: &'a Norm,
    /// f32 rather than quantized.
    pub(crate) float: bool,
}

/// The weight of a norm with its epsilon.
#[derive(Clone)]
pub(crate) struct Norm {
    pub(crate) weight: Arc<Buffer>,
    pub(crate) eps: f32,
}

/// Records the dispatches of one piece of work.
pub(crate) struct Builder<'a> {
    pub(crate) gpu: &'a GpuProfile,
    pub(crate) router: Router<'a>,
    pub(crate) scratch: &'a Scratch,
    pub(crate) recording: Recording,
    /// The path of the block at hand.
    pub(crate) path: Path,
    pub(crate) rows: usize,
    /// Rows whose logits are asked for.
    pub(crate) outputs: usize,
    /// Rows whose hidden states are asked for.
    pub(crate) hidden: usize,
    /// Positions that the batch's sequences may have.
    pub(crate) positions: usize,
    /// Tiles and key splits of flash attention; `None` where the decode kernels run.
    pub(crate) flash: Option<(usize, usize)>,
    /// First position and rows of every sequence of the batch, for counting work.
    pub(crate) spans: Vec<(usize, usize)>,
    /// Element type of keys and values.
    pub(crate) kv: KvType,
    /// Positions per page.
    pub(crate) page_tokens: usize,
    /// The state groups, whose page tables lie behind each other.
    pub(crate) groups: &'a [StateGroup],
    /// No row of the batch reads a position that another row writes.
    pub(crate) alone: bool,
    /// The residual stream, times the coming norm's weight, is there in the form that the next block takes, with its sums of squares.
    pub(crate) prepared: bool,
}

impl Builder<'_> {
    /// What the product of a matrix takes in this batch.
    pub(crate) fn form(&self, matrix: &Matrix) -> Form {
        select::form(matrix.ty, self.path, self.gpu)
    }

    /// Address of the page tables of a mixer's state group.
    pub(crate) fn pages_address(&self, spec: StateSpec) -> u64 {
        let group = self.groups.iter().position(|g| g.spec == spec);
        self.scratch.pages_address(group.unwrap_or(0))
    }

    /// Adds a dispatch.
    pub(crate) fn dispatch(
        &mut self,
        op: &'static str,
        kernel: Kernel,
        arguments: Arguments,
        groups: [usize; 3],
        reads: &[&Buffer],
        writes: &[&Buffer],
    ) -> &mut Dispatch {
        let range = |b: &&Buffer| Range { address: b.address(), bytes: b.bytes() };
        self.recording.push(Dispatch {
            op,
            kernel,
            arguments: arguments.bytes(),
            groups: Groups::Fixed(groups.map(|g| g as u32)),
            reads: reads.iter().map(range).collect(),
            writes: writes.iter().map(range).collect(),
            bytes: 0,
            flops: 0,
        });
        let last = self.recording.dispatches.len() - 1;
        &mut self.recording.dispatches[last]
    }

    /// The rows whose hidden states are asked for, normed if there is a norm, to where the host reads them.
    pub(crate) fn hidden_states(&mut self, norm: Option<&Norm>, width: usize) {
        if self.hidden > 0 {
            let s = self.scratch;
            let rows = NormRows::Hidden(s.outputs_address() + 4 * self.outputs as u64);
            self.norm("hidden", &s.residual, norm, width, NormTo::Float(&s.hidden_host), rows);
        }
    }

    /// `norm.comp`: rows of `x` normed (or as they are), to `y` and, quantized, to the activation buffers.
    pub(crate) fn norm(
        &mut self,
        op: &'static str,
        x: &Buffer,
        norm: Option<&Norm>,
        width: usize,
        to: NormTo<'_>,
        rows: NormRows,
    ) {
        let scratch = self.scratch;
        let threads = select::workgroup(width.next_multiple_of(32).clamp(64, 512), self.gpu);
        let kernel = Kernel {
            shader: "norm".into(),
            constants: vec![
                threads,
                matches!(to, NormTo::Add(_)) as u32,
                norm.is_some() as u32,
                matches!(to, NormTo::Add(_) | NormTo::Float(_)) as u32,
                matches!(to, NormTo::Quantized | NormTo::Inner) as u32,
                !matches!(rows, NormRows::All) as u32,
                matches!(to, NormTo::Half(_)) as u32,
            ],
            subgroup: select::subgroup(self.gpu),
        };
        let (count, list) = match rows {
            NormRows::All => (self.rows, 0),
            NormRows::Listed(address) => (self.outputs, address),
            NormRows::Hidden(address) => (self.hidden, address),
        };
        let y = if let NormTo::Float(b) | NormTo::Half(b) | NormTo::Add(b) = to { b.address() } else { 0 };
        let set = match to {
            NormTo::Quantized => Some(&scratch.normed),
            NormTo::Inner => Some(&scratch.inner),
            NormTo::Float(_) | NormTo::Half(_) | NormTo::Add(_) => None,
        };
        let (q, meta) = set.map_or((0, 0), |s| (s.q.address(), s.meta.address()));
        let arguments = Arguments::new()
            .addresses([x.address(), norm.map_or(0, |n| n.weight.address()), y, q, meta, list])
            .u32(width)
            .f32(norm.map_or(0.0, |n| n.eps));
        let mut reads = vec![x];
        let mut writes = Vec::new();
        match to {
            NormTo::Float(b) | NormTo::Half(b) => writes.push(b),
            NormTo::Add(b) => {
                reads.push(b);
                writes.push(b);
            }
            NormTo::Quantized | NormTo::Inner => {}
        }
        if let Some(set) = set {
            writes.extend([&set.q, &set.meta]);
        }
        if !matches!(rows, NormRows::All) {
            reads.push(&scratch.batch);
        }
        self.dispatch(op, kernel, arguments, [count, 1, 1], &reads, &writes);
    }
}

/// Workgroups of `threads` for `count` elements in a row, as a grid: some drivers take no more than 65535 in a dimension. Shaders find their
/// place with `flat_group`.
pub(crate) fn flat_groups(count: usize, threads: usize) -> [usize; 3] {
    const WIDE: usize = 1 << 15;
    let groups = count.div_ceil(threads);
    [groups.min(WIDE), groups.div_ceil(WIDE), 1]
}

/// Where a norm's result goes.
pub(crate) enum NormTo<'a> {
    /// f32.
    Float(&'a Buffer),
    /// f16.
    Half(&'a Buffer),
    /// Added to the residual stream.
    Add(&'a Buffer),
    /// Quantized, as the input of the next products.
    Quantized,
    /// Quantized, as the block's inner activations.
    Inner,
}

/// Which rows a norm takes.
pub(crate) enum NormRows {
    /// All of the batch.
    All,
    /// Those listed at this address (u32 each), as many as logits are asked for.
    Listed(u64),
    /// Those listed at this address, as many as hidden states are asked for.
    Hidden(u64),
}
