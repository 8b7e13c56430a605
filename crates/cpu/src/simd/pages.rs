//! Pages of a mixer's state on their way out of the cache and into it.

use unicorn_core::{DeviceError, SharedBuffer, StateCopy, StateWay};

use super::blocks::Loaded;
use super::errors::{failed, invalid};
use super::pool::{Pool, Worker};
use super::state::State;

/// Copies the pages; every head of every page is a piece of work for one thread.
pub(super) fn copy(state: &mut State, copy: &StateCopy, pool: &Pool) -> Result<(), DeviceError> {
    let State { blocks, copied, .. } = state;
    if let Some(Loaded::ShortConv(block)) = blocks.get(&copy.mixer) {
        let states = block.states.as_ref().ok_or_else(|| invalid("no state is reserved"))?;
        // SAFETY: no work that uses these pages is under way, and the device does one thing at a time.
        *copied += unsafe { states.copy(copy) }.map_err(invalid)?;
        return Ok(());
    }
    let Some(Loaded::Attention(block)) = blocks.get(&copy.mixer) else {
        return Err(invalid(format!("block {} has no state", copy.mixer.0)));
    };
    let cache = block.kv.as_ref().ok_or_else(|| invalid("no state is reserved"))?;
    let geometry = cache.geometry();
    if let Some(page) = copy.pages.iter().find(|p| **p as usize >= geometry.pages) {
        return Err(invalid(format!("page {page} of {}", geometry.pages)));
    }
    let (host, to_cache): (&SharedBuffer, bool) = match &copy.way {
        StateWay::Save(host) => (host, false),
        StateWay::Restore(host) => (host, true),
    };
    let (pages, heads) = (copy.pages.len(), geometry.kv_heads());
    let half = cache.head(&copy.pages, 0).half_page_bytes();
    let bytes = 2 * half * heads;
    if host.rows() < pages || host.width() * 4 != bytes {
        return Err(invalid(format!("{pages} pages of {bytes} bytes in {host:?}")));
    }
    let job = |worker: &Worker| {
        worker.step(pages * heads, 1, |part| {
            let mut room = vec![0; 2 * half];
            for piece in part {
                let (page, head) = (piece / heads, piece % heads);
                let (keys, values) = room.split_at_mut(half);
                // Keys of all heads come first, then the values of all.
                let ways = [head * half, (heads + head) * half];
                if to_cache {
                    host.read_part(page, ways[0], keys);
                    host.read_part(page, ways[1], values);
                }
                // SAFETY: each head of each page is given to one thread, and no work that uses these pages is under way.
                unsafe {
                    cache.head(&copy.pages, head).copy_page(
                        page * geometry.page_tokens,
                        keys,
                        values,
                        to_cache,
                    )
                };
                if !to_cache {
                    host.write_part(page, ways[0], keys);
                    host.write_part(page, ways[1], values);
                }
            }
        });
    };
    pool.run(&job).map_err(|e| failed("a copy of state", e))?;
    *copied += (pages * bytes) as u64;
    Ok(())
}
