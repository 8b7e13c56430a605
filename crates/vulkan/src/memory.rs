//! Device memory: buffers with device addresses, each in an allocation of its own or carved from an [`Arena`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ash::vk;
use unicorn_core::{DeviceError, SharedBuffer};

use crate::arena::{Allocation, CHUNK_BYTES, Piece, SMALL_BYTES_MAX};
use crate::context::Context;
use crate::error::VulkanError;
use crate::place::{Mapped, Place};

/// A buffer bound to memory, with a device address. Freed on drop.
pub(crate) struct Buffer {
    context: Arc<Context>,
    pub(crate) handle: vk::Buffer,
    memory: vk::DeviceMemory,
    /// Offset and length in `memory` where that is a chunk of the arena, else the whole allocation's length.
    offset: u64,
    held: u64,
    shared: bool,
    address: vk::DeviceAddress,
    bytes: u64,
    mapped: Option<Mapped>,
}

impl Buffer {
    /// Allocates `bytes` bytes. `what` appears in errors.
    ///
    /// Errors when no memory type fits or the memory is short; device memory never spills to the host unasked.
    pub(crate) fn new(
        context: &Arc<Context>,
        place: Place,
        bytes: u64,
        what: &str,
    ) -> Result<Buffer, VulkanError> {
        Buffer::on_queues(context, place, bytes, what, None)
    }

    /// As [`Buffer::new`], for a residual stream: what copies it may be another queue than the one that runs kernels.
    pub(crate) fn new_crossing(
        context: &Arc<Context>,
        place: Place,
        bytes: u64,
        what: &str,
    ) -> Result<Buffer, VulkanError> {
        Buffer::on_queues(context, place, bytes, what, context.crossing_families())
    }

    /// `families`: those whose queues use it, where there are several.
    fn on_queues(
        context: &Arc<Context>,
        place: Place,
        bytes: u64,
        what: &str,
        families: Option<[u32; 2]>,
    ) -> Result<Buffer, VulkanError> {
        let bytes = bytes.max(16);
        if let Some(address) = context.pretended_address(bytes) {
            return Ok(Buffer {
                context: context.clone(),
                handle: vk::Buffer::null(),
                memory: vk::DeviceMemory::null(),
                offset: 0,
                held: 0,
                shared: false,
                address,
                bytes,
                mapped: None,
            });
        }
        Buffer::allocated(context, place, bytes, what, families)
    }

    /// As [`Buffer::new`], but with real memory even on a device that was opened to compile kernels only, whose other buffers are bare
    /// addresses. For what touches the memory without running a kernel.
    pub(crate) fn with_memory(
        context: &Arc<Context>,
        place: Place,
        bytes: u64,
        what: &str,
    ) -> Result<Buffer, VulkanError> {
        Buffer::allocated(context, place, bytes, what, None)
    }

    fn allocated(
        context: &Arc<Context>,
        place: Place,
        bytes: u64,
        what: &str,
        families: Option<[u32; 2]>,
    ) -> Result<Buffer, VulkanError> {
        let device = &context.device;
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST
            | vk::BufferUsageFlags::INDIRECT_BUFFER;
        let info = on_families(vk::BufferCreateInfo::default().size(bytes).usage(usage), &families);
        // SAFETY: plain creation; destroyed below or on drop.
        let handle = unsafe { device.create_buffer(&info, None) }?;
        // SAFETY: the buffer was just made.
        let needs = unsafe { device.get_buffer_memory_requirements(handle) };
        let shared = needs.size <= SMALL_BYTES_MAX;
        let found = if shared {
            take_piece(context, place, &needs, what).map(|p| (p.memory, p.offset, p.mapped))
        } else {
            allocate(context, place, &needs, what).map(|a| (a.memory, 0, a.mapped))
        };
        let (memory, offset, mapped) = match found {
            Ok(found) => found,
            Err(e) => {
                // SAFETY: nothing uses the buffer.
                unsafe { device.destroy_buffer(handle, None) };
                return Err(e);
            }
        };
        // SAFETY: in the range that was taken, so inside the mapping.
        let mapped = mapped.map(|m| Mapped(unsafe { m.0.add(offset as usize) }));
        let context = context.clone();
        let held = needs.size;
        let mut buffer = Buffer { context, handle, memory, offset, held, shared, address: 0, bytes, mapped };
        // SAFETY: memory and buffer match, and the range is the buffer's alone; `buffer` frees both from here on.
        unsafe { device.bind_buffer_memory(handle, memory, offset) }?;
        let info = vk::BufferDeviceAddressInfo::default().buffer(handle);
        // SAFETY: the buffer was made with the device-address usage.
        buffer.address = unsafe { device.get_buffer_device_address(&info) };
        buffer.context.label(handle, what);
        Ok(buffer)
    }

