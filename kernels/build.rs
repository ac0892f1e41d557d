//! Compiles `cuda/<family>/*.cu` and embeds the images, when the `cuda` feature is on.
//!
//! nvcc is looked for in `CUDA_HOME`, `CUDA_PATH`, `PATH`, and in the packages that
//! `pip install 'cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]==13.0.*'` puts beside `python3` (or beside the interpreter of
//! `VIRTUAL_ENV`). `PALLIUM_CUDA_ARCHS` (such as `80;90a`) limits the architectures. Each source becomes one
//! compressed fat binary, from which the driver takes the image of its device. Without nvcc the sources are embedded and
//! the backend compiles them at first start. A kernel that does not compile ends the build.

use std::path::{Path, PathBuf};
use std::process::Command;

const DEFAULT_ARCHS: &[&str] = &["75", "80", "86", "89", "90a", "100", "120"];

fn main() {
    println!("cargo:rerun-if-changed=cuda");
    for name in ["PALLIUM_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH", "PATH", "VIRTUAL_ENV"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_else(|| panic!("cargo sets OUT_DIR")));
    let sources = sources();
    let table = match find_nvcc() {
        Some(nvcc) => compiled(&nvcc, &sources, &out),
        None => {
            println!("cargo:warning=no nvcc: the CUDA sources are embedded and compiled at first start");
            String::from("pub const IMAGES: &[Image] = &[];\npub const ARCHS: &str = \"\";\n")
        }
    };
    let text = format!("{table}{}", embedded_sources(&sources));
    std::fs::write(out.join("cuda.rs"), text).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
}

/// (family, file) of every kernel source, in a fixed order.
fn sources() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for dir in entries(Path::new("cuda")).into_iter().filter(|p| p.is_dir()) {
        for file in entries(&dir).into_iter().filter(|p| p.extension().is_some_and(|e| e == "cu")) {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push((name, file));
        }
    }
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<PathBuf> = read.flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

fn find_nvcc() -> Option<PathBuf> {
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let mut candidates: Vec<PathBuf> = roots.map(|r| PathBuf::from(r).join("bin/nvcc")).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    candidates.extend(std::env::split_paths(&path).map(|dir| dir.join("nvcc")));
    candidates.extend(pip_nvcc());
    candidates.into_iter().find(|p| p.is_file())
}

/// The nvcc of the pip packages, as the interpreter at hand finds it.
fn pip_nvcc() -> Option<PathBuf> {
    let python = match std::env::var_os("VIRTUAL_ENV") {
        Some(venv) => PathBuf::from(venv).join("bin/python3"),
        None => PathBuf::from("python3"),
    };
    let ask = "import nvidia, os; print([d for p in nvidia.__path__ for d in [os.path.join(p, 'cu13', 'bin', 'nvcc')] if os.path.isfile(d)][0])";
    let output = Command::new(python).args(["-c", ask]).output().ok().filter(|o| o.status.success())?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Compiles all sources, as many at once as cargo allows jobs, and returns the table of images.
fn compiled(nvcc: &Path, sources: &[(String, PathBuf)], out: &Path) -> String {
    let archs = archs();
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
    for batch in sources.chunks(jobs) {
        let running: Vec<_> =
            batch.iter().map(|(name, file)| (file, start(nvcc, &archs, name, file, out))).collect();
        for (file, child) in running {
            let output = child.wait_with_output().unwrap_or_else(|e| panic!("nvcc: {e}"));
            assert!(
                output.status.success(),
                "nvcc refused {}:\n{}",
                file.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let mut table = String::from("pub const IMAGES: &[Image] = &[\n");
    for (name, _) in sources {
        let file = out.join(format!("{name}.fatbin"));
        table.push_str(&format!("    Image {{ name: {name:?}, bytes: include_bytes!({file:?}) }},\n"));
    }
    table.push_str("];\n");
    table.push_str(&format!("pub const ARCHS: &str = {:?};\n", archs.join(" ")));
    table
}

fn archs() -> Vec<String> {
    let text = std::env::var("PALLIUM_CUDA_ARCHS").unwrap_or_default();
    let named: Vec<String> = text
        .split([';', ',', ' '])
        .map(|a| a.trim().trim_start_matches("sm_").to_owned())
        .filter(|a| !a.is_empty())
        .collect();
    if named.is_empty() { DEFAULT_ARCHS.iter().map(|a| (*a).to_owned()).collect() } else { named }
}

fn start(nvcc: &Path, archs: &[String], name: &str, file: &Path, out: &Path) -> std::process::Child {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin", "--compress-mode=size"]);
    for arch in archs {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg("-o").arg(out.join(format!("{name}.fatbin"))).arg(file);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command.spawn().unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()))
}

/// Every source with its headers written in, for a compiler that has no file system.
fn embedded_sources(sources: &[(String, PathBuf)]) -> String {
    let mut table = String::from("pub const SOURCES: &[Source] = &[\n");
    for (name, file) in sources {
        let text = inlined(file, &mut Vec::new());
        table.push_str(&format!("    Source {{ name: {name:?}, text: {text:?} }},\n"));
    }
    table.push_str("];\n");
    table
}

fn inlined(file: &Path, seen: &mut Vec<PathBuf>) -> String {
    let real = file.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    if seen.contains(&real) {
        return String::new();
    }
    seen.push(real);
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut all = String::new();
    for line in text.lines().filter(|l| *l != "#pragma once") {
        match line.strip_prefix("#include \"").and_then(|l| l.strip_suffix('"')) {
            Some(header) => all.push_str(&inlined(&file.with_file_name("").join(header), seen)),
            None => {
                all.push_str(line);
                all.push('\n');
            }
        }
    }
    all
}
