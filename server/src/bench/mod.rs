//! `pallium bench`.

pub mod serve;
