//! An open GPU: logical device, queues with their timelines, and the few calls that everything else is built from.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ash::vk;
use ash::vk::Handle;
use unicorn_core::{DeviceError, MemoryRoom};

use crate::arena::Arena;
use crate::error::VulkanError;
use crate::gtt;
use crate::lane::{Crossings, Families, Lane, Point, Queue};
use crate::library::{Candidate, Library};
use crate::profile::GpuProfile;
use crate::statistics::{SharedStatistics, Statistics};
use crate::validation::{SharedMessages, Validation};

/// More than any kernel takes; some drivers allow 4 GiB.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// An open device. All Vulkan objects made from it must be dropped before it; they hold an `Arc` of it.
pub struct Context {
    library: Library,
    pub(crate) physical: vk::PhysicalDevice,
    pub(crate) device: ash::Device,
    compute: Queue,
    /// Where residual streams come in, if not on the compute queue.
    inward: Option<Queue>,
    /// Where they go out, likewise.
    outward: Option<Queue>,
    /// Residual streams of fewer bytes cross on the compute queue all the same.
    pub(crate) apart_bytes_min: u64,
    /// The timeline value of the last copy into a buffer.
    uploaded: AtomicU64,
    /// Bits of a timestamp that count, as a mask.
    pub(crate) timestamp_mask: u64,
    profile: GpuProfile,
    pub(crate) memory_types: vk::PhysicalDeviceMemoryProperties,
    budget: bool,
    pub(crate) statistics: Option<Statistics>,
    /// Imports memory of the host, where the driver can.
    pub(crate) host_import: Option<ash::ext::external_memory_host::Device>,
    /// Next address of a buffer without memory.
    pretended: AtomicU64,
    /// Most workgroups of a dispatch in x, y and z.
    pub(crate) groups_max: [u32; 3],
    /// Where a record of arguments may begin, and how long it may be.
    pub(crate) uniform_align: usize,
    pub(crate) uniform_bytes_max: u64,
    /// What tells this device and driver from others, for files that hold compiled pipelines.
    pub(crate) identity: Identity,
    /// Names for debuggers and validation messages, where they were asked for.
    pub(crate) labels: Option<ash::ext::debug_utils::Device>,
    pub(crate) arena: Mutex<Arena>,
    /// Bytes of all memory allocations.
    pub(crate) allocated: AtomicU64,
    copied: AtomicU64,
    pub(crate) hung: AtomicBool,
    /// All submissions so far, for tests of their order: on which lane, behind what, and where it ends.
    #[cfg(test)]
    pub(crate) log: Mutex<Vec<(Lane, Point, u64)>>,
}

/// A driver's identity for pipeline caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) vendor: u32,
    pub(crate) device: u32,
    pub(crate) driver: u32,
    pub(crate) uuid: [u8; vk::UUID_SIZE],
}

impl Context {
    /// Opens a device that [`Library::candidates`] listed.
    ///
    /// Errors when a feature that every kernel needs is missing.
    pub fn open(library: Library, candidate: &Candidate) -> Result<Context, VulkanError> {
        Context::open_on(library, candidate, Crossings::Picked)
    }

