//! (host_fallback)