    /// A buffer on memory of the host; it must not outlive it. `None` where the driver does not import this memory (AMD's takes anonymous
    /// memory only), or nothing executes.
    pub(crate) fn import(context: &Arc<Context>, host: &SharedBuffer) -> Option<Buffer> {
        let importer = context.host_import.as_ref()?;
        let device = &context.device;
        let (pointer, bytes) = (host.address().cast_mut().cast::<u8>(), host.bytes() as u64);
        let kind = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        let get = importer.fp().get_memory_host_pointer_properties_ext;
        // SAFETY: the memory is there, and aligned to what every driver asks.
        let told = unsafe { get(device.handle(), kind, pointer.cast(), &mut properties) };
        told.result().ok()?;
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(kind);
        let families = context.crossing_families();
        let info = on_families(vk::BufferCreateInfo::default().size(bytes).usage(usage), &families);
        let info = info.push_next(&mut external);
        // SAFETY: plain creation; freed by `buffer` from here on.
        let handle = unsafe { device.create_buffer(&info, None) }.ok()?;
        // SAFETY: the buffer was just made.
        let needs = unsafe { device.get_buffer_memory_requirements(handle) };
        let bits = needs.memory_type_bits & properties.memory_type_bits;
        // Nothing here flushes, so the memory has to be coherent; uncached memory would be slow for the host.
        let types = context.memory_types.memory_types_as_slice();
        let index = (0..types.len()).find(|i| bits & (1 << i) != 0 && is_coherent(types[*i].property_flags));
        let mut flags = vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let mut import =
            vk::ImportMemoryHostPointerInfoEXT::default().handle_type(kind).host_pointer(pointer.cast());
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(bytes)
            .memory_type_index(index.unwrap_or(0) as u32)
            .push_next(&mut flags)
            .push_next(&mut import);
        let fits = index.is_some() && needs.size <= bytes;
        // SAFETY: the host's memory outlives the buffer by the caller's promise.
        let memory = fits.then(|| unsafe { device.allocate_memory(&info, None) }.ok());
        let Some(memory) = memory.flatten() else {
            // SAFETY: nothing uses the buffer.
            unsafe { device.destroy_buffer(handle, None) };
            return None;
        };
        context.allocated.fetch_add(bytes, Ordering::Relaxed);
        let (context, mapped) = (context.clone(), Some(Mapped(pointer)));
        let mut buffer = Buffer {
            context,
            handle,
            memory,
            offset: 0,
            held: bytes,
            shared: false,
            address: 0,
            bytes,
            mapped,
        };
        // SAFETY: memory and buffer match.
        unsafe { device.bind_buffer_memory(handle, memory, 0) }.ok()?;
        let info = vk::BufferDeviceAddressInfo::default().buffer(handle);
        // SAFETY: the buffer was made with the device-address usage.
        buffer.address = unsafe { device.get_buffer_device_address(&info) };
        buffer.context.label(handle, "a shared residual stream");
        Some(buffer)
    }

    /// Device address of the first byte.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True when the host can write or read it in place.
    pub(crate) fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// Writes host data at `offset`. The caller has waited for all GPU work that uses the range.
    ///
    /// Panics when the buffer is not mapped or the range leaves it: both are bugs of this crate.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        if self.context.compile_only() {
            return;
        }
        let base = self.mapped.map_or(std::ptr::null_mut(), |m| m.0);
        assert!(!base.is_null(), "the buffer is not mapped");
        assert!(offset + data.len() as u64 <= self.bytes, "write past the end of a buffer");
        self.context.count_copy(data.len() as u64);
        // SAFETY: mapped, in range, and memory of ours only.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), base.add(offset as usize), data.len()) };
    }

    /// Reads back `out.len()` bytes at `offset`. The caller has waited for the work that wrote them.
    ///
    /// Panics when the buffer is not mapped or the range leaves it: both are bugs of this crate.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) {
        if self.context.compile_only() {
            return;
        }
        let base = self.mapped.map_or(std::ptr::null_mut(), |m| m.0);
        assert!(!base.is_null(), "the buffer is not mapped");
        assert!(offset + out.len() as u64 <= self.bytes, "read past the end of a buffer");
        self.context.count_copy(out.len() as u64);
        // SAFETY: mapped and in range.
        unsafe { std::ptr::copy_nonoverlapping(base.add(offset as usize), out.as_mut_ptr(), out.len()) };
    }

    /// The mapped bytes, for direct file reads into them.
    ///
    /// # Safety
    /// No GPU work uses the range while the slice lives, and no other slice of it does.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn mapped_slice(&self, offset: u64, len: usize) -> Option<&mut [u8]> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return None;
        }
        // SAFETY: in range; exclusive by the caller's promise.
        self.mapped.map(|m| unsafe { std::slice::from_raw_parts_mut(m.0.add(offset as usize), len) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A device that only compiles has buffers without memory.
        if self.handle == vk::Buffer::null() {
            return;
        }
        // An upload that failed half way leaves copies under way. On a lost device nothing runs any more.
        let _ = self.context.wait_uploads();
        if self.context.is_hung() {
            return;
        }
        // SAFETY: no copy into it is under way, and callers wait for other GPU work before dropping.
        unsafe { self.context.device.destroy_buffer(self.handle, None) };
        if self.shared {
            let mut arena = self.context.arena.lock().unwrap_or_else(|e| e.into_inner());
            if let Some(chunk) = arena.give(self.memory, self.offset, self.held) {
                free(&self.context, chunk.memory, chunk.bytes);
            }
        } else {
            free(&self.context, self.memory, self.held);
        }
    }
}

