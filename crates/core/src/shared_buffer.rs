//! Host memory that several devices see: where what crosses between them lies on its way.

use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes that a buffer's start and length are a multiple of: what drivers ask of host memory that they import.
pub(crate) const SHARED_ALIGNMENT: usize = 65536;

const WORDS: usize = SHARED_ALIGNMENT / 4;

#[repr(align(65536))]
struct Page([AtomicU32; WORDS]);

/// Rows of `width` words of 4 bytes in anonymous host memory, aligned so that drivers can import it: a residual stream `f32 [rows, width]`,
/// or pages of state. Its words are atomics, so that devices on any thread may write it; who may read or write when is the schedule's
/// business.
pub struct SharedBuffer {
    pages: Box<[Page]>,
    rows: usize,
    width: usize,
}

impl SharedBuffer {
    /// Zeroed memory for up to `rows` rows; `None` where there is not enough or the size is absurd.
    pub fn new(rows: usize, width: usize) -> Option<SharedBuffer> {
        let words = rows.checked_mul(width)?;
        let count = words.div_ceil(WORDS).max(1);
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).ok()?;
        pages.extend((0..count).map(|_| Page([const { AtomicU32::new(0) }; WORDS])));
        Some(SharedBuffer { pages: pages.into_boxed_slice(), rows, width })
    }

    /// Rows that fit.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Address of the first element. Valid, and never moved, while the buffer lives.
    pub fn address(&self) -> *const AtomicU32 {
        self.pages.as_ptr().cast()
    }

    /// Bytes from the address on, a multiple of [`SHARED_ALIGNMENT`].
    pub fn bytes(&self) -> usize {
        self.pages.len() * SHARED_ALIGNMENT
    }

    fn words(&self) -> impl Iterator<Item = &AtomicU32> {
        self.pages.iter().flat_map(|p| &p.0).take(self.rows * self.width)
    }

    /// Copies the first elements out. Elements past the buffer's end are left alone.
    pub fn read(&self, out: &mut [f32]) {
        out.iter_mut().zip(self.words()).for_each(|(o, w)| *o = f32::from_bits(w.load(Ordering::Relaxed)));
    }

    /// [`SharedBuffer::read`] in the machine's byte order; `out` is a whole number of elements.
    pub fn read_bytes(&self, out: &mut [u8]) {
        let words = out.chunks_exact_mut(4).zip(self.words());
        words.for_each(|(o, w)| o.copy_from_slice(&w.load(Ordering::Relaxed).to_ne_bytes()));
    }

    /// [`SharedBuffer::write`] in the machine's byte order.
    pub fn write_bytes(&self, bytes: &[u8]) {
        for (b, w) in bytes.chunks_exact(4).zip(self.words()) {
            w.store(u32::from_ne_bytes([b[0], b[1], b[2], b[3]]), Ordering::Relaxed);
        }
    }

    fn part(&self, row: usize, byte: usize, bytes: usize) -> impl Iterator<Item = &AtomicU32> {
        let inside = row < self.rows && byte.saturating_add(bytes) <= self.width * 4;
        let start = row.saturating_mul(self.width) + byte / 4;
        let words = if inside { bytes / 4 } else { 0 };
        (start..start + words).map(|i| &self.pages[i / WORDS].0[i % WORDS])
    }

    /// Copies bytes of a row out, in the machine's byte order. `byte` and the length are multiples of 4; nothing is copied where the row
    /// has not as many.
    pub fn read_part(&self, row: usize, byte: usize, out: &mut [u8]) {
        let words = self.part(row, byte, out.len());
        out.chunks_exact_mut(4)
            .zip(words)
            .for_each(|(o, w)| o.copy_from_slice(&w.load(Ordering::Relaxed).to_ne_bytes()));
    }

    /// Copies bytes of a row in, as [`SharedBuffer::read_part`] copies them out.
    pub fn write_part(&self, row: usize, byte: usize, bytes: &[u8]) {
        for (b, w) in bytes.chunks_exact(4).zip(self.part(row, byte, bytes.len())) {
            w.store(u32::from_ne_bytes([b[0], b[1], b[2], b[3]]), Ordering::Relaxed);
        }
    }

    /// Copies elements in, from the first one on; those past the buffer's end are dropped.
    pub fn write(&self, values: &[f32]) {
        values.iter().zip(self.words()).for_each(|(v, w)| w.store(v.to_bits(), Ordering::Relaxed));
    }
}

impl std::fmt::Debug for SharedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedBuffer[{}, {}]", self.rows, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_rows_and_is_aligned() {
        let buffer = SharedBuffer::new(5, 20_000).unwrap();
        assert_eq!(buffer.address() as usize % SHARED_ALIGNMENT, 0);
        assert_eq!(buffer.bytes() % SHARED_ALIGNMENT, 0);
        assert!(buffer.bytes() >= 5 * 20_000 * 4);
        let values: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
        buffer.write(&values);
        let mut out = vec![0.0; 100_000];
        buffer.read(&mut out);
        assert_eq!(out, values);
        let mut part = vec![0; 60_000];
        buffer.read_part(2, 8, &mut part);
        assert_eq!(part[..4], 40_002f32.to_ne_bytes());
        buffer.write_part(4, 4, &part);
        // Neither a row too many nor a row that is too short for it.
        buffer.write_part(5, 4, &part);
        buffer.write_part(4, 20_004, &part);
        buffer.read(&mut out);
        assert_eq!(
            [out[80_000], out[80_001], out[95_000], out[95_001]],
            [80_000.0, 40_002.0, 55_001.0, 95_001.0]
        );
        assert!(SharedBuffer::new(usize::MAX, 2).is_none());
        assert!(SharedBuffer::new(0, 0).is_some());
    }
}
