//! A driver that accepts everything and does nothing, so that tests record and "compile" for any profile on any machine. Each of its devices
//! remembers the largest dispatch and workgroup, from whatever thread they come: the handles of a device and of its command buffers point at
//! what it remembers.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicU32, Ordering};

use ash::vk;
use ash::vk::Handle;

use crate::profile::GpuProfile;
use crate::select;

/// What a device saw.
#[derive(Default)]
struct Seen {
    groups: [AtomicU32; 3],
    threads: AtomicU32,
}

impl Seen {
    /// Of a handle that the driver gave out, while its device lives.
    fn of<'a>(handle: impl Handle) -> &'a Seen {
        // SAFETY: devices and command buffers of this driver are pointers to what `load` made and `destroy_device` frees.
        unsafe { &*(handle.as_raw() as *const Seen) }
    }
}

/// Asserts that what was recorded on a device of this driver keeps its limits, and those that Vulkan guarantees everywhere.
pub(crate) fn assert_within_limits(gpu: &GpuProfile, device: &ash::Device) {
    let seen = Seen::of(device.handle());
    // The guaranteed maxComputeWorkGroupCount.
    let groups = seen.groups.each_ref().map(|g| g.load(Ordering::Relaxed));
    assert!(groups.iter().all(|g| (1..=65535).contains(g)), "{}: a dispatch of {groups:?} groups", gpu.name);
    let threads = seen.threads.load(Ordering::Relaxed);
    let most = gpu.workgroup_invocations.min(gpu.workgroup_subgroups.saturating_mul(select::subgroup(gpu)));
    assert!((1..=most).contains(&threads), "{}: a workgroup of {threads} threads", gpu.name);
}

/// Memory that nothing is ever written to.
pub(crate) fn memory_types() -> vk::PhysicalDeviceMemoryProperties {
    let mut types = vk::PhysicalDeviceMemoryProperties {
        memory_type_count: 1,
        memory_heap_count: 1,
        ..Default::default()
    };
    use vk::MemoryPropertyFlags as F;
    types.memory_types[0].property_flags = F::DEVICE_LOCAL | F::HOST_VISIBLE | F::HOST_COHERENT;
    types.memory_heaps[0].size = 1 << 40;
    types
}

/// The driver's loader, instance and device.
pub(crate) fn load() -> (ash::Entry, ash::Instance, ash::Device) {
    unsafe extern "system" fn nothing(_: vk::Instance, _: *const c_char) -> vk::PFN_vkVoidFunction {
        None
    }
    let seen = Box::into_raw(Box::<Seen>::default());
    // SAFETY: functions that are not there panic when called; those that are have the signatures of their names.
    unsafe {
        let entry = ash::Entry::from_static_fn(ash::StaticFn { get_instance_proc_addr: nothing });
        let instance = ash::Instance::load_with(function, vk::Instance::null());
        let device = ash::Device::load_with(function, vk::Device::from_raw(seen as u64));
        (entry, instance, device)
    }
}

