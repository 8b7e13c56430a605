//! Device memory: buffers with device addresses, each in an allocation of its own or carved from an [`Arena`].

use std::sync::Arc;

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;

/// Where a buffer should live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Fast for the GPU; mapped too where the GPU shares the host's memory.
    Device,
    /// Written by the host, read by the GPU (write-combined).
    Upload,
    /// Written by the host in few bytes, read by the GPU often: device memory that is mapped, where there is any.
    Near,
    /// Written by the GPU, read by the host (cached).
    Readback,
}

/// A buffer bound to memory of its own, with a device address. Freed on drop.
pub struct Buffer {
    context: Arc<Context>,
    pub(crate) handle: vk::Buffer,
    memory: vk::DeviceMemory,
    address: vk::DeviceAddress,
    bytes: u64,
    mapped: Option<*mut u8>,
}

// SAFETY: the mapped pointer is only dereferenced in methods whose contracts order host and device access.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates `bytes` bytes. `what` appears in errors.
    ///
    /// Errors when no memory type fits or the memory is short; device memory never spills to the host unasked.
    pub fn new(context: &Arc<Context>, place: Place, bytes: u64, what: &str) -> Result<Buffer, VulkanError> {
        let bytes = bytes.max(16);
        if let Some(address) = context.pretended_address(bytes) {
            let (handle, memory) = (vk::Buffer::null(), vk::DeviceMemory::null());
            return Ok(Buffer { context: context.clone(), handle, memory, address, bytes, mapped: None });
        }
        Buffer::with_memory(context, place, bytes, what)
    }

    /// The same where nothing executes, too.
    pub(crate) fn with_memory(
        context: &Arc<Context>,
        place: Place,
        bytes: u64,
        what: &str,
    ) -> Result<Buffer, VulkanError> {
        let device = &context.device;
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::SHADER_DEVICE_ADDRESS
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST
            | vk::BufferUsageFlags::INDIRECT_BUFFER;
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage);
        // SAFETY: plain creation; destroyed below or on drop.
        let handle = unsafe { device.create_buffer(&info, None) }?;
        // SAFETY: the buffer was just made.
        let needs = unsafe { device.get_buffer_memory_requirements(handle) };
        let allocated = allocate(context, place, &needs, what);
        let (memory, host_visible) = match allocated {
            Ok(found) => found,
            Err(e) => {
                // SAFETY: nothing uses the buffer.
                unsafe { device.destroy_buffer(handle, None) };
                return Err(e);
            }
        };
        let mut buffer = Buffer { context: context.clone(), handle, memory, address: 0, bytes, mapped: None };
        // SAFETY: memory and buffer are fresh and match; `buffer` frees both from here on.
        unsafe { device.bind_buffer_memory(handle, memory, 0) }?;
        let info = vk::BufferDeviceAddressInfo::default().buffer(handle);
        // SAFETY: the buffer was made with the device-address usage.
        buffer.address = unsafe { device.get_buffer_device_address(&info) };
        if host_visible {
            // SAFETY: the memory is host visible and not mapped yet.
            let pointer =
                unsafe { device.map_memory(memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()) }?;
            buffer.mapped = Some(pointer.cast());
        }
        Ok(buffer)
    }

    /// Device address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True when the host can write or read it in place.
    pub fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// Writes host data at `offset`. The caller has waited for all GPU work that uses the range.
    ///
    /// Panics when the buffer is not mapped or the range leaves it: both are bugs of this crate.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if self.context.compile_only() {
            return;
        }
        let base = self.mapped.unwrap_or(std::ptr::null_mut());
        assert!(!base.is_null(), "the buffer is not mapped");
        assert!(offset + data.len() as u64 <= self.bytes, "write past the end of a buffer");
        // SAFETY: mapped, in range, and memory of ours only.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), base.add(offset as usize), data.len()) };
    }

    /// Reads back `out.len()` bytes at `offset`. The caller has waited for the work that wrote them.
    ///
    /// Panics when the buffer is not mapped or the range leaves it: both are bugs of this crate.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        if self.context.compile_only() {
            return;
        }
        let base = self.mapped.unwrap_or(std::ptr::null_mut());
        assert!(!base.is_null(), "the buffer is not mapped");
        assert!(offset + out.len() as u64 <= self.bytes, "read past the end of a buffer");
        // SAFETY: mapped and in range.
        unsafe { std::ptr::copy_nonoverlapping(base.add(offset as usize), out.as_mut_ptr(), out.len()) };
    }

    /// The mapped bytes, for direct file reads into them.
    ///
    /// # Safety
    /// No GPU work uses the range while the slice lives, and no other slice of it does.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn mapped_slice(&self, offset: u64, len: usize) -> Option<&mut [u8]> {
        if offset + len as u64 > self.bytes {
            return None;
        }
        // SAFETY: in range; exclusive by the caller's promise.
        self.mapped.map(|p| unsafe { std::slice::from_raw_parts_mut(p.add(offset as usize), len) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: callers wait for GPU work before dropping; the memory is unmapped by freeing it.
        unsafe {
            self.context.device.destroy_buffer(self.handle, None);
            self.context.device.free_memory(self.memory, None);
        }
    }
}

fn allocate(
    context: &Context,
    place: Place,
    needs: &vk::MemoryRequirements,
    what: &str,
) -> Result<(vk::DeviceMemory, bool), VulkanError> {
    use vk::MemoryPropertyFlags as F;
    let integrated = context.profile().integrated || context.profile().software;
    let host = F::HOST_VISIBLE | F::HOST_COHERENT;
    let wanted: [F; 2] = match place {
        Place::Device if integrated => [F::DEVICE_LOCAL | host, F::DEVICE_LOCAL],
        Place::Device => [F::DEVICE_LOCAL, F::DEVICE_LOCAL],
        Place::Near => [F::DEVICE_LOCAL | host, host],
        Place::Upload => [host, host],
        Place::Readback => [host | F::HOST_CACHED, host],
    };
    let mut free_most = 0;
    for flags in wanted {
        // Several types may fit, in different heaps (an APU shows two): take them in order until one has room.
        for (index, ty) in context.memory_types.memory_types_as_slice().iter().enumerate() {
            if needs.memory_type_bits & (1 << index) == 0 || !ty.property_flags.contains(flags) {
                continue;
            }
            let free = context.heap_free(ty.heap_index as usize);
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
                Ok(memory) => return Ok((memory, ty.property_flags.contains(F::HOST_VISIBLE))),
                Err(vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY) => {
                    continue;
                }
                Err(other) => return Err(context.named(other, what)),
            }
        }
    }
    Err(VulkanError::OutOfMemory {
        device: context.profile().name.clone(),
        what: what.to_string(),
        requested: needs.size,
        free: free_most,
    })
}
