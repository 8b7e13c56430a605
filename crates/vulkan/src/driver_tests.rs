//! What needs a driver: any Vulkan device will do, a software one is preferred. Where there is none, each test says that it is NOT RUN, and
//! fails where `UNICORN_REQUIRE_VULKAN` is set, as continuous integration sets it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use unicorn_core::{DeviceError, TensorType, Weight, WeightError, WeightSource, WeightSpan, quant};

use crate::blocks::flat_groups;
use crate::context::Context;
use crate::cut::Pace;
use crate::error::VulkanError;
use crate::kernel::Kernel;
use crate::lane::{Crossings, Point};
use crate::layout;
use crate::library::{Library, LibraryOptions};
use crate::memory::Buffer;
use crate::pipeline::Pipelines;
use crate::place::Place;
use crate::push::Push;
use crate::recording::{Commands, Dispatch, Groups, Range, Recording, Timing};
use crate::replay::{Bound, Recorded};
use crate::transfer::{self, PIECE_BYTES, Uploader};
use crate::weights::Matrix;

/// Says that a test is not run. Fails where a driver is required.
fn not_run(reason: &str) -> Option<Context> {
    eprintln!("NOT RUN: {reason}");
    let required = std::env::var_os("UNICORN_REQUIRE_VULKAN").is_some_and(|v| !v.is_empty() && v != "0");
    assert!(!required, "UNICORN_REQUIRE_VULKAN is set, and there is no driver to test with: {reason}");
    None
}

fn open() -> Option<Arc<Context>> {
    open_context().map(Arc::new)
}

/// The device to test with.
pub(crate) fn open_context() -> Option<Context> {
    open_context_on(Crossings::Picked)
}

/// The device to test with, with a say in where residual streams cross.
pub(crate) fn open_context_on(crossings: Crossings) -> Option<Context> {
    let library = match Library::load(LibraryOptions { labels: true, ..LibraryOptions::default() }) {
        Ok(library) => library,
        Err(error) => return not_run(&error.to_string()),
    };
    let candidates = library.candidates().unwrap();
    let fit = |c: &&crate::library::Candidate| c.missing().is_empty();
    let Some(chosen) = candidates.iter().filter(fit).max_by_key(|c| c.profile.software) else {
        return not_run("no Vulkan device has what the kernels need");
    };
    Some(Context::open_on(library, chosen, crossings).unwrap())
}

/// Weights in memory, with a fault where one is wanted.
struct Bytes {
    data: Vec<u8>,
    reads: AtomicUsize,
    fails_at: Option<u64>,
}

impl Bytes {
    fn new(data: Vec<u8>) -> Bytes {
        Bytes { data, reads: AtomicUsize::new(0), fails_at: None }
    }
}

