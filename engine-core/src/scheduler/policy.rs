//! In which order requests are served.

/// `--scheduling-policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulingPolicy {
    /// First come, first served; priorities are ignored.
    #[default]
    Fcfs,
    /// Smaller priority values first, then first come.
    Priority,
}

/// A request's place in the order of service. Smaller is served first; the largest among the running is preempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey {
    priority: i32,
    arrival: u64,
}

impl OrderKey {
    /// `arrival` counts requests in the order they were added.
    pub(crate) fn new(policy: SchedulingPolicy, priority: i32, arrival: u64) -> Self {
        let priority = match policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority => priority,
        };
        OrderKey { priority, arrival }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_counts_under_its_policy_only() {
        let key = |policy, priority, arrival| OrderKey::new(policy, priority, arrival);
        assert!(key(SchedulingPolicy::Fcfs, 9, 1) < key(SchedulingPolicy::Fcfs, -9, 2));
        assert!(key(SchedulingPolicy::Priority, 9, 1) > key(SchedulingPolicy::Priority, -9, 2));
        assert!(key(SchedulingPolicy::Priority, 3, 1) < key(SchedulingPolicy::Priority, 3, 2));
    }
}