/// Destroys nothing: every `vkDestroy*` of a device's object has this form.
macro_rules! destroy {
    ($name:ident, $handle:ty) => {
        unsafe extern "system" fn $name(_: vk::Device, _: $handle, _: *const vk::AllocationCallbacks<'_>) {}
    };
}

/// Makes a null object.
macro_rules! create {
    ($name:ident, $info:ty, $handle:ty) => {
        unsafe extern "system" fn $name(
            _: vk::Device,
            _: *const $info,
            _: *const vk::AllocationCallbacks<'_>,
            out: *mut $handle,
        ) -> vk::Result {
            // SAFETY: the caller passes room for a handle.
            unsafe { *out = <$handle>::null() };
            vk::Result::SUCCESS
        }
    };
}

destroy!(destroy_buffer, vk::Buffer);
destroy!(free_memory, vk::DeviceMemory);
destroy!(destroy_semaphore, vk::Semaphore);
destroy!(destroy_layout, vk::PipelineLayout);
destroy!(destroy_module, vk::ShaderModule);
destroy!(destroy_pipeline, vk::Pipeline);
destroy!(destroy_cache, vk::PipelineCache);
destroy!(destroy_pool, vk::CommandPool);
destroy!(destroy_queries, vk::QueryPool);
destroy!(destroy_set_layout, vk::DescriptorSetLayout);
destroy!(destroy_sets, vk::DescriptorPool);
create!(create_layout, vk::PipelineLayoutCreateInfo<'_>, vk::PipelineLayout);
create!(create_module, vk::ShaderModuleCreateInfo<'_>, vk::ShaderModule);
create!(create_cache, vk::PipelineCacheCreateInfo<'_>, vk::PipelineCache);
create!(create_pool, vk::CommandPoolCreateInfo<'_>, vk::CommandPool);
create!(create_queries, vk::QueryPoolCreateInfo<'_>, vk::QueryPool);
create!(create_set_layout, vk::DescriptorSetLayoutCreateInfo<'_>, vk::DescriptorSetLayout);
create!(create_sets, vk::DescriptorPoolCreateInfo<'_>, vk::DescriptorPool);
create!(allocate_memory, vk::MemoryAllocateInfo<'_>, vk::DeviceMemory);

unsafe extern "system" fn destroy_device(device: vk::Device, _: *const vk::AllocationCallbacks<'_>) {
    // SAFETY: made by `load`; the device is destroyed once, after all that was made from it.
    drop(unsafe { Box::from_raw(device.as_raw() as *mut Seen) });
}
unsafe extern "system" fn destroy_instance(_: vk::Instance, _: *const vk::AllocationCallbacks<'_>) {}
unsafe extern "system" fn wait_idle(_: vk::Device) -> vk::Result {
    vk::Result::SUCCESS
}
unsafe extern "system" fn wait_semaphores(
    _: vk::Device,
    _: *const vk::SemaphoreWaitInfo<'_>,
    _: u64,
) -> vk::Result {
    vk::Result::SUCCESS
}
unsafe extern "system" fn cache_data(
    _: vk::Device,
    _: vk::PipelineCache,
    size: *mut usize,
    _: *mut c_void,
) -> vk::Result {
    // SAFETY: the caller passes the size that it has room for.
    unsafe { *size = 0 };
    vk::Result::SUCCESS
}
unsafe extern "system" fn name_object(
    _: vk::Device,
    _: *const vk::DebugUtilsObjectNameInfoEXT<'_>,
) -> vk::Result {
    vk::Result::SUCCESS
}
unsafe extern "system" fn begin_label(_: vk::CommandBuffer, _: *const vk::DebugUtilsLabelEXT<'_>) {}
unsafe extern "system" fn end_label(_: vk::CommandBuffer) {}
unsafe extern "system" fn create_pipelines(
    device: vk::Device,
    _: vk::PipelineCache,
    count: u32,
    infos: *const vk::ComputePipelineCreateInfo<'_>,
    _: *const vk::AllocationCallbacks<'_>,
    out: *mut vk::Pipeline,
) -> vk::Result {
    for i in 0..count as usize {
        // SAFETY: the caller passes as many infos, and room for as many handles; constant 0 is a kernel's workgroup size.
        unsafe {
            *out.add(i) = vk::Pipeline::null();
            if let Some(special) = (*infos.add(i)).stage.p_specialization_info.as_ref()
                && special.data_size >= 4
            {
                let threads = special.p_data.cast::<u32>().read_unaligned();
                Seen::of(device).threads.fetch_max(threads, Ordering::Relaxed);
            }
        }
    }
    vk::Result::SUCCESS
}
unsafe extern "system" fn allocate_commands(
    device: vk::Device,
    info: *const vk::CommandBufferAllocateInfo<'_>,
    out: *mut vk::CommandBuffer,
) -> vk::Result {
    // SAFETY: the caller passes room for the count that it asks for.
    unsafe {
        for i in 0..(*info).command_buffer_count as usize {
            *out.add(i) = vk::CommandBuffer::from_raw(device.as_raw());
        }
    }
    vk::Result::SUCCESS
}
unsafe extern "system" fn begin(
    _: vk::CommandBuffer,
    _: *const vk::CommandBufferBeginInfo<'_>,
) -> vk::Result {
    vk::Result::SUCCESS
}
unsafe extern "system" fn end(_: vk::CommandBuffer) -> vk::Result {
    vk::Result::SUCCESS
}
unsafe extern "system" fn barrier(_: vk::CommandBuffer, _: *const vk::DependencyInfo<'_>) {}
unsafe extern "system" fn bind(_: vk::CommandBuffer, _: vk::PipelineBindPoint, _: vk::Pipeline) {}
unsafe extern "system" fn bind_sets(
    _: vk::CommandBuffer,
    _: vk::PipelineBindPoint,
    _: vk::PipelineLayout,
    _: u32,
    _: u32,
    _: *const vk::DescriptorSet,
    _: u32,
    _: *const u32,
) {
}
unsafe extern "system" fn allocate_sets(
    _: vk::Device,
    _: *const vk::DescriptorSetAllocateInfo<'_>,
    out: *mut vk::DescriptorSet,
) -> vk::Result {
    // SAFETY: the caller passes room for the one set that it asks for.
    unsafe { *out = vk::DescriptorSet::null() };
    vk::Result::SUCCESS
}
unsafe extern "system" fn update_sets(
    _: vk::Device,
    _: u32,
    _: *const vk::WriteDescriptorSet<'_>,
    _: u32,
    _: *const vk::CopyDescriptorSet<'_>,
) {
}
unsafe extern "system" fn create_buffer(
    _: vk::Device,
    info: *const vk::BufferCreateInfo<'_>,
    _: *const vk::AllocationCallbacks<'_>,
    out: *mut vk::Buffer,
) -> vk::Result {
    // SAFETY: the caller passes what it asks for and room for a handle; the handle is the size, and never null.
    unsafe { *out = vk::Buffer::from_raw((*info).size) };
    vk::Result::SUCCESS
}
unsafe extern "system" fn buffer_needs(_: vk::Device, buffer: vk::Buffer, out: *mut vk::MemoryRequirements) {
    // SAFETY: the caller passes room for what it asks.
    unsafe { *out = vk::MemoryRequirements { size: buffer.as_raw(), alignment: 256, memory_type_bits: !0 } };
}
unsafe extern "system" fn bind_memory(
    _: vk::Device,
    _: vk::Buffer,
    _: vk::DeviceMemory,
    _: vk::DeviceSize,
) -> vk::Result {
    vk::Result::SUCCESS
}
unsafe extern "system" fn map_memory(
    _: vk::Device,
    _: vk::DeviceMemory,
    _: vk::DeviceSize,
    _: vk::DeviceSize,
    _: vk::MemoryMapFlags,
    out: *mut *mut c_void,
) -> vk::Result {
    // SAFETY: the caller passes room for an address. Where nothing executes nobody reads or writes there.
    unsafe { *out = std::ptr::dangling_mut::<u64>().cast() };
    vk::Result::SUCCESS
}
unsafe extern "system" fn buffer_address(
    _: vk::Device,
    _: *const vk::BufferDeviceAddressInfo<'_>,
) -> vk::DeviceAddress {
    1 << 48
}
unsafe extern "system" fn dispatch(commands: vk::CommandBuffer, x: u32, y: u32, z: u32) {
    for (most, groups) in Seen::of(commands).groups.iter().zip([x, y, z]) {
        most.fetch_max(groups, Ordering::Relaxed);
    }
}
unsafe extern "system" fn reset_queries(_: vk::CommandBuffer, _: vk::QueryPool, _: u32, _: u32) {}
unsafe extern "system" fn timestamp(
    _: vk::CommandBuffer,
    _: vk::PipelineStageFlags2,
    _: vk::QueryPool,
    _: u32,
) {
}

/// The function of a name, null where there is none.
fn function(name: &CStr) -> *const c_void {
    match name.to_bytes() {
        b"vkDestroyInstance" => destroy_instance as *const c_void,
        b"vkDestroyDevice" => destroy_device as *const c_void,
        b"vkDeviceWaitIdle" => wait_idle as *const c_void,
        b"vkWaitSemaphores" => wait_semaphores as *const c_void,
        b"vkDestroySemaphore" => destroy_semaphore as *const c_void,
        b"vkDestroyBuffer" => destroy_buffer as *const c_void,
        b"vkFreeMemory" => free_memory as *const c_void,
        b"vkCreatePipelineLayout" => create_layout as *const c_void,
        b"vkDestroyPipelineLayout" => destroy_layout as *const c_void,
        b"vkCreateShaderModule" => create_module as *const c_void,
        b"vkDestroyShaderModule" => destroy_module as *const c_void,
        b"vkCreateComputePipelines" => create_pipelines as *const c_void,
        b"vkDestroyPipeline" => destroy_pipeline as *const c_void,
        b"vkCreatePipelineCache" => create_cache as *const c_void,
        b"vkGetPipelineCacheData" => cache_data as *const c_void,
        b"vkDestroyPipelineCache" => destroy_cache as *const c_void,
        b"vkSetDebugUtilsObjectNameEXT" => name_object as *const c_void,
        b"vkCmdBeginDebugUtilsLabelEXT" => begin_label as *const c_void,
        b"vkCmdEndDebugUtilsLabelEXT" => end_label as *const c_void,
        b"vkCreateCommandPool" => create_pool as *const c_void,
        b"vkDestroyCommandPool" => destroy_pool as *const c_void,
        b"vkAllocateCommandBuffers" => allocate_commands as *const c_void,
        b"vkBeginCommandBuffer" => begin as *const c_void,
        b"vkEndCommandBuffer" => end as *const c_void,
        b"vkCmdPipelineBarrier2" => barrier as *const c_void,
        b"vkCmdBindPipeline" => bind as *const c_void,
        b"vkCmdBindDescriptorSets" => bind_sets as *const c_void,
        b"vkAllocateDescriptorSets" => allocate_sets as *const c_void,
        b"vkUpdateDescriptorSets" => update_sets as *const c_void,
        b"vkCreateDescriptorSetLayout" => create_set_layout as *const c_void,
        b"vkDestroyDescriptorSetLayout" => destroy_set_layout as *const c_void,
        b"vkCreateDescriptorPool" => create_sets as *const c_void,
        b"vkDestroyDescriptorPool" => destroy_sets as *const c_void,
        b"vkCreateBuffer" => create_buffer as *const c_void,
        b"vkGetBufferMemoryRequirements" => buffer_needs as *const c_void,
        b"vkAllocateMemory" => allocate_memory as *const c_void,
        b"vkMapMemory" => map_memory as *const c_void,
        b"vkBindBufferMemory" => bind_memory as *const c_void,
        b"vkGetBufferDeviceAddress" => buffer_address as *const c_void,
        b"vkCmdDispatch" => dispatch as *const c_void,
        b"vkCreateQueryPool" => create_queries as *const c_void,
        b"vkDestroyQueryPool" => destroy_queries as *const c_void,
        b"vkCmdResetQueryPool" => reset_queries as *const c_void,
        b"vkCmdWriteTimestamp2" => timestamp as *const c_void,
        _ => std::ptr::null(),
    }
}
