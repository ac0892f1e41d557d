//! (checked)
