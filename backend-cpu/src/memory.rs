//! Memory: zeroed pages from the system, a table of what is live, and the way from a [`Tensor`] to an address.
//!
//! Every allocation is a [`Region`] with a row in the [`Memory`] table: base, length, epoch. Resolving a tensor
//! checks that its memory is live, of its epoch and long enough, in release builds too, and panics otherwise.
//! Bound kernels hold bare addresses. What makes that sound is that freeing is put off: a region whose last owner
//! is gone leaves the table at once (so no new kernel can reach it), but its pages are returned only when every
//! stream has passed the commands that were enqueued by then ([`Memory::sweep`]). Graphs own what they touch.
//!
//! Regions of 2 MiB and more are aligned to 2 MiB and ask for huge pages: a decode step reads every weight once, and
//! with 4 KiB pages the page walks alone would cost a quarter of the bandwidth.

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use engine_core::backend::MemInfo;
use engine_core::{DType, Error, Result, Tensor};

use crate::progress::Progress;

const HUGE_BYTES: usize = 2 << 20;
/// Smaller requests are not checked against free memory.
const CHECKED_BYTES: usize = 16 << 20;

/// The table of live memory of one backend.
#[derive(Default)]
pub(crate) struct Memory {
    entries: RwLock<Vec<Entry>>,
    free_ids: Mutex<Vec<u32>>,
    graves: Mutex<Vec<Grave>>,
    streams: Mutex<Vec<Weak<Progress>>>,
}

struct Entry {
    base: usize,
    len: usize,
    epoch: u32,
    region: Weak<Region>,
}

/// Pages whose owner is gone, and how far each stream must get before they go too.
struct Grave {
    _pages: Pages,
    until: Vec<(Arc<Progress>, u64)>,
}

impl Memory {
    /// Zeroed memory. `what` and `hint` are for the message when there is too little.
    pub fn allocate(self: &Arc<Self>, bytes: usize, what: &str, hint: &str) -> Result<Arc<Region>> {
        self.sweep();
        if bytes >= CHECKED_BYTES {
            let free_bytes = memory_info().free_bytes;
            if bytes as u64 > free_bytes {
                return Err(out_of_memory(what, bytes, free_bytes, hint));
            }
        }
        let pages =
            Pages::new(bytes).ok_or_else(|| out_of_memory(what, bytes, memory_info().free_bytes, hint))?;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let id = lock(&self.free_ids).pop().unwrap_or(entries.len() as u32);
        if id as usize == entries.len() {
            entries.push(Entry { base: 0, len: 0, epoch: 0, region: Weak::new() });
        }
        let entry = &mut entries[id as usize];
        let (base, len, epoch) = (pages.base, pages.len, entry.epoch);
        let region = Arc::new(Region { base, len, id, epoch, pages: Some(pages), table: self.clone() });
        (entry.base, entry.len, entry.region) = (base, len, Arc::downgrade(&region));
        Ok(region)
    }

    /// The view a tensor names.
    ///
    /// # Panics
    /// If its memory is gone, of another epoch, or too short.
    pub fn resolve(&self, t: Tensor) -> View {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = entries.get(t.mem() as usize).filter(|e| e.base != 0) else {
            panic!("{t:?} names memory that is not live");
        };
        assert!(entry.epoch == t.epoch(), "stale {t:?}: its memory is of epoch {} now", entry.epoch);
        let end = t.at_bytes().checked_add(t.extent_bytes());
        assert!(
            end.is_some_and(|end| end <= entry.len as u64),
            "{t:?} reaches past its memory of {} bytes",
            entry.len
        );
        View::new(entry.base + t.at_bytes() as usize, t)
    }

