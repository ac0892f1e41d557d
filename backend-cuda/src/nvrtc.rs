//! Kernels compiled at first start, for builds made without nvcc: NVRTC, into a cache directory.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;

use cudarc::nvrtc::sys;
use engine_core::{Error, Result};
use kernels::cuda::{SOURCES, Source};

/// An image for `capability` of every source, from the cache or compiled now.
///
/// # Errors
/// `Unsupported` when there is no NVRTC, or a source does not compile.
pub fn images((major, minor): (i32, i32)) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let arch = if (major, minor) == (9, 0) { "sm_90a".to_owned() } else { format!("sm_{major}{minor}") };
    let cache = cache_dir();
    let compile = |source: &'static Source| {
        let file =
            cache.as_ref().map(|dir| dir.join(format!("{}-{arch}-{:016x}.cubin", source.name, hash(source))));
        if let Some(image) = file.as_ref().and_then(|f| std::fs::read(f).ok()) {
            return Ok((source.name, image));
        }
        let image = compile(source, &arch)?;
        if let Some(file) = file {
            keep(&file, &image);
        }
        Ok((source.name, image))
    };
    SOURCES.iter().map(compile).collect()
}

/// `PALLIUM`'s folder in the user's cache: compiled kernels are worth keeping, but not needed.
fn cache_dir() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")))?;
    let dir = base.join("pallium").join("cuda");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir)
}

fn keep(file: &std::path::Path, image: &[u8]) {
    let part = file.with_extension(format!("part{}", std::process::id()));
    if std::fs::write(&part, image).and_then(|()| std::fs::rename(&part, file)).is_err() {
        tracing::warn!("compiled kernels could not be kept in {}", file.display());
    }
}

fn hash(source: &Source) -> u64 {
    let mut hasher = DefaultHasher::new();
    source.text.hash(&mut hasher);
    hasher.finish()
}

fn compile(source: &Source, arch: &str) -> Result<Vec<u8>> {
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Unsupported(
            "this build was made without nvcc and compiles its kernels at first start, but finds no NVRTC \
             (libnvrtc.so); install the CUDA toolkit, or build where nvcc is"
                .into(),
        ));
    }
    tracing::info!("compiling kernels {} for {arch} (once; kept in the cache)", source.name);
    let text = std::ffi::CString::new(source.text).unwrap_or_default();
    let name = std::ffi::CString::new(source.name).unwrap_or_default();
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()]
        .map(|o| std::ffi::CString::new(o).unwrap_or_default());
    let option_pointers = options.each_ref().map(|o| o.as_ptr());
    let mut program = std::ptr::null_mut();
    let ok = sys::nvrtcResult::NVRTC_SUCCESS;
    // SAFETY: null-terminated strings that live through the calls; buffers of the sizes NVRTC gave.
    unsafe {
        let none = std::ptr::null();
        let made = sys::nvrtcCreateProgram(&mut program, text.as_ptr(), name.as_ptr(), 0, none, none);
        let mut image = Vec::new();
        let mut log = Vec::new();
        let compiled = made == ok && sys::nvrtcCompileProgram(program, 2, option_pointers.as_ptr()) == ok;
        let mut size = 0;
        if compiled && sys::nvrtcGetCUBINSize(program, &mut size) == ok {
            image = vec![0u8; size];
            let _ = sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast());
        } else if sys::nvrtcGetProgramLogSize(program, &mut size) == ok {
            log = vec![0u8; size];
            let _ = sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
        }
        let _ = sys::nvrtcDestroyProgram(&mut program);
        if image.is_empty() {
            let log = String::from_utf8_lossy(&log).into_owned();
            return Err(Error::Unsupported(format!(
                "NVRTC does not compile {} for {arch}: {log}",
                source.name
            )));
        }
        Ok(image)
    }
}
