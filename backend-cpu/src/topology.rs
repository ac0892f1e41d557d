//! Which CPUs this process may use, and pinning to them.

/// How many workers to start when the operator does not say, and on which CPUs: one per physical core that this
/// process may run on, within the control group's quota.
pub(crate) fn default_cpus() -> Vec<Option<usize>> {
    let quota = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut cpus = one_per_core(allowed());
    cpus.truncate(quota);
    if cpus.is_empty() { vec![None; quota] } else { cpus.into_iter().map(Some).collect() }
}

/// `n` workers: pinned when every one can have a CPU of its own.
pub(crate) fn cpus_for(n: usize) -> Vec<Option<usize>> {
    let allowed = allowed();
    let cores = one_per_core(allowed.clone());
    let pool = if n <= cores.len() { cores } else { allowed };
    if n <= pool.len() { pool.into_iter().take(n).map(Some).collect() } else { vec![None; n] }
}

/// The processor's own name.
pub(crate) fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    model.unwrap_or(std::env::consts::ARCH).to_string()
}

#[cfg(target_os = "linux")]
fn allowed() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of::<libc::cpu_set_t>();
    // SAFETY: `set` is writable and of the size given.
    if unsafe { libc::sched_getaffinity(0, size, &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: every index is below the set's size.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Vec<usize> {
    Vec::new()
}

/// Of each core's hyperthreads the first that is allowed.
fn one_per_core(cpus: Vec<usize>) -> Vec<usize> {
    let mut seen = std::collections::BTreeSet::new();
    let core = |cpu: &usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string())
    };
    cpus.into_iter().filter(|cpu| seen.insert(core(cpu))).collect()
}

/// Keeps the calling thread on `cpu`; where that is refused it runs anywhere.
#[cfg(target_os = "linux")]
pub(crate) fn pin_to(cpu: usize) {
    // SAFETY: an all-zero cpu_set_t is the empty set; `cpu` came from such a set, so it is in range.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &set);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn pin_to(_: usize) {}