/// Lets queues of several families use a buffer without handing it over.
fn on_families<'a>(
    info: vk::BufferCreateInfo<'a>,
    families: &'a Option<[u32; 2]>,
) -> vk::BufferCreateInfo<'a> {
    match families {
        Some(families) => info.sharing_mode(vk::SharingMode::CONCURRENT).queue_family_indices(families),
        None => info,
    }
}

/// Frees what [`allocate`] made. Unmapped by that.
pub(crate) fn free(context: &Context, memory: vk::DeviceMemory, bytes: u64) {
    // SAFETY: the owner gave the memory up and no buffer is bound to it any more.
    unsafe { context.device.free_memory(memory, None) };
    context.allocated.fetch_sub(bytes, Ordering::Relaxed);
}

/// Room for a small buffer: in a chunk that has some, else in a new chunk.
fn take_piece(
    context: &Context,
    place: Place,
    needs: &vk::MemoryRequirements,
    what: &str,
) -> Result<Piece, VulkanError> {
    let mut arena = context.arena.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(piece) = arena.take(place, needs) {
        return Ok(piece);
    }
    let whole = vk::MemoryRequirements { size: CHUNK_BYTES, ..*needs };
    // Where a whole chunk no longer fits, one of the buffer's size may.
    let allocation = match allocate(context, place, &whole, what) {
        Err(VulkanError::Device(DeviceError::OutOfMemory { .. })) => allocate(context, place, needs, what)?,
        other => other?,
    };
    let unaligned = || VulkanError::Limit {
        device: context.profile().name.clone(),
        what: format!("the alignment of {what}"),
        asked: format!("{} bytes", needs.alignment),
        most: allocation.bytes,
    };
    arena.grow(place, allocation, needs).ok_or_else(unaligned)
}

/// Allocates memory for `place` in the first fitting type whose heap has room, and maps it where the host can see it.
///
/// Errors when it is more than one allocation may be, or when no heap has room.
pub(crate) fn allocate(
    context: &Context,
    place: Place,
    needs: &vk::MemoryRequirements,
    what: &str,
) -> Result<Allocation, VulkanError> {
    let gpu = context.profile();
    if needs.size > gpu.allocation_bytes {
        return Err(VulkanError::Limit {
            device: gpu.name.clone(),
            what: format!("an allocation for {what}"),
            asked: format!("{} bytes", needs.size),
            most: gpu.allocation_bytes,
        });
    }
    let types = context.memory_types.memory_types_as_slice();
    let mut free_most = 0;
    for index in type_order(types, place, gpu.integrated || gpu.software) {
        if needs.memory_type_bits & (1 << index) == 0 {
            continue;
        }
        let free = context.heap_free(types[index].heap_index as usize);
        free_most = free_most.max(free);
        if free < needs.size {
            continue;
        }
        let mut address =
            vk::MemoryAllocateFlagsInfo::default().flags(vk::MemoryAllocateFlags::DEVICE_ADDRESS);
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(needs.size)
            .memory_type_index(index as u32)
            .push_next(&mut address);
        // SAFETY: plain allocation of a type that the buffer accepts.
        match unsafe { context.device.allocate_memory(&info, None) } {
            Ok(memory) => return mapped(context, memory, index, needs.size, what),
            Err(
                vk::Result::ERROR_OUT_OF_DEVICE_MEMORY
                | vk::Result::ERROR_OUT_OF_HOST_MEMORY
                | vk::Result::ERROR_TOO_MANY_OBJECTS,
            ) => {}
            Err(other) => return Err(context.named(other, what)),
        }
    }
    Err(VulkanError::Device(DeviceError::OutOfMemory {
        device: gpu.name.clone(),
        what: what.to_string(),
        requested: needs.size,
        free: free_most,
    }))
}

