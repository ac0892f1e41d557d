//! backend-cpu: see ARCHITECTURE.md.
