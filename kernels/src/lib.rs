//! Device source and the build script that embeds it.
