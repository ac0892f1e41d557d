//! Faults planted on purpose, so that the scheduler simulation can show that it would notice them. They exist in
//! builds with debug assertions only; a release build carries neither the field nor the branches.

/// What to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A cache hit shares a page without counting the new holder.
    ShareWithoutReference,
    /// A page handed out for new content is still found under its old content.
    KeepEvictedContent,
    /// A window group frees one page too many.
    FreeInsideWindow,
    /// A row that ends keeps its last page.
    LeakLastPage,
    /// The device is not told of a new page.
    LoseDelta,
    /// A page enters the prefix cache one token before it is full.
    RegisterEarly,
    /// Salts are ignored.
    IgnoreSalt,
    /// A preempted row's results in flight are thrown away.
    DropInFlight,
    /// A preempted row resumes while it has results in flight.
    ResumeTooSoon,
    /// Refused drafts count as computed.
    KeepRefusedDrafts,
    /// A row takes no pages for its drafts.
    NoPagesForDrafts,
}

/// Which fault is planted, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planted {
    #[cfg(debug_assertions)]
    pub(crate) fault: Option<Fault>,
}

/// True when the named fault is planted; constant false in release builds.
macro_rules! planted {
    ($planted:expr, $fault:ident) => {{
        #[cfg(debug_assertions)]
        let on = $planted.fault == Some($crate::kv::faults::Fault::$fault);
        #[cfg(not(debug_assertions))]
        let on = {
            let _ = $planted;
            false
        };
        on
    }};
}
pub(crate) use planted;
