//! Recorded profiles of real devices, for tests of kernel selection.
