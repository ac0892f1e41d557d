//! Device source and the build script that embeds it.
//!
//! `cuda/<op family>/*.cu` are plain CUDA C++ without the toolkit's headers; [`params`] holds the argument structs, which
//! the sources repeat (sizes are asserted on both sides). `build.rs` says how they are compiled.

pub mod params;

/// CUDA: compiled images, and the sources they were made of.
#[cfg(feature = "cuda")]
pub mod cuda {
    /// One compiled source: a fat binary with an image for each architecture of [`ARCHS`].
    pub struct Image {
        pub name: &'static str,
        pub bytes: &'static [u8],
    }

    /// One source with its headers written in.
    pub struct Source {
        pub name: &'static str,
        pub text: &'static str,
    }

    include!(concat!(env!("OUT_DIR"), "/cuda.rs"));
}
