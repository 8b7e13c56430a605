//! An open GPU: logical device, one compute queue, a timeline semaphore, and the few calls that everything else is built from.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ash::vk;
use ash::vk::Handle;
use unicorn_core::{DeviceError, MemoryRoom};

use crate::arena::Arena;
use crate::error::VulkanError;
use crate::gtt;
use crate::library::{Candidate, Library};
use crate::profile::GpuProfile;
use crate::statistics::{SharedStatistics, Statistics};
use crate::validation::{SharedMessages, Validation};

/// How long a wait asks before it sleeps: the length of a token of a large model.
const POLL: Duration = Duration::from_millis(10);

/// An open device. All Vulkan objects made from it must be dropped before it; they hold an `Arc` of it.
pub struct Context {
    library: Library,
    pub(crate) physical: vk::PhysicalDevice,
    pub(crate) device: ash::Device,
    pub(crate) queue_family: u32,
    queue: Mutex<vk::Queue>,
    timeline: vk::Semaphore,
    submitted: AtomicU64,
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
    /// What tells this device and driver from others, for files that hold compiled pipelines.
    pub(crate) identity: Identity,
    /// Names for debuggers and validation messages, where they were asked for.
    pub(crate) labels: Option<ash::ext::debug_utils::Device>,
    pub(crate) arena: Mutex<Arena>,
    /// Bytes of all memory allocations.
    pub(crate) allocated: AtomicU64,
    copied: AtomicU64,
    hung: AtomicBool,
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
        let physical = candidate.physical;
        let instance = &library.instance;
        let queue_family = pick_queue_family(instance, physical).ok_or_else(|| VulkanError::Missing {
            device: candidate.profile.name.clone(),
            missing: "a compute queue".into(),
        })?;
        require_features(candidate)?;
        let device = create_device(instance, candidate, queue_family)?;
        // SAFETY: the queue was asked for at creation.
        let queue = unsafe { device.get_device_queue(queue_family, 0) };
        let mut kind = vk::SemaphoreTypeCreateInfo::default()
            .semaphore_type(vk::SemaphoreType::TIMELINE)
            .initial_value(0);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: timeline semaphores are enabled.
        let timeline = unsafe { device.create_semaphore(&info, None) }.inspect_err(|_| {
            // SAFETY: nothing was made from the device.
            unsafe { device.destroy_device(None) }
        })?;
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
            physical,
            statistics,
            host_import,
            pretended: AtomicU64::new(1 << 32),
            device,
            queue_family,
            queue: Mutex::new(queue),
            timeline,
            submitted: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
            timestamp_mask: timestamp_mask(instance, physical, queue_family),
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
            queue_family: 0,
            queue: Mutex::new(vk::Queue::null()),
            timeline: vk::Semaphore::null(),
            submitted: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
            timestamp_mask: u64::MAX,
            profile,
            memory_types: Default::default(),
            budget: false,
            statistics: None,
            host_import: None,
            pretended: AtomicU64::new(1 << 32),
            // Tests hold dispatches against what every device takes.
            groups_max: [u32::MAX; 3],
            identity: Identity { vendor: 0, device: 0, driver: 0, uuid: [0; vk::UUID_SIZE] },
            labels: None,
            arena: Mutex::new(Arena::default()),
            allocated: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            hung: AtomicBool::new(false),
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

    /// Submits a recorded command buffer; returns the timeline value that marks its end. Submissions run in order. `what` is named in the
    /// error where the device is lost.
    pub(crate) fn submit(&self, commands: vk::CommandBuffer, what: &str) -> Result<u64, VulkanError> {
        if self.compile_only() {
            return Ok(0);
        }
        if self.is_hung() {
            return Err(self.named(vk::Result::ERROR_DEVICE_LOST, what));
        }
        let queue = self.queue.lock().unwrap_or_else(|e| e.into_inner());
        let value = self.submitted.load(Ordering::Relaxed) + 1;
        let buffers = [vk::CommandBufferSubmitInfo::default().command_buffer(commands)];
        let signals = [vk::SemaphoreSubmitInfo::default()
            .semaphore(self.timeline)
            .value(value)
            .stage_mask(vk::PipelineStageFlags2::ALL_COMMANDS)];
        let submit =
            vk::SubmitInfo2::default().command_buffer_infos(&buffers).signal_semaphore_infos(&signals);
        // SAFETY: the queue is locked; the command buffer is recorded and outlives its execution (callers wait).
        unsafe { self.device.queue_submit2(*queue, &[submit], vk::Fence::null()) }
            .map_err(|e| self.named(e, what))?;
        self.submitted.store(value, Ordering::Relaxed);
        Ok(value)
    }

