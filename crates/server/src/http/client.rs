//! Whose request it is.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::record::Record;

/// A client, as far as others are to be kept from it, with its request.
#[derive(Clone, Default)]
pub(crate) struct Client {
    /// Those of one group share their turn among those who wait.
    pub group: u64,
    /// Those of one scope share what was computed before.
    pub scope: u64,
    /// Where what becomes of the request is written down.
    pub record: Option<Arc<Record>>,
}

impl Client {
    /// The client with a key, by the key's hash.
    pub fn of_key(hash: &[u8; 32]) -> Client {
        let id = u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
        Client { group: id, scope: id, record: None }
    }

    /// The client at an address, where there are no keys.
    pub fn at(address: SocketAddr) -> Client {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let group = BuildHasherDefault::<DefaultHasher>::default().hash_one(address.ip());
        Client { group, scope: 0, record: None }
    }
}

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Client, Infallible> {
        Ok(parts.extensions.get::<Client>().cloned().unwrap_or_default())
    }
}