fn mapped(
    context: &Context,
    memory: vk::DeviceMemory,
    index: usize,
    bytes: u64,
    what: &str,
) -> Result<Allocation, VulkanError> {
    context.allocated.fetch_add(bytes, Ordering::Relaxed);
    let mut allocation = Allocation { memory, type_index: index as u32, bytes, mapped: None };
    let flags = context.memory_types.memory_types[index].property_flags;
    if flags.contains(vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT) {
        // SAFETY: the memory is host visible and not mapped yet.
        match unsafe { context.device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()) } {
            Ok(pointer) => allocation.mapped = Some(Mapped(pointer.cast())),
            Err(e) => {
                free(context, memory, bytes);
                return Err(context.named(e, what));
            }
        }
    }
    Ok(allocation)
}

/// Seen alike by the host and the GPU without flushes, and cached.
fn is_coherent(flags: vk::MemoryPropertyFlags) -> bool {
    use vk::MemoryPropertyFlags as F;
    flags.contains(F::HOST_VISIBLE | F::HOST_COHERENT)
        && !flags.intersects(F::DEVICE_UNCACHED_AMD | F::PROTECTED)
}

/// The memory types to try, in order. `unified`: the GPU shares the host's memory.
///
/// The driver lists types by how fast they are, and an integrated AMD GPU shows its memory as two heaps, so that a model larger than the
/// first goes on in the second. On a discrete card device memory never comes from the host, since that would run at the bus's speed.
fn type_order(types: &[vk::MemoryType], place: Place, unified: bool) -> Vec<usize> {
    use vk::MemoryPropertyFlags as F;
    let host = F::HOST_VISIBLE | F::HOST_COHERENT;
    let wanted = match place {
        Place::Device if unified => [F::DEVICE_LOCAL | host, F::DEVICE_LOCAL],
        Place::Device => [F::DEVICE_LOCAL, F::DEVICE_LOCAL],
        Place::Near => [F::DEVICE_LOCAL | host, host],
        Place::Upload => [host, host],
        Place::Readback => [host | F::HOST_CACHED, host],
    };
    // Memory that is never cached, for debugging, or protected, or without backing: each needs a feature that is not asked for.
    let unfit = F::PROTECTED | F::DEVICE_COHERENT_AMD | F::DEVICE_UNCACHED_AMD | F::LAZILY_ALLOCATED;
    let mut order = Vec::new();
    for flags in wanted {
        for (i, ty) in types.iter().enumerate() {
            let fits = ty.property_flags.contains(flags) && !ty.property_flags.intersects(unfit);
            if fits && !order.contains(&i) {
                order.push(i);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use vk::MemoryPropertyFlags as F;

    fn types(all: &[(F, u32)]) -> Vec<vk::MemoryType> {
        all.iter().map(|(f, heap)| vk::MemoryType { property_flags: *f, heap_index: *heap }).collect()
    }

    #[test]
    fn an_integrated_amd_gpu_uses_both_heaps() {
        let (local, host) = (F::DEVICE_LOCAL, F::HOST_VISIBLE | F::HOST_COHERENT);
        let all = types(&[
            (local, 1),
            (local | host, 0),
            (local | host, 1),
            (local | host | F::HOST_CACHED, 0),
            (local | host | F::DEVICE_COHERENT_AMD | F::DEVICE_UNCACHED_AMD, 0),
        ]);
        assert_eq!(type_order(&all, Place::Device, true), [1, 2, 3, 0]);
        assert_eq!(type_order(&all, Place::Near, true), [1, 2, 3]);
        assert_eq!(type_order(&all, Place::Upload, true), [1, 2, 3]);
        assert_eq!(type_order(&all, Place::Readback, true), [3, 1, 2]);
    }

    #[test]
    fn device_memory_of_a_discrete_card_stays_on_it() {
        let host = F::HOST_VISIBLE | F::HOST_COHERENT;
        // As NVIDIA lists them: none, device, host, cached host, the window that the host sees.
        let all = types(&[
            (F::empty(), 1),
            (F::DEVICE_LOCAL, 0),
            (host, 1),
            (host | F::HOST_CACHED, 1),
            (F::DEVICE_LOCAL | host, 2),
        ]);
        assert_eq!(type_order(&all, Place::Device, false), [1, 4]);
        assert_eq!(type_order(&all, Place::Near, false), [4, 2, 3]);
        assert_eq!(type_order(&all, Place::Upload, false), [2, 3, 4]);
        assert_eq!(type_order(&all, Place::Readback, false), [3, 2, 4]);
    }
}
