//! The flag table: every flag of every command, one row each. It drives the parser, the environment twins,
//! the help, the completions, docs/cli.md and the test that types each flag.

mod bench;
mod cache;
mod client;
mod features;
mod frontend;
mod model;
mod older;
mod parallel;

use super::flag::Group;

/// Least value of counts that cannot be zero.
const POSITIVE: i128 = 1;
/// Largest value of counts without a bound of their own.
const ANY: i128 = i64::MAX as i128;

/// Flags of whatever starts an engine in this process.
pub const ENGINE: &[Group] = &[
    model::MODEL,
    model::LOAD,
    frontend::DEVICE,
    cache::CACHE,
    cache::SCHEDULER,
    parallel::PARALLEL,
    cache::OFFLOADING,
    features::SPECULATIVE,
    features::COMPILATION,
    features::ADAPTERS,
    features::MULTIMODAL,
    features::STRUCTURED,
    features::SPECIAL_CASES,
    frontend::LOGGING,
    older::OLDER,
    older::REFUSED,
];
/// Flags of the HTTP server.
pub const SERVER: &[Group] = &[frontend::HTTP, frontend::CHAT_FORMAT, frontend::OBSERVABILITY];
/// Flags of `chat`, before those of the engine, which they shadow.
pub const CHAT: &[Group] =
    &[client::CLIENT, client::CHAT, client::LENGTH, client::SAMPLING, client::CONFIG_FILE];
/// Flags of `complete`, likewise.
pub const COMPLETE: &[Group] = &[client::CLIENT, client::LENGTH, client::SAMPLING, client::CONFIG_FILE];
/// Flags of `doctor`, likewise.
pub const DOCTOR: &[Group] = &[client::DOCTOR, client::CONFIG_FILE];
/// Flags of `pull`.
pub const PULL: &[Group] = &[client::PULL, client::CONFIG_FILE, frontend::LOGGING];
/// Flags of `bench latency`, before those of the engine.
pub const BENCH_LATENCY: &[Group] = &[bench::LATENCY, client::CONFIG_FILE];
/// Flags of `bench throughput`, before those of the engine.
pub const BENCH_THROUGHPUT: &[Group] = &[bench::WORKLOAD, bench::THROUGHPUT, client::CONFIG_FILE];
/// Flags of `bench serve`.
pub const BENCH_SERVE: &[Group] = &[
    bench::SERVE_TARGET,
    bench::WORKLOAD,
    bench::ARRIVALS,
    client::SAMPLING,
    bench::REPORT,
    client::CONFIG_FILE,
    frontend::LOGGING,
];
/// Flags of `bench startup`, before those of the engine.
pub const BENCH_STARTUP: &[Group] = &[bench::STARTUP, client::CONFIG_FILE];
/// Flags of `bench make-checkpoint`.
pub const BENCH_MAKE_CHECKPOINT: &[Group] = &[bench::MAKE_CHECKPOINT, client::CONFIG_FILE, frontend::LOGGING];
