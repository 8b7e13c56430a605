//! What all routes share: connections, who may ask, bodies, streams.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod guard;
pub(crate) mod keys;
pub(crate) mod listen;
pub(crate) mod patience;
pub(crate) mod sse;