impl WeightSource for Bytes {
    fn read(&self, span: &WeightSpan, offset: u64, buf: &mut [u8]) -> Result<(), WeightError> {
        let start = span.offset + offset;
        if self.fails_at.is_some_and(|at| (start..start + buf.len() as u64).contains(&at)) {
            return Err(WeightError::Truncated { file: "memory".into(), end: start });
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        buf.copy_from_slice(&self.data[start as usize..][..buf.len()]);
        Ok(())
    }
}

fn weight(name: &str, ty: TensorType, rows: usize, cols: usize, offset: u64) -> Weight {
    let bytes = (rows * ty.row_bytes(cols).unwrap()) as u64;
    Weight { name: name.into(), ty, rows, cols, span: WeightSpan { file: 0, offset, bytes } }
}

fn download(context: &Arc<Context>, matrix: &Matrix) -> Vec<u8> {
    context.wait(context.last_submitted(), "uploads").unwrap();
    let mut out = vec![0; matrix.bytes() as usize];
    transfer::download(context, matrix.buffer(), 0, &mut out).unwrap();
    out
}

/// What a matrix should hold, block by block in one thread.
fn planes_of(ty: TensorType, data: &[u8], matrix: &Matrix) -> Vec<(u64, Vec<u8>)> {
    let Some(p) = layout::planes(ty) else { return vec![(0, data.to_vec())] };
    let mut planes = [Vec::new(), Vec::new(), Vec::new()];
    for block in data.chunks_exact(ty.block_bytes()) {
        let mut parts = [vec![0; p.low * p.groups], vec![0; p.high * p.groups], vec![0; p.scale]];
        let [low, high, scale] = &mut parts;
        layout::split_block(ty, block, low, high, scale);
        planes.iter_mut().zip(parts).for_each(|(plane, part)| plane.extend(part));
    }
    let addresses = matrix.planes();
    planes.into_iter().zip(addresses).map(|(plane, a)| (a - addresses[0], plane)).collect()
}

#[test]
fn stacked_weights_lie_one_after_the_other() {
    let Some(context) = open() else { return };
    for uploader in [Uploader::new(&context), Uploader::staged(&context, 3)] {
        stacked_weights(&context, &uploader);
    }
}

fn stacked_weights(context: &Arc<Context>, uploader: &Uploader) {
    for ty in [TensorType::F16, TensorType::Q8_0, TensorType::Q4_K, TensorType::Q6_K, TensorType::Q5_1] {
        // More than one piece, and a second weight that does not start at a piece's start.
        let (cols, rows) = (512, [9000, 333, 32]);
        let data = quant::random_blocks(ty, rows.iter().sum(), cols, 7);
        assert!(data.len() as u64 > PIECE_BYTES);
        let row_bytes = ty.row_bytes(cols).unwrap();
        let all = [
            weight("q", ty, rows[0], cols, 0),
            weight("k", ty, rows[1], cols, (rows[0] * row_bytes) as u64),
            weight("v", ty, rows[2], cols, ((rows[0] + rows[1]) * row_bytes) as u64),
        ];
        let source = Bytes::new(data);
        let list: Vec<&Weight> = all.iter().collect();
        let matrix = Matrix::load_stacked(context, uploader, &list, &source).unwrap();
        assert_eq!((matrix.ty, matrix.rows, matrix.cols), (ty, 9365, cols));
        let held = download(context, &matrix);
        for (at, plane) in planes_of(ty, &source.data, &matrix) {
            assert!(held[at as usize..][..plane.len()] == plane, "{ty}: plane at {at}");
        }
        let one = Matrix::load(context, uploader, &all[1], &source).unwrap();
        let held = download(context, &one);
        let part = &source.data[all[1].span.offset as usize..][..all[1].span.bytes as usize];
        for (at, plane) in planes_of(ty, part, &one) {
            assert!(held[at as usize..][..plane.len()] == plane, "{ty}: plane at {at} of one weight");
        }
    }
}

#[test]
fn a_failed_read_names_its_tensor() {
    let Some(context) = open() else { return };
    let uploader = Uploader::new(&context);
    let ty = TensorType::Q8_0;
    let mut source = Bytes::new(quant::random_blocks(ty, 8000, 512, 3));
    source.fails_at = Some(3_000_000);
    let w = weight("ffn_up", ty, 8000, 512, 0);
    let error = Matrix::load(&context, &uploader, &w, &source).err().unwrap();
    assert!(matches!(&error, DeviceError::Weight { tensor, .. } if tensor == "ffn_up"), "{error}");
    let other = weight("ffn_gate", TensorType::Q4_0, 8000, 512, 0);
    let error = Matrix::load_stacked(&context, &uploader, &[&w, &other], &source).err().unwrap();
    assert!(error.to_string().contains("ffn_gate"), "{error}");
}

#[test]
fn small_buffers_share_memory_and_give_it_back() {
    let Some(context) = open() else { return };
    let before = context.resident();
    let mut all: Vec<Buffer> =
        (0..300).map(|i| Buffer::new(&context, Place::Device, 1000 + i * 100, "a norm").unwrap()).collect();
    let held: u64 = all.iter().map(Buffer::bytes).sum();
    assert!(
        context.resident() - before <= held + (16 << 20),
        "{} bytes for {held}",
        context.resident() - before
    );
    let uploader = Uploader::new(&context);
    for (i, b) in all.iter().enumerate() {
        uploader.write(b, 0, &vec![i as u8; b.bytes() as usize]).unwrap();
    }
    let mut i = 0;
    all.retain(|_| {
        i += 1;
        i % 3 != 0
    });
    let again = Buffer::new(&context, Place::Device, 900, "another").unwrap();
    uploader.write(&again, 0, &[0xee; 900]).unwrap();
    for b in &all {
        let mut out = vec![0; b.bytes() as usize];
        transfer::download(&context, b, 0, &mut out).unwrap();
        assert!(out.iter().all(|v| *v == out[0]));
        assert_eq!((out.len() - 1000) / 100 % 256, out[0] as usize);
    }
    drop((all, again, uploader));
    assert_eq!(context.resident(), before);
}

#[test]
fn too_large_an_allocation_says_how_large() {
    let Some(context) = open() else { return };
    let most = context.profile().allocation_bytes;
    let needs = ash::vk::MemoryRequirements { size: u64::MAX / 2, alignment: 16, memory_type_bits: !0 };
    let error = crate::memory::allocate(&context, Place::Device, &needs, "the KV cache").err().unwrap();
    let text = error.to_string();
    assert!(most >= 1 << 30 && text.contains("KV cache") && text.contains(&needs.size.to_string()), "{text}");
}

/// A dispatch of `norm.comp` without a weight, which copies `rows` rows of 64 values from `x` to `y`.
fn norm(x: &Buffer, y: &Buffer, rows: u32) -> Dispatch {
    let range = |b: &Buffer| Range { address: b.address(), bytes: b.bytes() };
    let push = Push::new().addresses([x.address(), 0, y.address(), 0, 0, 0]).u32(64).f32(1e-6);
    Dispatch {
        op: "norm",
        kernel: Kernel { shader: "norm".into(), constants: vec![64, 0, 0, 1, 0, 0], subgroup: 0 },
        push: push.bytes(),
        groups: Groups::Fixed([rows, 1, 1]),
        reads: vec![range(x)],
        writes: vec![range(y)],
        bytes: 0,
        flops: 0,
    }
}

#[test]
fn pieces_give_what_the_whole_gives() {
    let Some(context) = open() else { return };
    let pipelines = Pipelines::new(&context, None).unwrap();
    let buffers: Vec<Buffer> =
        (0..9).map(|_| Buffer::new(&context, Place::Readback, 16 * 256, "rows").unwrap()).collect();
    let values: Vec<u8> = (0..1024).flat_map(|i| ((i % 37) as f32 - 9.5).to_le_bytes()).collect();
    let mut recording = Recording::default();
    for pair in buffers.windows(2) {
        recording.push(norm(&pair[0], &pair[1], 16));
    }
    let result = |commands: &dyn Fn()| {
        for b in &buffers[1..] {
            b.write(0, &[0; 16 * 256]);
        }
        buffers[0].write(0, &values);
        commands();
        let mut out = vec![0; 16 * 256];
        buffers[8].read(0, &mut out);
        out
    };
    let whole = Commands::encode(&context, &pipelines, &recording, false).unwrap();
    let expected = result(&|| whole.run("a test").unwrap());
    assert!(expected.iter().any(|b| *b != 0));
    for timing in [Timing::Off, Timing::Pieces, Timing::Dispatches] {
        let pieces = vec![0..1, 1..4, 4..8];
        let commands = Commands::encode_pieces(&context, &pipelines, &recording, pieces, timing).unwrap();
        assert_eq!(result(&|| commands.run("a test").unwrap()), expected, "{timing:?}");
        let counts =
            (commands.times().unwrap().map(|t| t.len()), commands.piece_times().unwrap().map(|t| t.len()));
        let wanted = match timing {
            Timing::Off => (None, None),
            Timing::Pieces => (None, Some(3)),
            Timing::Dispatches => (Some(8), None),
        };
        assert_eq!(counts, wanted);
    }

    // A bound below what anything can take makes each dispatch a submission; a generous one puts them together again.
    let mut bound = Bound { seconds_max: Some(1e-9), pace: Pace::default() };
    let mut recorded = Recorded::new(&context, &pipelines, recording, false, bound).unwrap();
    assert_eq!(recorded.commands.pieces().len(), 8);
    let value = recorded.submit(Point::default(), "a test").unwrap();
    context.wait(value, "a test").unwrap();
    bound.seconds_max = Some(1e3);
    recorded.learn(&context, &pipelines, &mut bound).unwrap();
    assert_eq!(recorded.commands.pieces().len(), 1);
    assert_eq!(recorded.commands.pieces()[0], 0..8);
    assert_ne!(bound.pace, Pace::default());
}

#[test]
fn what_a_device_does_not_allow_is_said() {
    let Some(context) = open() else { return };
    let pipelines = Pipelines::new(&context, None).unwrap();
    let x = Buffer::new(&context, Place::Device, 1024, "x").unwrap();
    let refused = |d: Dispatch| {
        let recording = Recording { dispatches: vec![d], ..Recording::default() };
        match Commands::encode(&context, &pipelines, &recording, false).err().unwrap() {
            error @ VulkanError::Limit { .. } => error.to_string(),
            other => panic!("{other}"),
        }
    };
    let mut wide = norm(&x, &x, 1);
    wide.push.resize(132, 0);
    assert!(refused(wide).contains("132 bytes of push constants"));
    if context.groups_max[2] < u32::MAX {
        let mut deep = norm(&x, &x, 1);
        deep.groups = Groups::Fixed([1, 1, context.groups_max[2] + 1]);
        assert!(refused(deep).contains("workgroups in z"));
    }
}

#[test]
fn pipelines_come_back_from_disk_and_damage_is_passed_over() {
    let Some(context) = open() else { return };
    let folder: PathBuf = std::env::temp_dir().join(format!("unicorn-pipelines-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let kernels: Vec<Kernel> = (0..4)
        .map(|i| Kernel { shader: "norm".into(), constants: vec![64, i & 1, i >> 1, 1, 0, 0], subgroup: 0 })
        .collect();
    let first = Pipelines::new(&context, Some(&folder)).unwrap();
    first.prepare(kernels.iter().chain(&kernels)).unwrap();
    assert_eq!(first.notes(), Vec::<String>::new());
    let files = || std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect::<Vec<_>>();
    let [file] = files().try_into().unwrap();
    let second = Pipelines::new(&context, Some(&folder)).unwrap();
    second.prepare(kernels.iter()).unwrap();
    assert_eq!(second.notes(), Vec::<String>::new());
    drop((first, second));
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let third = Pipelines::new(&context, Some(&folder)).unwrap();
    assert!(third.notes()[0].contains("damaged"), "{:?}", third.notes());
    third.prepare(kernels.iter()).unwrap();
    // A folder that cannot be made stops nothing either: it is told in a note.
    let blocked = Pipelines::new(&context, Some(&file)).unwrap();
    blocked.prepare(kernels.iter()).unwrap();
    assert_eq!(blocked.notes().len(), 2, "{:?}", blocked.notes());
    let missing = Kernel { shader: "no_such_shader".into(), constants: Vec::new(), subgroup: 0 };
    let error = third.prepare([&missing].into_iter()).err().unwrap();
    assert!(error.to_string().contains("no_such_shader"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn more_elements_than_a_row_of_workgroups_has() {
    let Some(context) = open() else { return };
    let pipelines = Pipelines::new(&context, None).unwrap();
    let count = (256 << 15) + 1000;
    let x = Buffer::new(&context, Place::Readback, 4 * count as u64, "logits").unwrap();
    let values: Vec<u8> = (0..count).flat_map(|i| ((i % 999) as f32 * 0.1 - 50.0).to_le_bytes()).collect();
    x.write(0, &values);
    let groups = flat_groups(count, 256);
    assert!(groups.iter().all(|g| *g <= 65535) && groups[1] == 2);
    let range = Range { address: x.address(), bytes: x.bytes() };
    let mut recording = Recording::default();
    recording.push(Dispatch {
        op: "soft_cap",
        kernel: Kernel { shader: "soft_cap".into(), constants: vec![256], subgroup: 0 },
        push: Push::new().address(x.address()).u32(count).f32(30.0).bytes(),
        groups: Groups::Fixed(groups.map(|g| g as u32)),
        reads: vec![range],
        writes: vec![range],
        bytes: 0,
        flops: 0,
    });
    Commands::encode(&context, &pipelines, &recording, false).unwrap().run("soft_cap").unwrap();
    for i in [0, 1, 255, 256, (256 << 15) - 1, 256 << 15, (256 << 15) + 1, count - 1] {
        let mut word = [0; 4];
        x.read(4 * i as u64, &mut word);
        let want = 30.0 * (((i % 999) as f64 * 0.1 - 50.0) / 30.0).tanh();
        assert!((f32::from_le_bytes(word) as f64 - want).abs() < 1e-3, "{i}");
    }
}

#[test]
fn copies_are_counted_once_in_both_directions() {
    let Some(context) = open() else { return };
    let counted = |what: &mut dyn FnMut()| {
        let before = context.copied();
        what();
        context.copied() - before
    };
    let ty = TensorType::Q8_0;
    let w = weight("ffn_up", ty, 300, 512, 0);
    let source = Bytes::new(quant::random_blocks(ty, 300, 512, 5));
    let load = |uploader: &Uploader| {
        Matrix::load(&context, uploader, &w, &source).unwrap();
    };
    // Through the ring every byte is copied; in place none is, since it is read from the file to where it stays.
    let (staged, direct) = (Uploader::staged(&context, 2), Uploader::new(&context));
    assert_eq!(counted(&mut || load(&staged)), w.span.bytes);
    let buffer = Buffer::new(&context, Place::Device, 1000, "values").unwrap();
    let expected = if buffer.is_mapped() { 0 } else { w.span.bytes };
    assert_eq!(counted(&mut || load(&direct)), expected);
    for uploader in [&staged, &direct] {
        assert_eq!(counted(&mut || uploader.write(&buffer, 0, &[1; 1000]).unwrap()), 1000);
    }
    context.wait_uploads().unwrap();
    let mut out = [0; 600];
    assert_eq!(counted(&mut || transfer::download(&context, &buffer, 0, &mut out).unwrap()), 600);
}
