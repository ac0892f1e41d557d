//! Every bound of the HTTP side by name.

use std::time::Duration;

/// Largest request body, in bytes. A prompt of a million tokens as JSON ids has about 7 MB.
pub const MAX_BODY_BYTES: usize = 64 << 20;
/// Most headers of one request, as vLLM's default.
pub const MAX_HEADER_COUNT: usize = 256;
/// Largest request head, in bytes; hyper's read buffer ends there.
pub const MAX_HEAD_BYTES: usize = 256 << 10;
/// Time a connection may take for one request head; an idle keep-alive connection is closed after it as well.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Time a client may take for its body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// Connections open at once; more wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 65_536;
/// Pending connections in the kernel.
pub const LISTEN_BACKLOG: u32 = 4_096;
/// Text longer than this is tokenized, and a conversation longer than this rendered, on a blocking thread.
pub const INLINE_TEXT_BYTES: usize = 4 << 10;
/// Prompts in one completion request.
pub const MAX_PROMPTS: usize = 16_384;
/// Sequences (prompts times n) in one request.
pub const MAX_SEQUENCES: usize = 16_384;
/// Stop strings in one request (OpenAI's bound).
pub const MAX_STOP_STRINGS: usize = 4;
/// Longest request id taken from a client, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 256;
/// Longest cache salt, in characters.
pub const MAX_CACHE_SALT_CHARS: usize = 128;
/// An engine with work in hand that ends no step for this long is unhealthy.
pub const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Time after the last final event for clients to read it, before connections are cut.
pub const CLOSE_GRACE: Duration = Duration::from_secs(2);
