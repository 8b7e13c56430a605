//! The queues that a device is given work by, each with a timeline that tells how far it has come.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ash::vk;

/// What a queue is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// Kernels, and copies where there is no queue for these alone.
    Compute,
    /// Residual streams on their way in.
    Inward,
    /// Residual streams on their way out. A queue of its own: a copy waits for its kernels, and would hold back what comes in.
    Outward,
}

impl Lane {
    pub(crate) const ALL: [Lane; 3] = [Lane::Compute, Lane::Inward, Lane::Outward];
}

/// A place in the timelines of all lanes; 0 is before everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Point([u64; Lane::ALL.len()]);

impl Point {
    /// Behind everything.
    pub(crate) const END: Point = Point([u64::MAX; Lane::ALL.len()]);

    pub(crate) fn at(lane: Lane, value: u64) -> Point {
        Point::default().with(lane, value)
    }

    pub(crate) fn get(&self, lane: Lane) -> u64 {
        self.0[lane as usize]
    }

    /// The same with another value on one lane.
    pub(crate) fn with(mut self, lane: Lane, value: u64) -> Point {
        self.0[lane as usize] = value;
        self
    }

    /// Behind both.
    pub(crate) fn max(self, other: Point) -> Point {
        Point(std::array::from_fn(|i| self.0[i].max(other.0[i])))
    }

    /// True where everything up to `other` is done once this is reached.
    pub(crate) fn covers(&self, other: &Point) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a >= b)
    }

    /// True where some lane of `other` with a value is reached.
    pub(crate) fn touches(&self, other: &Point) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| *b > 0 && a >= b)
    }

    /// Lanes with a value.
    pub(crate) fn parts(self) -> impl Iterator<Item = (Lane, u64)> {
        Lane::ALL.into_iter().zip(self.0).filter(|part| part.1 > 0)
    }
}

impl From<u64> for Point {
    /// A place in the timeline of the kernels.
    fn from(value: u64) -> Point {
        Point::at(Lane::Compute, value)
    }
}

/// A queue with its timeline. Lanes may share the queue, and then its lock.
pub(crate) struct Queue {
    pub(crate) handle: Arc<Mutex<vk::Queue>>,
    pub(crate) family: u32,
    pub(crate) timeline: vk::Semaphore,
    pub(crate) submitted: AtomicU64,
}

impl Queue {
    pub(crate) fn new(handle: Arc<Mutex<vk::Queue>>, family: u32, timeline: vk::Semaphore) -> Queue {
        Queue { handle, family, timeline, submitted: AtomicU64::new(0) }
    }

    /// The timeline value of the last submission.
    pub(crate) fn last(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }
}

/// Where residual streams cross.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crossings {
    /// On queues for transfers alone, where the device has memory of its own and such queues.
    Picked,
    /// Beside the kernels, but as if on queues of their own, and never in place: for tests on devices without such queues.
    #[cfg(test)]
    Apart,
}

impl Crossings {
    /// Bytes from which on a copy takes longer than handing a stream from queue to queue: some 10 us, at 50 GB/s.
    pub(crate) fn bytes_min(self) -> u64 {
        match self {
            Crossings::Picked => 512 << 10,
            #[cfg(test)]
            Crossings::Apart => 0,
        }
    }
}

/// Families of queues that a device is opened with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Families {
    pub(crate) compute: u32,
    /// A family for transfers alone, with the number of its queues to use: one for each way, or one for the way in.
    pub(crate) transfer: Option<(u32, u32)>,
}

impl Families {
    /// Chooses among a device's families. `copies`: residual streams are copied, since the device's memory is not the host's.
    pub(crate) fn pick(families: &[vk::QueueFamilyProperties], copies: bool) -> Option<Families> {
        use vk::QueueFlags as Flags;
        let find = |fits: &dyn Fn(Flags) -> bool| families.iter().position(|f| fits(f.queue_flags));
        // A compute-only family where there is one (it does not wait for graphics), else any with compute.
        let only = find(&|flags| flags.contains(Flags::COMPUTE) && !flags.contains(Flags::GRAPHICS));
        let compute = only.or_else(|| find(&|flags| flags.contains(Flags::COMPUTE)))? as u32;
        // Families for video can copy too; those for nothing but copies are the fast ones.
        let beside = Flags::TRANSFER | Flags::SPARSE_BINDING | Flags::PROTECTED;
        let transfers = |flags: Flags| flags.contains(Flags::TRANSFER) && beside.contains(flags);
        let transfer = (0..families.len())
            .filter(|i| copies && transfers(families[*i].queue_flags) && families[*i].queue_count > 0)
            .max_by_key(|i| (families[*i].queue_count.min(2), std::cmp::Reverse(*i)))
            .map(|i| (i as u32, families[i].queue_count.min(2)));
        Some(Families { compute, transfer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(flags: vk::QueueFlags, count: u32) -> vk::QueueFamilyProperties {
        vk::QueueFamilyProperties::default().queue_flags(flags).queue_count(count)
    }

    #[test]
    fn queues_of_known_devices() {
        use vk::QueueFlags as F;
        let all = F::GRAPHICS | F::COMPUTE | F::TRANSFER | F::SPARSE_BINDING;
        let compute = F::COMPUTE | F::TRANSFER | F::SPARSE_BINDING;
        let nvidia = [
            family(all, 16),
            family(F::TRANSFER | F::SPARSE_BINDING, 2),
            family(compute, 8),
            family(F::TRANSFER | F::SPARSE_BINDING | F::VIDEO_DECODE_KHR, 4),
        ];
        let pick = |families: &[_]| Families::pick(families, true);
        assert_eq!(pick(&nvidia), Some(Families { compute: 2, transfer: Some((1, 2)) }));
        // Where memory is shared nothing is to be copied.
        assert_eq!(Families::pick(&nvidia, false), Some(Families { compute: 2, transfer: None }));
        let one = [family(all, 1), family(F::TRANSFER, 1)];
        assert_eq!(pick(&one), Some(Families { compute: 0, transfer: Some((1, 1)) }));
        assert_eq!(pick(&[family(all, 1)]), Some(Families { compute: 0, transfer: None }));
        assert_eq!(pick(&[family(F::TRANSFER, 1)]), None);
    }

    #[test]
    fn points_are_compared_lane_by_lane() {
        let point = Point::from(3).with(Lane::Outward, 2);
        assert!(point.covers(&Point::from(3)) && !point.covers(&Point::at(Lane::Inward, 1)));
        assert!(point.touches(&Point::from(2).with(Lane::Inward, 9)));
        assert!(!point.touches(&Point::from(4)) && !point.touches(&Point::default()));
        assert_eq!(point.max(Point::from(5)), Point::from(5).with(Lane::Outward, 2));
        assert_eq!(point.parts().collect::<Vec<_>>(), [(Lane::Compute, 3), (Lane::Outward, 2)]);
    }
}
