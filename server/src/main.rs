//! The `pallium` binary.

fn main() {}