    /// [`Context::open`], with a say in where residual streams cross.
    pub(crate) fn open_on(
        library: Library,
        candidate: &Candidate,
        crossings: Crossings,
    ) -> Result<Context, VulkanError> {
        let physical = candidate.physical;
        let instance = &library.instance;
        let gpu = &candidate.profile;
        // SAFETY: the physical device belongs to the instance.
        let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
        let copies = !gpu.integrated && !gpu.software && !library.options.compile_only;
        let picked = Families::pick(&families, copies).ok_or_else(|| VulkanError::Missing {
            device: gpu.name.clone(),
            missing: "a compute queue".into(),
        })?;
        require_features(candidate)?;
        let device = create_device(instance, candidate, picked)?;
        let [compute, inward, outward] = open_queues(&device, picked, crossings)?;
        let Some(compute) = compute else { return Err(vk::Result::ERROR_INITIALIZATION_FAILED.into()) };
        // SAFETY: the physical device belongs to the instance.
        let memory_types = unsafe { instance.get_physical_device_memory_properties(physical) };
        let budget = candidate.extensions.has(ash::ext::memory_budget::NAME);
        let wanted = library.options.statistics && candidate.executable_info;
        let statistics = wanted.then(|| Statistics::new(instance, &device));
        let imports =
            candidate.extensions.has(ash::ext::external_memory_host::NAME) && !library.options.compile_only;
        let host_import = imports.then(|| ash::ext::external_memory_host::Device::new(instance, &device));
        // SAFETY: as above.
        let properties = unsafe { instance.get_physical_device_properties(physical) };
        let labels = library.labels.then(|| ash::ext::debug_utils::Device::new(instance, &device));
        Ok(Context {
            groups_max: properties.limits.max_compute_work_group_count,
            uniform_align: properties.limits.min_uniform_buffer_offset_alignment.max(16) as usize,
            uniform_bytes_max: u64::from(properties.limits.max_uniform_buffer_range).min(RECORD_BYTES_MAX),
            identity: Identity {
                vendor: properties.vendor_id,
                device: properties.device_id,
                driver: properties.driver_version,
                uuid: properties.pipeline_cache_uuid,
            },
            labels,
            arena: Mutex::new(Arena::default()),
            allocated: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            hung: AtomicBool::new(false),
            #[cfg(test)]
            log: Mutex::default(),
            physical,
            statistics,
            host_import,
            pretended: AtomicU64::new(1 << 32),
            device,
            timestamp_mask: timestamp_mask(&families, compute.family),
            compute,
            inward,
            outward,
            apart_bytes_min: crossings.bytes_min(),
            uploaded: AtomicU64::new(0),
            profile: candidate.profile.clone(),
            memory_types,
            budget,
            library,
        })
    }

    /// A device of this profile whose driver does nothing.
    #[cfg(test)]
    pub(crate) fn null(profile: GpuProfile) -> Context {
        let (entry, instance, device) = crate::null_driver::load();
        let options = crate::library::LibraryOptions { compile_only: true, ..Default::default() };
        Context {
            library: Library::null(entry, instance, options),
            physical: vk::PhysicalDevice::null(),
            device,
            compute: Queue::new(Arc::new(Mutex::new(vk::Queue::null())), 0, vk::Semaphore::null()),
            inward: None,
            outward: None,
            apart_bytes_min: 0,
            uploaded: AtomicU64::new(0),
            timestamp_mask: u64::MAX,
            profile,
            memory_types: crate::null_driver::memory_types(),
            budget: false,
            statistics: None,
            host_import: None,
            pretended: AtomicU64::new(1 << 32),
            // Tests hold dispatches against what every device takes.
            groups_max: [u32::MAX; 3],
            uniform_align: 256,
            uniform_bytes_max: 16384,
            identity: Identity { vendor: 0, device: 0, driver: 0, uuid: [0; vk::UUID_SIZE] },
            labels: None,
            arena: Mutex::new(Arena::default()),
            allocated: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            hung: AtomicBool::new(false),
            log: Mutex::default(),
        }
    }

    /// What the device can do.
    pub fn profile(&self) -> &GpuProfile {
        &self.profile
    }

    /// What the driver told about the pipelines made so far; `None` where it was not asked or has nothing to tell. The list stays
    /// readable when the context is gone.
    pub fn statistics(&self) -> Option<SharedStatistics> {
        self.statistics.as_ref().map(Statistics::shared)
    }

    /// What the validation layer said; `None` where it was not asked for. The list stays readable when the context is gone, and
    /// grows while it goes.
    pub fn validation_messages(&self) -> Option<SharedMessages> {
        self.library.validation.as_ref().map(Validation::messages)
    }

    /// True where nothing is executed or uploaded.
    pub(crate) fn compile_only(&self) -> bool {
        self.library.options.compile_only
    }

    /// A fresh address for `bytes` bytes without memory, where nothing executes: a whole model's kernels compile on a device that could
    /// not hold it.
    pub(crate) fn pretended_address(&self, bytes: u64) -> Option<u64> {
        let take = || self.pretended.fetch_add(bytes.next_multiple_of(256), Ordering::Relaxed);
        self.compile_only().then(take)
    }

    /// The queue of a lane; `None` where the compute queue does its work.
    pub(crate) fn lane(&self, lane: Lane) -> Option<&Queue> {
        match lane {
            Lane::Compute => Some(&self.compute),
            Lane::Inward => self.inward.as_ref(),
            Lane::Outward => self.outward.as_ref(),
        }
    }

