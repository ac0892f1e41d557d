//! [`Counting`]: the system's allocator with counters, for tests of what steps allocate and of what stays.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Made the global allocator by the tests that count.
pub struct Counting;

static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static LIVE_HERE_BYTES: Cell<i64> = const { Cell::new(0) };
    static PEAK_HERE_BYTES: Cell<i64> = const { Cell::new(0) };
}

/// Allocations and reallocations of this thread so far.
pub fn allocations_here() -> u64 {
    ALLOCATIONS.try_with(Cell::get).unwrap_or(0)
}

/// Bytes that all threads together have allocated and not freed.
pub fn live_bytes() -> i64 {
    LIVE_BYTES.load(Relaxed)
}

/// Starts [`peak_here`] anew.
pub fn restart_peak_here() {
    LIVE_HERE_BYTES.set(0);
    PEAK_HERE_BYTES.set(0);
}

/// The most bytes that this thread had allocated, less what it had freed, at any time since [`restart_peak_here`].
pub fn peak_here() -> u64 {
    PEAK_HERE_BYTES.get().max(0) as u64
}

fn count(bytes: i64) {
    // A thread that is ending has no counter any more.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
    change(bytes);
}

fn change(bytes: i64) {
    LIVE_BYTES.fetch_add(bytes, Relaxed);
    let _ = LIVE_HERE_BYTES.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK_HERE_BYTES.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is handed on unchanged to the system's allocator; the counters touch no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        change(-(layout.size() as i64));
        // SAFETY: the caller's promises about `pointer` and `layout` are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: the caller's promises about `pointer`, `layout` and `size` are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
