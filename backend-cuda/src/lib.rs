//! backend-cuda: see ARCHITECTURE.md.