    /// True where residual streams cross on queues of their own.
    pub(crate) fn crosses_apart(&self) -> bool {
        self.inward.is_some()
    }

    /// Family of the compute queue.
    pub(crate) fn queue_family(&self) -> u32 {
        self.compute.family
    }

    /// Families whose queues use the buffers of residual streams, where there are several.
    pub(crate) fn crossing_families(&self) -> Option<[u32; 2]> {
        let transfer = self.inward.as_ref()?.family;
        (transfer != self.compute.family).then_some([self.compute.family, transfer])
    }

    /// Submits a recorded command buffer to the compute queue; returns the timeline value that marks its end. Submissions run in order.
    /// `what` is named in the error where the device is lost.
    pub(crate) fn submit(&self, commands: vk::CommandBuffer, what: &str) -> Result<u64, VulkanError> {
        self.submit_after(Lane::Compute, commands, Point::default(), what)
    }

    /// Submits a recorded command buffer to a lane. It starts once all lanes have come as far as `after`, which was submitted before.
    pub(crate) fn submit_after(
        &self,
        lane: Lane,
        commands: vk::CommandBuffer,
        after: Point,
        what: &str,
    ) -> Result<u64, VulkanError> {
        if self.compile_only() {
            return Ok(0);
        }
        if self.is_hung() {
            return Err(self.named(vk::Result::ERROR_DEVICE_LOST, what));
        }
        let all = vk::PipelineStageFlags2::ALL_COMMANDS;
        let queue = self.lane(lane).unwrap_or(&self.compute);
        let waits = after.parts().filter_map(|(lane, value)| Some((self.lane(lane)?.timeline, value)));
        let waits: Vec<vk::SemaphoreSubmitInfo<'_>> = waits
            .map(|(timeline, value)| {
                vk::SemaphoreSubmitInfo::default().semaphore(timeline).value(value).stage_mask(all)
            })
            .collect();
        let handle = queue.handle.lock().unwrap_or_else(|e| e.into_inner());
        let value = queue.last() + 1;
        let buffers = [vk::CommandBufferSubmitInfo::default().command_buffer(commands)];
        let signals =
            [vk::SemaphoreSubmitInfo::default().semaphore(queue.timeline).value(value).stage_mask(all)];
        let submit = vk::SubmitInfo2::default()
            .wait_semaphore_infos(&waits)
            .command_buffer_infos(&buffers)
            .signal_semaphore_infos(&signals);
        // SAFETY: the queue is locked; the command buffer is recorded and outlives its execution (callers wait).
        unsafe { self.device.queue_submit2(*handle, &[submit], vk::Fence::null()) }
            .map_err(|e| self.named(e, what))?;
        queue.submitted.store(value, Ordering::Relaxed);
        #[cfg(test)]
        self.log.lock().unwrap_or_else(|e| e.into_inner()).push((lane, after, value));
        Ok(value)
    }

    /// Submits a copy into a buffer, which nobody may free before it is done: see [`Context::wait_uploads`].
    pub(crate) fn submit_upload(&self, commands: vk::CommandBuffer) -> Result<u64, VulkanError> {
        let value = self.submit(commands, "an upload")?;
        self.uploaded.fetch_max(value, Ordering::Relaxed);
        Ok(value)
    }

    /// Waits for every copy into a buffer that was submitted so far.
    pub(crate) fn wait_uploads(&self) -> Result<(), VulkanError> {
        self.wait(self.uploaded(), "an upload")
    }

    /// Behind every copy into a buffer that was submitted so far.
    pub(crate) fn uploaded(&self) -> Point {
        self.uploaded.load(Ordering::Relaxed).into()
    }

    /// Behind everything that was submitted so far.
    pub(crate) fn last_submitted(&self) -> Point {
        let last = |lane| self.lane(lane).map_or(0, Queue::last);
        Lane::ALL.into_iter().fold(Point::default(), |point, lane| point.with(lane, last(lane)))
    }