    /// Waits until the timeline has reached `value`.
    ///
    /// A sleeping thread takes some 50 us to wake, which is long beside a token of a small model: on discrete GPUs the last part of the
    /// wait is spent asking.
    ///
    /// Errors when the device is lost, or when no submission at all ends for as long as [`stall_max`] tells.
    pub(crate) fn wait(&self, value: u64, what: &str) -> Result<(), VulkanError> {
        // Nothing was submitted.
        if value == 0 {
            return Ok(());
        }
        // Who waits behind a submission that hung would otherwise wait as long again.
        if self.is_hung() {
            return Err(self.named(vk::Result::ERROR_DEVICE_LOST, what));
        }
        if !self.profile.integrated && !self.profile.software && self.poll(value, what)? {
            return Ok(());
        }
        let semaphores = [self.timeline];
        let values = [value];
        let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
        let stall = stall_max(&self.profile);
        let nap = stall.map_or(u64::MAX, |_| 1_000_000_000);
        let (mut reached, mut since) = (0, Instant::now());
        loop {
            // SAFETY: the semaphore lives as long as the context.
            match unsafe { self.device.wait_semaphores(&info, nap) } {
                Ok(()) => return Ok(()),
                Err(vk::Result::TIMEOUT) => {}
                Err(e) => return Err(self.named(e, what)),
            }
            // SAFETY: as above.
            let now = unsafe { self.device.get_semaphore_counter_value(self.timeline) }
                .map_err(|e| self.named(e, what))?;
            if now != reached {
                (reached, since) = (now, Instant::now());
            } else if let Some(most) = stall.filter(|most| since.elapsed() >= *most) {
                self.hung.store(true, Ordering::Relaxed);
                return Err(VulkanError::Hung {
                    device: self.profile.name.clone(),
                    what: what.to_string(),
                    seconds: most.as_secs(),
                });
            }
        }
    }

    /// Submits a copy into a buffer, which nobody may free before it is done: see [`Context::wait_uploads`].
    pub(crate) fn submit_upload(&self, commands: vk::CommandBuffer) -> Result<u64, VulkanError> {
        let value = self.submit(commands, "an upload")?;
        self.uploaded.fetch_max(value, Ordering::Relaxed);
        Ok(value)
    }

    /// Waits for every copy into a buffer that was submitted so far.
    pub(crate) fn wait_uploads(&self) -> Result<(), VulkanError> {
        self.wait(self.uploaded.load(Ordering::Relaxed), "an upload")
    }

    /// True when the timeline has reached `value`, without waiting.
    pub(crate) fn has_reached(&self, value: u64, what: &str) -> Result<bool, VulkanError> {
        if value == 0 {
            return Ok(true);
        }
        if self.is_hung() {
            return Err(self.named(vk::Result::ERROR_DEVICE_LOST, what));
        }
        // SAFETY: the semaphore lives as long as the context.
        let reached = unsafe { self.device.get_semaphore_counter_value(self.timeline) };
        Ok(reached.map_err(|e| self.named(e, what))? >= value)
    }

    /// The timeline value of the last submission.
    pub(crate) fn last_submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
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

    /// Asks for up to [`POLL`] whether the timeline has reached `value`.
    fn poll(&self, value: u64, what: &str) -> Result<bool, VulkanError> {
        let begin = Instant::now();
        loop {
            // SAFETY: the semaphore lives as long as the context.
            let reached = unsafe { self.device.get_semaphore_counter_value(self.timeline) };
            if reached.map_err(|e| self.named(e, what))? >= value {
                return Ok(true);
            }
            if begin.elapsed() > POLL {
                return Ok(false);
            }
            std::thread::yield_now();
        }
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
        let table = gtt::room(Path::new("/sys"), self.identity.vendor, self.identity.device);
        let table = table.filter(|table| self.profile.integrated && table.bytes < bytes);
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
            self.device.destroy_semaphore(self.timeline, None);
            self.device.destroy_device(None);
        }
    }
}

/// How long a wait goes on while no submission ends. Submissions on integrated GPUs are cut to fractions of a second, elsewhere one may be a
/// whole prefill of a large model on an old card. A software driver is as slow as its processor, so that no time tells slow from stuck.
pub(crate) fn stall_max(gpu: &GpuProfile) -> Option<Duration> {
    match gpu {
        gpu if gpu.software => None,
        gpu if gpu.integrated => Some(Duration::from_secs(60)),
        _ => Some(Duration::from_secs(600)),
    }
}

/// A compute-only family where there is one (it does not wait for graphics), else any with compute.
fn pick_queue_family(instance: &ash::Instance, physical: vk::PhysicalDevice) -> Option<u32> {
    // SAFETY: the physical device belongs to the instance.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    let compute = |f: &vk::QueueFamilyProperties| f.queue_flags.contains(vk::QueueFlags::COMPUTE);
    let graphics = |f: &vk::QueueFamilyProperties| f.queue_flags.contains(vk::QueueFlags::GRAPHICS);
    let only = families.iter().position(|f| compute(f) && !graphics(f));
    only.or_else(|| families.iter().position(compute)).map(|i| i as u32)
}

/// Timestamps of a queue family may have fewer than 64 bits; they wrap around.
fn timestamp_mask(instance: &ash::Instance, physical: vk::PhysicalDevice, family: u32) -> u64 {
    // SAFETY: the physical device belongs to the instance.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    let bits = families.get(family as usize).map_or(0, |f| f.timestamp_valid_bits);
    u64::MAX.checked_shr(64 - bits.min(64)).unwrap_or(0)
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
    queue_family: u32,
) -> Result<ash::Device, VulkanError> {
    let priorities = [1.0];
    let queues =
        [vk::DeviceQueueCreateInfo::default().queue_family_index(queue_family).queue_priorities(&priorities)];
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
