//! The machine as the operating system describes it. What a system does not tell is left out.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cli::startup::human_size;

/// Instruction sets that matter to the kernels, by the kernel's names of them.
const SIMD: [&str; 14] = [
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
];

/// Processor, memory, limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    cpu: String,
    sockets: usize,
    cores: usize,
    logical_cpus: usize,
    usable_cpus: usize,
    simd: Vec<String>,
    memory_bytes: Option<u64>,
    available_bytes: Option<u64>,
    transparent_huge_pages: Option<String>,
    reserved_huge_pages: Option<u64>,
    cgroup: Cgroup,
}

/// Limits of the control group; `None` is none.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cgroup {
    memory_bytes: Option<u64>,
    used_bytes: Option<u64>,
    cpus: Option<f64>,
}

impl Machine {
    /// Of the machine this runs on.
    pub fn read() -> Self {
        Machine::from_files(&|path| std::fs::read_to_string(path).ok())
    }

    /// The same from any reader of files.
    fn from_files(file: &dyn Fn(&str) -> Option<String>) -> Self {
        let cpuinfo = file("/proc/cpuinfo").unwrap_or_default();
        let meminfo = file("/proc/meminfo").unwrap_or_default();
        let memory = |name: &str| {
            let line = meminfo.lines().find(|l| l.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let flags: BTreeSet<&str> = values(&cpuinfo, &["flags", "Features"])
            .next()
            .map(|line| line.split_whitespace().collect())
            .unwrap_or_default();
        let sockets: BTreeSet<&str> = values(&cpuinfo, &["physical id"]).collect();
        let cores: BTreeSet<(&str, &str)> =
            values(&cpuinfo, &["physical id"]).zip(values(&cpuinfo, &["core id"])).collect();
        let logical_cpus = values(&cpuinfo, &["processor"]).count();
        let usable_cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        let bracketed = |text: String| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned());
        Machine {
            cpu: values(&cpuinfo, &["model name"]).next().unwrap_or(std::env::consts::ARCH).to_owned(),
            sockets: sockets.len().max(1),
            cores: if cores.is_empty() { logical_cpus } else { cores.len() },
            logical_cpus: logical_cpus.max(usable_cpus),
            usable_cpus,
            simd: SIMD.iter().filter(|name| flags.contains(*name)).map(|s| (*s).to_owned()).collect(),
            memory_bytes: memory("MemTotal:").map(|kib| kib << 10),
            available_bytes: memory("MemAvailable:").map(|kib| kib << 10),
            transparent_huge_pages: file("/sys/kernel/mm/transparent_hugepage/enabled").and_then(bracketed),
            reserved_huge_pages: memory("HugePages_Total:"),
            cgroup: Cgroup::from_files(file),
        }
    }

    /// Names and values for the report.
    pub fn rows(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        row("CPU", self.cpu.clone());
        row(
            "cores",
            format!(
                "{} in {} sockets, {} threads; this process may use {}",
                self.cores, self.sockets, self.logical_cpus, self.usable_cpus
            ),
        );
        row("SIMD", if self.simd.is_empty() { "not told".to_owned() } else { self.simd.join(" ") });
        if let (Some(total), Some(free)) = (self.memory_bytes, self.available_bytes) {
            row("memory", format!("{}, {} available", human_size(total), human_size(free)));
        }
        if let Some(mode) = &self.transparent_huge_pages {
            let note = if mode == "never" { "; weights are read faster with madvise or always" } else { "" };
            let reserved = self.reserved_huge_pages.unwrap_or(0);
            row("huge pages", format!("transparent: {mode}; {reserved} reserved{note}"));
        }
        row("control group", self.cgroup.text());
        rows
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "sockets": self.sockets,
            "cores": self.cores,
            "logical_cpus": self.logical_cpus,
            "usable_cpus": self.usable_cpus,
            "simd": self.simd,
            "memory_bytes": self.memory_bytes,
            "available_bytes": self.available_bytes,
            "transparent_huge_pages": self.transparent_huge_pages,
            "reserved_huge_pages": self.reserved_huge_pages,
            "cgroup_memory_bytes": self.cgroup.memory_bytes,
            "cgroup_used_bytes": self.cgroup.used_bytes,
            "cgroup_cpus": self.cgroup.cpus,
        })
    }
}

/// Values of the lines `name : value`, for the first of these names that has any.
fn values<'a>(text: &'a str, names: &[&str]) -> impl Iterator<Item = &'a str> + use<'a> {
    let of = |name: &str| {
        let parse =
            |line: &'a str| line.split_once(':').filter(|(n, _)| n.trim() == name).map(|(_, v)| v.trim());
        text.lines().filter_map(parse).collect::<Vec<_>>()
    };
    names.iter().map(|name| of(name)).find(|found| !found.is_empty()).unwrap_or_default().into_iter()
}

