//! HTTP/1.1 between sidecars and programs: settings.

/// Headers that a message may have: so many small ones fit into what they may have in bytes
/// (`proxy.limits.max_header_bytes`). hyper makes room for all of them each time it looks at a head, twice 32 bytes each.
pub const MAX_HEADERS: usize = 1_000;
