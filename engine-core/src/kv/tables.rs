//! Page tables: one list of pages per row slot and group on the host, and the deltas that bring the device's copy
//! up to date.

use super::{NULL_PAGE, Page};

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

/// The pages of one row in one group.
#[derive(Clone, Debug, Default)]
pub struct RowTable {
    /// Entry i is the page of positions `i * page_tokens ..`; null before `first`.
    pages: Vec<Page>,
    /// Entries before this one have fallen out of the window.
    first: u32,
    /// Entries before this one have been offered to the prefix cache.
    pub(super) registered: u32,
}

impl RowTable {
    /// All entries, null ones among them.
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// How many entries point to a page.
    pub fn held(&self) -> u32 {
        self.pages.len() as u32 - self.first
    }

    /// First entry that points to a page.
    pub fn first(&self) -> u32 {
        self.first
    }
}

/// The host's copy of every page table. The device's copy has the same entries in slots that are in use; what lies
/// beyond a row's last entry there is stale and never read.
#[derive(Debug)]
pub struct PageTables {
    groups: usize,
    rows: Vec<RowTable>,
}

impl PageTables {
    /// Empty tables for `slots` rows.
    pub fn new(slots: u32, groups: usize) -> Self {
        PageTables { groups, rows: vec![RowTable::default(); slots as usize * groups] }
    }

    /// The table of one row in one group.
    pub fn row(&self, slot: u32, group: usize) -> &RowTable {
        &self.rows[slot as usize * self.groups + group]
    }

    pub(super) fn row_mut(&mut self, slot: u32, group: usize) -> &mut RowTable {
        &mut self.rows[slot as usize * self.groups + group]
    }

    /// Appends an entry; [`NULL_PAGE`] only in front of all others.
    pub(super) fn push(&mut self, slot: u32, group: usize, page: Page, deltas: &mut Vec<TableDelta>) {
        let row = self.row_mut(slot, group);
        let index = row.pages.len() as u32;
        row.pages.push(page);
        if page == NULL_PAGE {
            row.first = index + 1;
        }
        deltas.push(TableDelta { group: group as u32, slot, index, page });
    }

    /// Makes the first entry that points to a page null and returns the page, if that entry is before `index`.
    pub(super) fn drop_before(
        &mut self,
        slot: u32,
        group: usize,
        index: u32,
        deltas: &mut Vec<TableDelta>,
    ) -> Option<Page> {
        let row = self.row_mut(slot, group);
        let first = row.first;
        if first >= index.min(row.pages.len() as u32) {
            return None;
        }
        row.first = first + 1;
        deltas.push(TableDelta { group: group as u32, slot, index: first, page: NULL_PAGE });
        Some(std::mem::replace(&mut row.pages[first as usize], NULL_PAGE))
    }

    /// Takes the last entry that points to a page; `None` leaves the table empty. The device is not told: nobody
    /// reads the table of a slot that is not in use.
    pub(super) fn pop(&mut self, slot: u32, group: usize) -> Option<Page> {
        let row = self.row_mut(slot, group);
        match row.pages.pop() {
            Some(page) if page != NULL_PAGE => Some(page),
            _ => {
                row.pages.clear();
                row.first = 0;
                row.registered = 0;
                None
            }
        }
    }

    /// Makes room for `entries` entries, so that growing to them allocates nothing.
    pub(super) fn reserve(&mut self, slot: u32, group: usize, entries: usize) {
        let row = self.row_mut(slot, group);
        row.pages.reserve(entries.saturating_sub(row.pages.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_moves_and_the_row_ends_in_reverse_order() {
        let (mut tables, mut deltas) = (PageTables::new(2, 2), Vec::new());
        for page in [NULL_PAGE, 7, 8, 9] {
            tables.push(1, 1, page, &mut deltas);
        }
        assert_eq!((tables.row(1, 1).first(), tables.row(1, 1).held()), (1, 3));
        deltas.clear();
        assert_eq!(tables.drop_before(1, 1, 2, &mut deltas), Some(7));
        assert_eq!(tables.drop_before(1, 1, 2, &mut deltas), None);
        assert_eq!(deltas, [TableDelta { group: 1, slot: 1, index: 1, page: NULL_PAGE }]);
        assert_eq!(tables.row(1, 1).pages(), [0, 0, 8, 9]);
        assert!(tables.row(0, 1).pages().is_empty() && tables.row(1, 0).pages().is_empty());
        assert_eq!((tables.pop(1, 1), tables.pop(1, 1), tables.pop(1, 1)), (Some(9), Some(8), None));
        assert_eq!((tables.row(1, 1).pages().len(), tables.row(1, 1).held()), (0, 0));
    }
}
