//! (null)