    /// The owner of a tensor's memory, for graphs.
    pub fn owner(&self, t: Tensor) -> Option<Arc<Region>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(t.mem() as usize)?.region.upgrade()
    }

    /// Adds a stream whose work must be waited for before memory is returned.
    pub fn watch(&self, progress: &Arc<Progress>) {
        let mut streams = lock(&self.streams);
        streams.retain(|s| s.strong_count() > 0);
        streams.push(Arc::downgrade(progress));
    }

    /// Returns the memory that no stream can reach any more.
    pub fn sweep(&self) {
        lock(&self.graves).retain_mut(|grave| {
            grave.until.retain(|(stream, at)| stream.passed() < *at && !stream.is_stopped());
            !grave.until.is_empty()
        });
    }

    fn bury(&self, id: u32, pages: Pages) {
        {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            let entry = &mut entries[id as usize];
            (entry.base, entry.len, entry.region) = (0, 0, Weak::new());
            entry.epoch = entry.epoch.wrapping_add(1);
        }
        lock(&self.free_ids).push(id);
        let streams: Vec<_> = lock(&self.streams).iter().filter_map(Weak::upgrade).collect();
        let until = streams.into_iter().map(|s| (s.published(), s)).map(|(at, s)| (s, at)).collect();
        lock(&self.graves).push(Grave { _pages: pages, until });
        self.sweep();
    }
}

/// One allocation; freed some time after its last owner is gone.
pub(crate) struct Region {
    base: usize,
    len: usize,
    id: u32,
    epoch: u32,
    pages: Option<Pages>,
    table: Arc<Memory>,
}

impl Region {
    /// Its first byte.
    pub fn base(&self) -> *mut u8 {
        self.base as *mut u8
    }
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Its place in the table.
    pub fn id(&self) -> u32 {
        self.id
    }
    /// A contiguous tensor at byte `at`.
    pub fn tensor(&self, at: u64, shape: &[u32], dtype: DType) -> Tensor {
        Tensor::from_raw(self.id, self.epoch, at, shape, dtype)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            self.table.bury(self.id, pages);
        }
    }
}

/// A resolved tensor: an address with shape and strides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    base: *mut u8,
    pub shape: [u32; 4],
    pub stride: [u32; 3],
    pub dtype: DType,
}

// SAFETY: a view is an address and numbers; who reads and writes through it when is the kernels' contract.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    fn new(base: usize, t: Tensor) -> Self {
        View { base: base as *mut u8, shape: t.shape(), stride: t.strides(), dtype: t.dtype() }
    }

    /// The first element.
    #[inline(always)]
    pub fn ptr<T>(&self) -> *mut T {
        self.base.cast()
    }
    /// Product of all dimensions but the last.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.shape[0] as usize * self.shape[1] as usize * self.shape[2] as usize
    }
    /// Size of the last dimension.
    #[inline(always)]
    pub fn cols(&self) -> usize {
        self.shape[3] as usize
    }
    /// Address of row `r`, counting rows over the first three dimensions.
    #[inline(always)]
    pub fn row<T>(&self, r: usize) -> *mut T {
        let [_, s1, s2, _] = self.shape.map(|s| s as usize);
        let elements = if r < s2 {
            r * self.stride[2] as usize
        } else {
            let (outer, c) = (r / s2, r % s2);
            let (a, b) = (outer / s1, outer % s1);
            a * self.stride[0] as usize + b * self.stride[1] as usize + c * self.stride[2] as usize
        };
        // The product stays inside the memory that `resolve` checked.
        self.base.wrapping_add(elements * self.dtype.size_bytes()).cast()
    }
    /// Address of element `[a, b, ..]` of the second and third dimensions (token, head).
    #[inline(always)]
    pub fn at<T>(&self, b: usize, c: usize) -> *mut T {
        let elements = b * self.stride[1] as usize + c * self.stride[2] as usize;
        self.base.wrapping_add(elements * self.dtype.size_bytes()).cast()
    }
}

/// Anonymous zeroed memory of the system.
struct Pages {
    base: usize,
    len: usize,
}

