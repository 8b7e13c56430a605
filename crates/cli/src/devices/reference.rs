//! `reference`: the plain loops that every other device is compared with.

use std::sync::Arc;

use unicorn_cpu::ReferenceDevice;

use super::backend::{Backend, Preference};

pub(super) const BACKEND: Backend = Backend {
    name: "reference",
    about: "plain loops in float64, for comparison only",
    // They take minutes to measure, and nobody would want to know.
    present: Vec::new,
    variants: Vec::new,
    tiers: false,
    accepts: |_| false,
    preferred: Preference::default,
    unasked: Vec::new,
    instead: None,
    kernels: || 0,
    open: |_, _| Ok(Arc::new(ReferenceDevice::new())),
    watch: None,
};
