//! backend-rocm: see ARCHITECTURE.md.
