//! Waiting for what queues were given.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ash::vk;

use crate::context::Context;
use crate::error::VulkanError;
use crate::lane::{Lane, Point};
use crate::profile::GpuProfile;

/// How long a wait asks before it sleeps: the length of a token of a large model.
const POLL: Duration = Duration::from_millis(10);
/// How long a wait sleeps before it looks whether anything still moves.
const NAP_NS: u64 = 1_000_000_000;

impl Context {
    /// Waits until all lanes have come as far as `point`; a number alone is one of the compute queue's timeline.
    ///
    /// A sleeping thread takes some 50 us to wake, which is long beside a token of a small model: on discrete GPUs the last part of the
    /// wait is spent asking.
    ///
    /// Errors when the device is lost, or when no submission at all ends for as long as [`stall_max`] tells.
    pub(crate) fn wait(&self, point: impl Into<Point>, what: &str) -> Result<(), VulkanError> {
        let point = point.into();
        self.wait_until(point, vk::SemaphoreWaitFlags::empty(), |reached| reached.covers(&point), what)?;
        Ok(())
    }

    /// Waits until some lane with a value in `point` has come that far; returns how far all have come. Errors as [`Context::wait`].
    pub(crate) fn wait_any(&self, point: Point, what: &str) -> Result<Point, VulkanError> {
        self.wait_until(point, vk::SemaphoreWaitFlags::ANY, |reached| reached.touches(&point), what)
    }

    fn wait_until(
        &self,
        point: Point,
        flags: vk::SemaphoreWaitFlags,
        done: impl Fn(&Point) -> bool,
        what: &str,
    ) -> Result<Point, VulkanError> {
        // Nothing was submitted.
        if point == Point::default() {
            return Ok(point);
        }
        // Who waits behind a submission that hung would otherwise wait as long again.
        if self.is_hung() {
            return Err(self.named(vk::Result::ERROR_DEVICE_LOST, what));
        }
        let begin = Instant::now();
        let polls = !self.profile().integrated && !self.profile().software;
        loop {
            let reached = self.reached(what)?;
            if done(&reached) {
                return Ok(reached);
            }
            if !polls || begin.elapsed() > POLL {
                break;
            }
            std::thread::yield_now();
        }
        let waited = point.parts().filter_map(|(lane, value)| Some((self.lane(lane)?.timeline, value)));
        let (semaphores, values): (Vec<vk::Semaphore>, Vec<u64>) = waited.unzip();
        let info = vk::SemaphoreWaitInfo::default().flags(flags).semaphores(&semaphores).values(&values);
        let stall = stall_max(self.profile());
        let nap = stall.map_or(u64::MAX, |_| NAP_NS);
        let (mut before, mut since) = (Point::default(), Instant::now());
        loop {
            // SAFETY: the semaphores live as long as the context.
            match unsafe { self.device.wait_semaphores(&info, nap) } {
                Ok(()) => return self.reached(what),
                Err(vk::Result::TIMEOUT) => {}
                Err(e) => return Err(self.named(e, what)),
            }
            let reached = self.reached(what)?;
            if reached != before {
                (before, since) = (reached, Instant::now());
            } else if let Some(most) = stall.filter(|most| since.elapsed() >= *most) {
                self.hung.store(true, Ordering::Relaxed);
                return Err(VulkanError::Hung {
                    device: self.profile().name.clone(),
                    what: what.to_string(),
                    seconds: most.as_secs(),
                });
            }
        }
    }

    /// How far all lanes have come. Kernels are asked first: what they waited for is then seen to have ended too.
    fn reached(&self, what: &str) -> Result<Point, VulkanError> {
        if self.compile_only() {
            return Ok(Point::END);
        }
        let mut reached = Point::default();
        for lane in Lane::ALL {
            // What was never used has come nowhere.
            let Some(queue) = self.lane(lane).filter(|queue| queue.last() > 0) else { continue };
            // SAFETY: the semaphore lives as long as the context.
            let value = unsafe { self.device.get_semaphore_counter_value(queue.timeline) };
            reached = reached.with(lane, value.map_err(|e| self.named(e, what))?);
        }
        Ok(reached)
    }

    /// True when all lanes have come as far as `point`, without waiting.
    pub(crate) fn has_reached(&self, point: Point, what: &str) -> Result<bool, VulkanError> {
        if point == Point::default() {
            return Ok(true);
        }
        if self.is_hung() {
            return Err(self.named(vk::Result::ERROR_DEVICE_LOST, what));
        }
        Ok(self.reached(what)?.covers(&point))
    }
}

/// How long a wait goes on while no submission ends. Submissions on integrated GPUs are cut to fractions of a second, elsewhere one may be a
/// whole prefill of a large model on an old card. A software driver is as slow as its processor, so that no time tells slow from stuck.
fn stall_max(gpu: &GpuProfile) -> Option<Duration> {
    match gpu {
        gpu if gpu.software => None,
        gpu if gpu.integrated => Some(Duration::from_secs(60)),
        _ => Some(Duration::from_secs(600)),
    }
}
