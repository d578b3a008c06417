//! HTTP/1.1 between sidecars and programs: settings, and the size of a head.

use http::request::Parts;

/// Headers that a message may have. hyper fills room for all of them each time it reads a head, and allocates it where they
/// are more than its own 100: measured with callgrind, 256 cost 1,700 instructions a message, 1,000 cost 10,400. Of 32 bytes
/// each, they should not be as large as a connection's buffer of 8 KiB: mixed with these, they cost each idle connection 4 KiB.
pub const MAX_HEADERS: usize = 300;

/// The bytes of a request's head: names, values and target, with what HTTP/1.1 puts around each.
pub fn head_bytes(request: &Parts) -> usize {
    let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let authority = request.uri.authority().map_or(0, |authority| authority.as_str().len());
    let fields = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    request.method.as_str().len() + target + authority + fields.sum::<usize>()
}
