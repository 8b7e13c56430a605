//! Compute pipelines: SPIR-V plus specialization constants, compiled on first use, several at a time, and kept on disk.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::pipeline_file::PipelineFile;
use crate::place::Place;
use crate::statistics::Statistics;

/// A compiled kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pipeline {
    pub(crate) handle: vk::Pipeline,
}

/// Builds pipelines on demand and keeps them until it is dropped.
pub(crate) struct Pipelines {
    context: Arc<Context>,
    /// The only binding: the record of arguments, in a buffer of records.
    arguments: vk::DescriptorSetLayout,
    layout: vk::PipelineLayout,
    stand_in: Option<Arc<Buffer>>,
    cache: vk::PipelineCache,
    file: Option<PipelineFile>,
    built: Mutex<HashMap<Kernel, Pipeline>>,
    /// Something was compiled that the file lacks.
    unsaved: AtomicBool,
    notes: Mutex<Vec<String>>,
}

/// Threads that compile at once: drivers take tens of megabytes for each.
const COMPILERS_MAX: usize = 8;
const STACK_BYTES: usize = 8 << 20;

impl Pipelines {
    /// Starts without pipelines. With a `folder`, what is compiled is kept in a file there, one for each device and driver, and the next
    /// start reads it. A file that cannot be used is passed over with a note.
    pub(crate) fn new(context: &Arc<Context>, folder: Option<&Path>) -> Result<Pipelines, VulkanError> {
        let device = &context.device;
        let binding = [vk::DescriptorSetLayoutBinding::default()
            .descriptor_type(vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC)
            .descriptor_count(1)
            .stage_flags(vk::ShaderStageFlags::COMPUTE)];
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&binding);
        // SAFETY: plain creation; destroyed below or on drop.
        let arguments = unsafe { device.create_descriptor_set_layout(&info, None) }?;
        let sets = [arguments];
        let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        // SAFETY: plain creation; destroyed on drop.
        let layout = unsafe { device.create_pipeline_layout(&info, None) }.inspect_err(|_| {
            // SAFETY: nothing was made from it.
            unsafe { device.destroy_descriptor_set_layout(arguments, None) }
        })?;
        // A pipeline from disk may come without the statistics of its compilation.
        let folder = folder.filter(|_| context.statistics.is_none());
        let mut pipelines = Pipelines {
            context: context.clone(),
            arguments,
            layout,
            stand_in: None,
            cache: vk::PipelineCache::null(),
            file: folder.map(|f| PipelineFile::new(f, context.identity)),
            built: Mutex::new(HashMap::new()),
            unsaved: AtomicBool::new(false),
            notes: Mutex::new(Vec::new()),
        };
        let known = match pipelines.file.as_ref().map(PipelineFile::load) {
            Some(Ok(Some(bytes))) => bytes,
            Some(Err(why)) => {
                pipelines.note(why);
                Vec::new()
            }
            Some(Ok(None)) | None => Vec::new(),
        };
        pipelines.cache = pipelines.make_cache(&known)?;
        if context.compile_only() {
            let what = "arguments of kernels";
            let buffer = Buffer::with_memory(context, Place::Near, context.uniform_bytes_max, what)?;
            pipelines.stand_in = Some(Arc::new(buffer));
        }
        Ok(pipelines)
    }

    fn make_cache(&self, known: &[u8]) -> Result<vk::PipelineCache, VulkanError> {
        let device = &self.context.device;
        let info = vk::PipelineCacheCreateInfo::default().initial_data(known);
        // SAFETY: plain creation; destroyed on drop. The bytes are the driver's own, by header and checksum.
        match unsafe { device.create_pipeline_cache(&info, None) } {
            Ok(cache) => Ok(cache),
            Err(error) if known.is_empty() => Err(error.into()),
            Err(error) => {
                self.note(format!("the driver refused the pipelines on disk: {error}"));
                self.make_cache(&[])
            }
        }
    }

    fn note(&self, what: String) {
        self.notes.lock().unwrap_or_else(|e| e.into_inner()).push(what);
    }

    /// What went wrong with the pipelines on disk, none of which stops anything.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// What stands in for records where nothing executes: a descriptor needs memory behind it.
    pub(crate) fn stand_in(&self) -> Option<&Arc<Buffer>> {
        self.stand_in.as_ref()
    }

    /// Layout of the set with the record.
    pub(crate) fn arguments_layout(&self) -> vk::DescriptorSetLayout {
        self.arguments
    }

    pub(crate) fn layout(&self) -> vk::PipelineLayout {
        self.layout
    }

    /// The pipeline of a kernel, compiled now if it is new.
    pub(crate) fn get(&self, kernel: &Kernel) -> Result<Pipeline, VulkanError> {
        if let Some(found) = self.find(kernel) {
            return Ok(found);
        }
        let pipeline = self.build(kernel)?;
        Ok(self.keep(kernel, pipeline))
    }

    fn find(&self, kernel: &Kernel) -> Option<Pipeline> {
        self.built.lock().unwrap_or_else(|e| e.into_inner()).get(kernel).copied()
    }

    /// Keeps a new pipeline; the first of two equal ones stays.
    fn keep(&self, kernel: &Kernel, pipeline: Pipeline) -> Pipeline {
        self.unsaved.store(true, Ordering::Relaxed);
        let mut built = self.built.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(first) = built.get(kernel) {
            // SAFETY: nothing was recorded with the second yet.
            unsafe { self.context.device.destroy_pipeline(pipeline.handle, None) };
            return *first;
        }
        built.insert(kernel.clone(), pipeline);
        pipeline
    }

    /// Compiles those of `kernels` that are new, several at a time, and brings the file on disk up to date.
    ///
    /// Errors when one does not compile; the others are kept.
    pub(crate) fn prepare<'k>(&self, kernels: impl Iterator<Item = &'k Kernel>) -> Result<(), VulkanError> {
        let mut seen = HashSet::new();
        let new: Vec<&Kernel> = kernels.filter(|k| seen.insert(*k) && self.find(k).is_none()).collect();
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let compile = || {
            while let Some(kernel) = new.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.get(kernel) {
                    failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..processors.min(COMPILERS_MAX).min(new.len()) {
                // Compilers recurse deeply. Where no thread can be had, this one does all.
                let _ = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, compile);
            }
            compile();
        });
        self.save();
        failed.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }

    /// Writes what was compiled since the last time. A folder that cannot be written costs time at the next start, so it is a note.
    fn save(&self) {
        let Some(file) = &self.file else { return };
        if !self.unsaved.swap(false, Ordering::Relaxed) {
            return;
        }
        // SAFETY: the cache is alive.
        let saved = match unsafe { self.context.device.get_pipeline_cache_data(self.cache) } {
            Ok(bytes) => file.save(&bytes).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = saved {
            self.note(format!("compiled pipelines could not be kept: {error}"));
        }
    }

    fn build(&self, kernel: &Kernel) -> Result<Pipeline, VulkanError> {
        let device = &self.context.device;
        let code = crate::shaders::words(&kernel.shader).ok_or_else(|| VulkanError::Missing {
            device: self.context.profile().name.clone(),
            missing: format!("shader {}", kernel.shader),
        })?;
        let info = vk::ShaderModuleCreateInfo::default().code(&code);
        // SAFETY: the code is SPIR-V that the build committed; the module is destroyed below.
        let module = unsafe { device.create_shader_module(&info, None) }?;
        let entries: Vec<_> = (0..kernel.constants.len() as u32)
            .map(|i| vk::SpecializationMapEntry { constant_id: i, offset: 4 * i, size: 4 })
            .collect();
        let data: Vec<u8> = kernel.constants.iter().flat_map(|c| c.to_le_bytes()).collect();
        let special = vk::SpecializationInfo::default().map_entries(&entries).data(&data);
        let mut size = vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo::default()
            .required_subgroup_size(kernel.subgroup);
        let mut stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(c"main")
            .specialization_info(&special);
        let control = self.context.profile().subgroup_size_control;
        if control && kernel.subgroup != 0 {
            stage =
                stage.flags(vk::PipelineShaderStageCreateFlags::REQUIRE_FULL_SUBGROUPS).push_next(&mut size);
        }
        let flags = self.context.statistics.as_ref().map(Statistics::flags).unwrap_or_default();
        let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(self.layout).flags(flags)];
        // SAFETY: all structures outlive the call; a cache made without the external synchronization flag may be used by several threads.
        let made = unsafe { device.create_compute_pipelines(self.cache, &info, None) };
        // SAFETY: pipelines do not need their module once made.
        unsafe { device.destroy_shader_module(module, None) };
        match made {
            Ok(pipelines) => {
                self.context.label(pipelines[0], &format!("{} {:?}", kernel.shader, kernel.constants));
                if let Some(statistics) = &self.context.statistics
                    && let Err(error) = statistics.collect(kernel, pipelines[0])
                {
                    // SAFETY: nothing uses the pipeline yet.
                    unsafe { device.destroy_pipeline(pipelines[0], None) };
                    return Err(error);
                }
                Ok(Pipeline { handle: pipelines[0] })
            }
            Err((_, error)) => Err(self.context.named(error, &kernel.shader)),
        }
    }
}

impl Drop for Pipelines {
    fn drop(&mut self) {
        self.save();
        if self.context.is_hung() {
            return;
        }
        let built = self.built.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: callers wait for GPU work before dropping the device.
        unsafe {
            for pipeline in built.values() {
                self.context.device.destroy_pipeline(pipeline.handle, None);
            }
            self.context.device.destroy_pipeline_cache(self.cache, None);
            self.context.device.destroy_pipeline_layout(self.layout, None);
            self.context.device.destroy_descriptor_set_layout(self.arguments, None);
        }
    }
}
