//! `pallium bench`.

pub mod checkpoint;
pub mod serve;
