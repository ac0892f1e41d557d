//! Requests that wait for a slot, in the order of service. A preempted request comes back to its own place, which is
//! in front of everything that was added after it.

use std::collections::BTreeMap;

use super::policy::OrderKey;
use super::rows::RowIndex;

/// The waiting requests.
#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    rows: BTreeMap<OrderKey, Waiting>,
    tokens: usize,
}

#[derive(Debug)]
struct Waiting {
    row: RowIndex,
    tokens: usize,
}

impl WaitingQueue {
    /// Adds a request whose prompt has `tokens` tokens.
    pub(crate) fn insert(&mut self, key: OrderKey, row: RowIndex, tokens: usize) {
        let before = self.rows.insert(key, Waiting { row, tokens });
        assert!(before.is_none(), "two waiting requests have the order {key:?}");
        self.tokens += tokens;
    }

    /// The request to serve next.
    pub(crate) fn first(&self) -> Option<RowIndex> {
        self.rows.first_key_value().map(|(_, waiting)| waiting.row)
    }

    /// Takes a request out.
    pub(crate) fn remove(&mut self, key: OrderKey) {
        if let Some(waiting) = self.rows.remove(&key) {
            self.tokens -= waiting.tokens;
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// How many prompt tokens wait.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }
}
