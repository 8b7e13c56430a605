//! The HTTP server over engines: wire types, routes, streaming, the chat page.