impl Pages {
    #[cfg(unix)]
    fn new(bytes: usize) -> Option<Pages> {
        let align = if bytes >= HUGE_BYTES { HUGE_BYTES } else { 4096 };
        let len = bytes.max(1).checked_next_multiple_of(align)?;
        let reserve = len.checked_add(align)?;
        let (protect, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping overlaps nothing.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), reserve, protect, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        let start = at as usize;
        let base = start.next_multiple_of(align);
        let (head, tail) = (base - start, start + reserve - (base + len));
        // SAFETY: head and tail are whole pages of the mapping just made, and nobody has their addresses.
        unsafe {
            if head > 0 {
                libc::munmap(at, head);
            }
            if tail > 0 {
                libc::munmap((base + len) as *mut _, tail);
            }
            #[cfg(target_os = "linux")]
            if len >= HUGE_BYTES {
                // Without huge pages everything still works, slower.
                libc::madvise(base as *mut _, len, libc::MADV_HUGEPAGE);
            }
        }
        Some(Pages { base, len })
    }

    #[cfg(not(unix))]
    fn new(bytes: usize) -> Option<Pages> {
        let len = bytes.max(1).checked_next_multiple_of(4096)?;
        let layout = std::alloc::Layout::from_size_align(len, 4096).ok()?;
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) } as usize;
        (base != 0).then_some(Pages { base, len })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: this range was mapped by `new` and its owner is gone.
        unsafe {
            libc::munmap(self.base as *mut _, self.len);
        }
        #[cfg(not(unix))]
        // SAFETY: allocated by `new` with this very layout.
        unsafe {
            std::alloc::dealloc(
                self.base as *mut u8,
                std::alloc::Layout::from_size_align_unchecked(self.len, 4096),
            );
        }
    }
}

/// Memory of the machine, or of the control group this process runs in.
pub(crate) fn memory_info() -> MemInfo {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find(|l| l.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
    };
    let total_bytes = field("MemTotal:").unwrap_or(1 << 40);
    let free_bytes = field("MemAvailable:").unwrap_or(total_bytes);
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    match (read("/sys/fs/cgroup/memory.max"), read("/sys/fs/cgroup/memory.current")) {
        (Some(max), Some(used)) if max < total_bytes => {
            MemInfo { total_bytes: max, free_bytes: free_bytes.min(max.saturating_sub(used)) }
        }
        _ => MemInfo { total_bytes, free_bytes },
    }
}

fn out_of_memory(what: &str, bytes: usize, free_bytes: u64, hint: &str) -> Error {
    Error::OutOfMemory { what: what.into(), wanted_bytes: bytes as u64, free_bytes, hint: hint.into() }
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::default())
    }

    #[test]
    fn regions_are_zeroed_and_aligned() {
        let m = memory();
        for bytes in [1, 4096, 3 << 20] {
            let r = m.allocate(bytes, "test", "").unwrap();
            assert!(r.len() >= bytes);
            assert_eq!(r.base() as usize % 4096, 0);
            // SAFETY: the region is live and nobody writes it.
            let all = unsafe { std::slice::from_raw_parts(r.base(), r.len()) };
            assert!(all.iter().all(|b| *b == 0));
        }
    }

    #[test]
    #[should_panic(expected = "not live")]
    fn a_freed_region_is_not_live() {
        let m = memory();
        let t = m.allocate(64, "test", "").unwrap().tensor(0, &[16], DType::F32);
        m.resolve(t);
    }

    #[test]
    #[should_panic(expected = "stale")]
    fn a_reused_region_is_of_another_epoch() {
        let m = memory();
        let t = m.allocate(64, "test", "").unwrap().tensor(0, &[16], DType::F32);
        let again = m.allocate(64, "test", "").unwrap();
        assert_eq!(again.id(), t.mem());
        m.resolve(t);
    }

    #[test]
    #[should_panic(expected = "reaches past")]
    fn a_tensor_past_the_end_panics() {
        let m = memory();
        let r = m.allocate(4096, "test", "").unwrap();
        m.resolve(r.tensor(4, &[1024], DType::F32));
    }

    #[test]
    fn too_much_is_an_error_that_names_the_flag() {
        let error = memory().allocate(1 << 50, "the KV cache", "lower --max-model-len").err().unwrap();
        assert!(matches!(&error, Error::OutOfMemory { wanted_bytes, .. } if *wanted_bytes == 1 << 50));
        assert!(error.to_string().contains("lower --max-model-len"));
    }
}
