//! What the tests share: cases, tolerances, fixtures.
