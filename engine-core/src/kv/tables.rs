//! Page tables: one list of pages per row slot and group on the host, and the deltas that bring the device's copy
//! up to date.

use super::Page;

/// One changed entry of the device's page table of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableDelta {
    /// KV group.
    pub group: u32,
    /// Row slot.
    pub slot: u32,
    /// Entry: the page of positions `index * page_tokens ..`.
    pub index: u32,
    /// The new value; 0 means no page.
    pub page: Page,
}
