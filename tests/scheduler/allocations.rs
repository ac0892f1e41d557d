//! A steady decode step allocates nothing: 256 rows, two steps in flight, prefix cache on, full and window groups.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use engine_core::kv::{GroupKind, GroupSpec, PrefixCaching};
use engine_core::scheduler::SchedulerConfig;
use tests::load::Load;

struct Counting;

thread_local! {
    /// Allocations of this thread: the test harness allocates in its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed on unchanged to the system's allocator; the counter touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises about `pointer` and `layout` are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises about `pointer`, `layout` and `size` are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_steady_decode_step_allocates_nothing() {
    let groups = vec![
        GroupSpec { kind: GroupKind::Full, page_tokens: 16 },
        GroupSpec { kind: GroupKind::Window { tokens: 128 }, page_tokens: 16 },
    ];
    let mut load =
        Load::new(SchedulerConfig::new(256, 8_192, 4_096), groups, 30_000, PrefixCaching::AllPages);
    (0..256).for_each(|i| load.add(20 + i, 2_000));
    (0..50).for_each(|_| assert!(load.step()));
    let before = ALLOCATIONS.get();
    assert!(before > 0, "the counter does not count");
    for _ in 0..1_000 {
        load.step();
        assert_eq!(load.plan.generated_rows, 256);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0, "allocations in 1,000 steady steps");
}
