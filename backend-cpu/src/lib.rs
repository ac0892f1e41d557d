//! backend-cpu: see ARCHITECTURE.md.

pub mod reference;
