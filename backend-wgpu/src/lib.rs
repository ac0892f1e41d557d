//! backend-wgpu: see ARCHITECTURE.md.
