//! Pages of a mixer's state on their way out of the cache and into it, through buffers that the host and the GPU both reach.

use std::sync::Arc;
use std::time::Instant;

use ash::vk;
use unicorn_core::{DeviceError, Fence, PageId, StateCopy, StateWay};

use crate::blocks::GpuBlock;
use crate::error::VulkanError;
use crate::lane::Point;
use crate::place::Place;
use crate::state::{Inner, State};
use crate::told::{Pages, Told};
use crate::transfer::{Direction, Slot};
use crate::waiter::Submitted;

impl Inner {
    /// Copies pages once what that depends on has ended, as [`Inner::submit`] submits work.
    pub(crate) fn copy_state(self: &Arc<Self>, copy: StateCopy) {
        let after: Vec<_> = copy.after.iter().filter(|f| !self.submissions.has(f.id())).cloned().collect();
        let inner = self.clone();
        Fence::all(&after, None, move |outcome| match outcome {
            Ok(()) => inner.start_copy(copy),
            Err(source) => {
                let device = inner.profile.name.clone();
                copy.done.give(Err(Arc::new(DeviceError::Dependency { device, source })));
            }
        });
    }

    fn start_copy(&self, copy: StateCopy) {
        let started = Instant::now();
        let pages = match self.fill(&copy) {
            Ok(pages) => pages,
            Err(error) => return copy.done.give(Err(Arc::new(error))),
        };
        let state = self.lock();
        match self.enqueue_copy(&state, &copy, pages) {
            Ok((ends, pages)) => {
                // Under the lock, so that the order is that of the queue.
                self.submissions.push(Submitted { ends, started, done: copy.done, what: Told::Pages(pages) });
                drop(state);
                self.tell_unwatched();
            }
            Err(error) => {
                drop(state);
                copy.done.give(Err(Arc::new(error)));
            }
        }
    }

    /// A buffer for the pages, filled with those that go in. Nothing is held back meanwhile.
    fn fill(&self, copy: &StateCopy) -> Result<Pages, DeviceError> {
        let fail = |e: VulkanError| self.fail(e);
        let (host, place) = match &copy.way {
            StateWay::Save(host) => (host, Place::Readback),
            StateWay::Restore(host) => (host, Place::Upload),
        };
        let (pages, page_bytes) = (copy.pages.len(), host.width() as u64 * 4);
        if host.rows() < pages {
            return Err(self.invalid(format!("{pages} pages in {host:?}")));
        }
        let bytes = (pages as u64 * page_bytes).max(4);
        let slot = Slot::new(&self.context, place, bytes, "pages of state").map_err(fail)?;
        let saved = matches!(copy.way, StateWay::Save(_)).then(|| host.clone());
        if saved.is_none() && !self.context.compile_only() {
            let mut page = vec![0; page_bytes as usize];
            for row in 0..pages {
                host.read_part(row, 0, &mut page);
                slot.staging.write(row as u64 * page_bytes, &page);
            }
        }
        Ok(Pages { slot, saved, pages, page_bytes })
    }

    /// Puts the copy on the compute queue, behind the kernels that it has; returns where it ends.
    fn enqueue_copy(
        &self,
        state: &State,
        copy: &StateCopy,
        mut pages: Pages,
    ) -> Result<(Point, Pages), DeviceError> {
        let none = || self.invalid("no state is reserved");
        let layout = state.layout.as_ref().ok_or_else(none)?;
        // The buffers of a mixer's planes, each with an equal part of every page.
        let (planes, spec, words) = match state.blocks.get(&copy.mixer) {
            Some(GpuBlock::Attention(a)) => {
                let cache = a.cache.as_ref().ok_or_else(none)?;
                let words = a.spec.page_words(layout).unwrap_or(0);
                (vec![cache.keys.handle, cache.values.handle], a.spec.state(), words)
            }
            Some(GpuBlock::ShortConv(c)) => {
                let states = c.states.as_ref().ok_or_else(none)?;
                (vec![states.handle], c.spec.state(), c.spec.state_floats())
            }
            _ => return Err(self.invalid(format!("block {} has no state", copy.mixer.0))),
        };
        let held = layout.pages(spec);
        if let Some(page) = copy.pages.iter().find(|p| **p as usize >= held) {
            return Err(self.invalid(format!("page {page} of {held}")));
        }
        if words as u64 * 4 != pages.page_bytes {
            let (count, bytes) = (pages.pages, words * 4);
            return Err(
                self.invalid(format!("{count} pages of {bytes} bytes in rows of {}", pages.page_bytes))
            );
        }
        if copy.pages.is_empty() {
            return Ok((Point::default(), pages));
        }
        let direction = if pages.saved.is_some() { Direction::Out } else { Direction::In };
        let part = pages.page_bytes / planes.len() as u64;
        let at = |plane: usize| regions(&copy.pages, pages.page_bytes, plane as u64 * part, part, direction);
        let regions: Vec<_> = (0..planes.len()).map(at).collect();
        let copies: Vec<_> = planes.into_iter().zip(regions.iter().map(Vec::as_slice)).collect();
        let ends = pages.slot.exchange(direction, &copies, "pages of state").map_err(|e| self.fail(e))?;
        Ok((ends.into(), pages))
    }

    /// Brings pages that came out to where they are wanted.
    pub(crate) fn land_pages(&self, pages: &Pages) {
        if let Some(host) = pages.saved.as_ref().filter(|_| !self.context.compile_only()) {
            let mut page = vec![0; pages.page_bytes as usize];
            for row in 0..pages.pages {
                pages.slot.staging.read(row as u64 * pages.page_bytes, &mut page);
                host.write_part(row, 0, &page);
            }
        }
    }
}

/// The parts of a plane of a cache, keys being the first, and of the buffer's rows, in which all planes of a page lie: this one from byte `at`
/// on, with `part` bytes of each page.
fn regions(
    pages: &[PageId],
    page_bytes: u64,
    at: u64,
    part: u64,
    direction: Direction,
) -> Vec<vk::BufferCopy> {
    let region = |(row, page): (usize, &PageId)| {
        let (host, cache) = (row as u64 * page_bytes + at, u64::from(*page) * part);
        let (src_offset, dst_offset) = match direction {
            Direction::Out => (cache, host),
            Direction::In => (host, cache),
        };
        vk::BufferCopy { src_offset, dst_offset, size: part }
    };
    pages.iter().enumerate().map(region).collect()
}
