//! Nothing but a place for the test `live_torch`.
