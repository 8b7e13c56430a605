//! The HTTP server over engines: wire types, routes, streaming, the chat page.

// Routes take it into use; until then its own tests alone do.
#[cfg(test)]
mod page;