impl Cgroup {
    /// Version 2 of this process's own group, else of the root; else version 1.
    fn from_files(file: &dyn Fn(&str) -> Option<String>) -> Self {
        let own = file("/proc/self/cgroup")
            .and_then(|text| Some(text.lines().find_map(|l| l.strip_prefix("0::"))?.trim().to_owned()))
            .unwrap_or_default();
        let v2 = |name: &str| {
            file(&format!("/sys/fs/cgroup{}/{name}", own.trim_end_matches('/')))
                .or_else(|| file(&format!("/sys/fs/cgroup/{name}")))
        };
        let number = |text: Option<String>| text?.trim().parse::<u64>().ok();
        let v1_memory = number(file("/sys/fs/cgroup/memory/memory.limit_in_bytes")).filter(|b| *b < 1 << 60);
        Cgroup {
            memory_bytes: number(v2("memory.max")).or(v1_memory),
            used_bytes: number(v2("memory.current"))
                .or_else(|| number(file("/sys/fs/cgroup/memory/memory.usage_in_bytes"))),
            cpus: v2("cpu.max").and_then(|text| quota(&text)).or_else(|| {
                let quota_us = file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")?;
                let period_us = file("/sys/fs/cgroup/cpu/cpu.cfs_period_us")?;
                quota(&format!("{} {}", quota_us.trim(), period_us.trim()))
            }),
        }
    }

    fn text(&self) -> String {
        let memory = match (self.memory_bytes, self.used_bytes) {
            (Some(most), Some(used)) => {
                format!("{} of memory, {} of it used", human_size(most), human_size(used))
            }
            (Some(most), None) => format!("{} of memory", human_size(most)),
            (None, _) => "no limit of memory".to_owned(),
        };
        match self.cpus {
            Some(cpus) => format!("{memory}; {cpus:.1} CPUs"),
            None => format!("{memory}; no limit of CPU"),
        }
    }
}

/// `max 100000` or `150000 100000`, in microseconds.
fn quota(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.trim().parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Some CPU @ 3\nphysical id\t: 0\ncore id\t\t: 0\n\
        flags\t\t: fpu avx2 fma avx512f\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 3\nphysical id\t: 0\n\
        core id\t\t: 0\nflags\t\t: fpu avx2 fma avx512f\n";

    fn machine(files: &[(&str, &str)]) -> Machine {
        let read = |path: &str| files.iter().find(|f| f.0 == path).map(|f| f.1.to_owned());
        Machine::from_files(&read)
    }

    #[test]
    fn files_of_linux_are_understood() {
        let m = machine(&[
            ("/proc/cpuinfo", CPUINFO),
            ("/proc/meminfo", "MemTotal:  2048 kB\nMemAvailable:  1024 kB\nHugePages_Total:   3\n"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("/proc/self/cgroup", "0::/pod/a\n"),
            ("/sys/fs/cgroup/pod/a/memory.max", "4096\n"),
            ("/sys/fs/cgroup/pod/a/memory.current", "1024\n"),
            ("/sys/fs/cgroup/pod/a/cpu.max", "150000 100000\n"),
        ]);
        assert_eq!((m.cpu.as_str(), m.sockets, m.cores), ("Some CPU @ 3", 1, 1));
        assert!(m.logical_cpus >= 2 && m.usable_cpus >= 1);
        assert_eq!(m.simd, ["avx2", "fma", "avx512f"]);
        assert_eq!((m.memory_bytes, m.available_bytes), (Some(2 << 20), Some(1 << 20)));
        assert_eq!((m.transparent_huge_pages.as_deref(), m.reserved_huge_pages), (Some("madvise"), Some(3)));
        assert_eq!(m.cgroup, Cgroup { memory_bytes: Some(4096), used_bytes: Some(1024), cpus: Some(1.5) });
        assert_eq!(m.cgroup.text(), "4.00 KiB of memory, 1.00 KiB of it used; 1.5 CPUs");
        let rows = m.rows();
        assert!(rows.iter().any(|r| r.1.starts_with("transparent: madvise; 3 reserved")), "{rows:?}");
    }

    #[test]
    fn a_machine_that_tells_nothing_is_no_error() {
        let m =
            machine(&[("/sys/fs/cgroup/memory.max", "max\n"), ("/sys/fs/cgroup/cpu.max", "max 100000\n")]);
        assert_eq!(m.cgroup, Cgroup::default());
        assert_eq!(m.cgroup.text(), "no limit of memory; no limit of CPU");
        assert!(m.rows().iter().any(|r| r.1 == "not told"));
        let old = machine(&[
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        ]);
        assert_eq!(old.cgroup, Cgroup::default(), "no limit, as version 1 writes it");
    }
}