    /// Bytes of all memory that was allocated from the driver.
    pub(crate) fn resident(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Bytes that were copied between the memory of the program and the device's, in both directions, each once: what passes through the
    /// staging ring while weights are loaded; vectors, batches and residual rows on their way in; residual rows and outputs on their way out.
    /// Weights that are read from their file straight to where they stay are not copied.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// Counts a copy between the memory of the program and the device's.
    pub(crate) fn count_copy(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    /// True once the GPU stopped answering: what it may still use is then never freed.
    pub(crate) fn is_hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }

    /// Names an object in debuggers and validation messages, where labels were asked for.
    pub(crate) fn label(&self, object: impl Handle, name: &str) {
        let (Some(labels), Ok(name)) = (&self.labels, CString::new(name)) else { return };
        let info = vk::DebugUtilsObjectNameInfoEXT::default().object_handle(object).object_name(&name);
        // SAFETY: the object was made from this device and nobody else names it now.
        let _ = unsafe { labels.set_debug_utils_object_name(&info) };
    }

    /// Turns a lost device into an error that says what was running.
    pub(crate) fn named(&self, error: vk::Result, what: &str) -> VulkanError {
        match error {
            vk::Result::ERROR_DEVICE_LOST => {
                DeviceError::Lost { device: self.profile.name.clone(), what: what.to_string() }.into()
            }
            other => VulkanError::Call(other),
        }
    }

    /// What can still be had of the memory that blocks are loaded into; `None` for a driver that runs on the processor, whose memory is the
    /// host's.
    pub(crate) fn room(&self) -> Option<MemoryRoom> {
        if self.profile.software || self.compile_only() {
            return None;
        }
        let free = |heap: usize| self.heap_free(heap);
        let heaps = (0..self.profile.heaps.len()).filter(|i| self.profile.heaps[*i].device_local);
        let bytes = match self.profile.integrated {
            // It shows its memory as several heaps, and uses all of them.
            true => (0..self.profile.heaps.len()).map(free).fold(0, u64::saturating_add),
            // A window of the same memory that the host sees may be a heap too.
            false => heaps.map(free).max().unwrap_or(0),
        };
        let origin = if self.budget { "memory budget of the driver" } else { "size of the GPU's memory" };
        let heaps = MemoryRoom { bytes, origin: origin.to_owned() };
        let table = || gtt::room(Path::new("/sys"), self.identity.vendor, self.identity.device);
        let table = self.profile.integrated.then(table).flatten().filter(|table| table.bytes < bytes);
        Some(table.unwrap_or(heaps))
    }

    /// Bytes free in a heap, by the driver's budget where it tells, else its size less all that was allocated here.
    pub(crate) fn heap_free(&self, heap: usize) -> u64 {
        if !self.budget {
            return self.memory_types.memory_heaps[heap].size.saturating_sub(self.resident());
        }
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
        // SAFETY: the chain holds structures of an extension that the device supports.
        unsafe {
            self.library.instance.get_physical_device_memory_properties2(self.physical, &mut properties)
        };
        budget.heap_budget[heap].saturating_sub(budget.heap_usage[heap])
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Waiting for a GPU that no longer answers would never end, and what it uses must stay.
        if self.is_hung() {
            self.library.keep();
            return;
        }
        // SAFETY: everything made from the device is gone, since each holds the context; the library goes after it.
        unsafe {
            let _ = self.device.device_wait_idle();
            for queue in Lane::ALL.into_iter().filter_map(|lane| self.lane(lane)) {
                self.device.destroy_semaphore(queue.timeline, None);
            }
            self.device.destroy_device(None);
        }
    }
}

/// Timestamps of a queue family may have fewer than 64 bits; they wrap around.
fn timestamp_mask(families: &[vk::QueueFamilyProperties], family: u32) -> u64 {
    let bits = families.get(family as usize).map_or(0, |f| f.timestamp_valid_bits);
    u64::MAX.checked_shr(64 - bits.min(64)).unwrap_or(0)
}

/// The queues of the lanes. On failure the device is gone.
fn open_queues(
    device: &ash::Device,
    families: Families,
    crossings: Crossings,
) -> Result<[Option<Queue>; 3], VulkanError> {
    // SAFETY: the queues were asked for at creation.
    let queue = |family, index| Arc::new(Mutex::new(unsafe { device.get_device_queue(family, index) }));
    let compute = queue(families.compute, 0);
    let lanes = match (crossings, families.transfer) {
        (Crossings::Picked, None) => vec![(compute, families.compute)],
        (Crossings::Picked, Some((family, count))) => {
            let transfers = (0..count).map(|i| (queue(family, i), family));
            std::iter::once((compute, families.compute)).chain(transfers).collect()
        }
        #[cfg(test)]
        (Crossings::Apart, _) => vec![(compute, families.compute); 3],
    };
    let mut out = [None, None, None];
    for (slot, (handle, family)) in out.iter_mut().zip(lanes) {
        let mut kind = vk::SemaphoreTypeCreateInfo::default()
            .semaphore_type(vk::SemaphoreType::TIMELINE)
            .initial_value(0);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: timeline semaphores are enabled.
        match unsafe { device.create_semaphore(&info, None) } {
            Ok(timeline) => *slot = Some(Queue::new(handle, family, timeline)),
            Err(error) => {
                // SAFETY: nothing but the semaphores was made from the device.
                unsafe {
                    out.iter().flatten().for_each(|q: &Queue| device.destroy_semaphore(q.timeline, None));
                    device.destroy_device(None);
                }
                return Err(error.into());
            }
        }
    }
    Ok(out)
}

fn require_features(candidate: &Candidate) -> Result<(), VulkanError> {
    let missing = candidate.missing();
    match missing.first() {
        None => Ok(()),
        Some(first) => {
            Err(VulkanError::Missing { device: candidate.profile.name.clone(), missing: first.to_string() })
        }
    }
}

fn create_device(
    instance: &ash::Instance,
    candidate: &Candidate,
    families: Families,
) -> Result<ash::Device, VulkanError> {
    let priorities = [1.0; 2];
    let queues: Vec<vk::DeviceQueueCreateInfo<'_>> = std::iter::once((families.compute, 1))
        .chain(families.transfer)
        .map(|(family, count)| {
            vk::DeviceQueueCreateInfo::default()
                .queue_family_index(family)
                .queue_priorities(&priorities[..count as usize])
        })
        .collect();
    let profile = &candidate.profile;
    let mut names: Vec<*const c_char> = Vec::new();
    let matrices = !profile.matrices.is_empty();
    if matrices {
        names.push(ash::khr::cooperative_matrix::NAME.as_ptr());
    }
    if profile.matrix2 {
        names.push(crate::matrix2::NAME.as_ptr());
    }
    if candidate.extensions.has(ash::ext::memory_budget::NAME) {
        names.push(ash::ext::memory_budget::NAME.as_ptr());
    }
    if candidate.extensions.has(ash::ext::external_memory_host::NAME) {
        names.push(ash::ext::external_memory_host::NAME.as_ptr());
    }
    if candidate.executable_info {
        names.push(ash::khr::pipeline_executable_properties::NAME.as_ptr());
    }
    let mut f11 = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true);
    let mut f12 = vk::PhysicalDeviceVulkan12Features::default()
        .buffer_device_address(true)
        .timeline_semaphore(true)
        .shader_float16(true)
        .shader_int8(true)
        .storage_buffer8_bit_access(true)
        .host_query_reset(true)
        .vulkan_memory_model(true)
        .vulkan_memory_model_device_scope(true);
    let mut f13 = vk::PhysicalDeviceVulkan13Features::default()
        .synchronization2(true)
        .maintenance4(true)
        .subgroup_size_control(profile.subgroup_size_control)
        .compute_full_subgroups(profile.subgroup_size_control)
        .shader_integer_dot_product(true);
    let mut matrix = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
    let mut matrix2 = crate::matrix2::features_wanted();
    let mut executable =
        vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
    let base = vk::PhysicalDeviceFeatures::default().shader_int64(true).shader_int16(true);
    let mut info = vk::DeviceCreateInfo::default()
        .queue_create_infos(&queues)
        .enabled_extension_names(&names)
        .enabled_features(&base)
        .push_next(&mut f11)
        .push_next(&mut f12)
        .push_next(&mut f13);
    if matrices {
        info = info.push_next(&mut matrix);
    }
    if profile.matrix2 {
        info = info.push_next(&mut matrix2);
    }
    if candidate.executable_info {
        info = info.push_next(&mut executable);
    }
    // SAFETY: every feature and extension asked for was reported as supported.
    unsafe { instance.create_device(candidate.physical, &info, None) }
        .map_err(|result| VulkanError::Open { device: profile.name.clone(), result })
}
