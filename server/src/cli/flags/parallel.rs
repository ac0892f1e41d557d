//! Several devices and several machines. All of it comes later; the flags take their neutral values.

use crate::cli::flag::{Flag, Group, Kind};

const TENSOR: &str = "tensor parallelism is not in this version";
const PIPELINE: &str = "pipeline parallelism is not in this version";
const DATA: &str = "data parallelism is not in this version";
const EXPERT: &str = "expert parallelism is not in this version";
const NODES: &str = "serving across machines is not in this version";
const COLLECTIVES: &str = "one device needs no collectives";
const RANKS: i128 = 65_536;

/// How work is spread over devices.
pub const PARALLEL: Group = Group {
    name: "ParallelConfig",
    about: "How work is spread over devices and machines",
    flags: &[
        Flag::int("tensor-parallel-size", 1, RANKS, "Devices that share each layer")
            .alias(&["-tp"])
            .default("1")
            .neutral(&["1"], TENSOR),
        Flag::int("pipeline-parallel-size", 1, RANKS, "Devices that share the layers between them")
            .alias(&["-pp"])
            .default("1")
            .neutral(&["1"], PIPELINE),
        Flag::int("data-parallel-size", 1, RANKS, "Copies of the model")
            .alias(&["-dp"])
            .default("1")
            .neutral(&["1"], DATA),
        Flag::int("data-parallel-size-local", 0, RANKS, "Copies on this machine")
            .alias(&["-dpl"])
            .unset("1")
            .neutral(&["1"], DATA),
        Flag::int("data-parallel-rank", 0, RANKS, "Which copy this process is")
            .alias(&["-dpn"])
            .unset("0")
            .neutral(&["0"], DATA),
        Flag::int("data-parallel-start-rank", 0, RANKS, "First copy on this machine")
            .alias(&["-dpr"])
            .unset("0")
            .neutral(&["0"], DATA),
        Flag::text("data-parallel-address", "Address of the first machine").alias(&["-dpa"]).note(DATA),
        Flag::int("data-parallel-rpc-port", 0, 65_535, "Port between the copies").alias(&["-dpp"]).note(DATA),
        Flag::text("data-parallel-backend", "Who starts the copies")
            .alias(&["-dpb"])
            .default("mp")
            .note(DATA),
        Flag::switch("data-parallel-hybrid-lb", "Balance load within each machine")
            .alias(&["-dph"])
            .later(DATA),
        Flag::switch("data-parallel-external-lb", "Balance load outside").alias(&["-dpe"]).later(DATA),
        Flag::switch("data-parallel-multi-port-external-lb", "Balance load outside, a port a copy")
            .alias(&["-dpm"])
            .later(DATA),
        Flag::switch("enable-expert-parallel", "Spread experts over devices").alias(&["-ep"]).later(EXPERT),
        Flag::switch("enable-eplb", "Balance experts while running").note(EXPERT),
        Flag::json("eplb-config", "How experts are balanced").note(EXPERT),
        Flag::text("expert-placement-strategy", "Where experts go").default("linear").note(EXPERT),
        Flag::text("all2all-backend", "How tokens reach their experts")
            .default("allgather_reducescatter")
            .note(EXPERT),
        Flag::switch("enable-ep-weight-filter", "Load the own experts only").note(EXPERT),
        Flag::text("distributed-executor-backend", "Who runs the workers")
            .unset("threads of one process")
            .note("workers are threads of this process"),
        Flag::int("nnodes", 1, RANKS, "Machines").alias(&["-n"]).default("1").neutral(&["1"], NODES),
        Flag::int("node-rank", 0, RANKS, "Which machine this is")
            .alias(&["-r"])
            .default("0")
            .neutral(&["0"], NODES),
        Flag::text("master-addr", "Address of the first machine").default("127.0.0.1").note(NODES),
        Flag::int("master-port", 0, 65_535, "Port of the first machine").default("29501").note(NODES),
        Flag::int("distributed-timeout-seconds", 1, 1 << 31, "Limit of a collective").note(COLLECTIVES),
        Flag::int("cpu-distributed-timeout-seconds", 1, 1 << 31, "Limit of a collective on the CPU")
            .note(COLLECTIVES),
        Flag::list("device-ids", "Which devices to use")
            .unset("the first")
            .neutral(&["0"], "several devices are not in this version; --device cuda:1 picks another one"),
        Flag::switch("disable-custom-all-reduce", "Use NCCL for every all-reduce").note(COLLECTIVES),
        Flag::switch("numa-bind", "Pin each worker to its memory node")
            .note("--threads and the process's own affinity decide where threads run"),
        Flag::list("numa-bind-nodes", "Memory node of each worker")
            .note("--threads and the process's own affinity decide where threads run"),
        Flag::list("numa-bind-cpus", "Cores of each worker")
            .note("--threads and the process's own affinity decide where threads run"),
        Flag::new("disable-nccl-for-dp-synchronization", Kind::Bool, "Synchronise copies without NCCL")
            .note(DATA),
    ],
};
