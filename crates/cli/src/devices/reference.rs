//! `reference`: the plain loops that every other device is compared with.

use std::sync::Arc;

use unicorn_cpu::ReferenceDevice;

use super::Backend;

pub(super) const BACKEND: Backend = Backend {
    name: "reference",
    about: "plain loops in float64, for comparison only",
    listed: false,
    variants: Vec::new,
    tiers: false,
    open: |_| Ok(Arc::new(ReferenceDevice::new())),
    watch: None,
};
