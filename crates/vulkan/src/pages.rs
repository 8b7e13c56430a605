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
        let (cache, spec) = match state.blocks.get(&copy.mixer) {
            Some(GpuBlock::Attention(a)) => match &a.cache {
                Some(cache) => (cache, &a.spec),
                None => return Err(self.invalid("no state is reserved")),
            },
            _ => return Err(self.invalid(format!("block {} has no state", copy.mixer.0))),
        };
        let layout = state.layout.as_ref().ok_or_else(|| self.invalid("no state is reserved"))?;
        let (held, words) =
            (layout.pages(spec.state()), layout.page_words(spec.kv_heads, spec.head_dim).unwrap_or(0));
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
        let [keys, values] = [0, 1].map(|plane| regions(&copy.pages, pages.page_bytes, plane, direction));
        let copies = [(cache.keys.handle, &keys[..]), (cache.values.handle, &values[..])];
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

/// The parts of a plane of a cache, keys being the first, and of the buffer's rows, in which both planes of a page lie.
fn regions(pages: &[PageId], page_bytes: u64, plane: u64, direction: Direction) -> Vec<vk::BufferCopy> {
    let half = page_bytes / 2;
    let region = |(row, page): (usize, &PageId)| {
        let (host, cache) = (row as u64 * page_bytes + plane * half, u64::from(*page) * half);
        let (src_offset, dst_offset) = match direction {
            Direction::Out => (cache, host),
            Direction::In => (host, cache),
        };
        vk::BufferCopy { src_offset, dst_offset, size: half }
    };
    pages.iter().enumerate().map(region).collect()
}
