//! Flags of the commands around serving: chat, complete, doctor, pull.

use crate::cli::flag::{Flag, Group, Kind};

/// Which server answers.
pub const CLIENT: Group = Group {
    name: "Client",
    about: "Which server answers; without --url the model runs in this process",
    flags: &[
        Flag::text("url", "Server to talk to")
            .unset("none; http://localhost:8000/v1 with --model-name")
            .common(),
        Flag::text("model-name", "Name of the model on the server").unset("the server's first").common(),
        Flag::text("api-key", "Key of the server").unset("none"),
        Flag::text("quick", "Send this, print the answer and end").alias(&["-q"]).common(),
        Flag::switch("stats", "Print time to first token and tokens per second").common(),
    ],
};

/// Chat only.
pub const CHAT: Group = Group {
    name: "Chat",
    about: "The conversation",
    flags: &[Flag::text("system-prompt", "What the model is told first").unset("none").common()],
};

/// How long answers may be.
pub const LENGTH: Group = Group {
    name: "Length",
    about: "How long answers may be",
    flags: &[Flag::count(
        "max-tokens",
        "a count of tokens",
        1,
        engine_core::limits::MAX_MODEL_LEN as i128,
        "Longest answer",
    )
    .unset("the rest of the context")
    .common()],
};

/// How answers are drawn.
pub const SAMPLING: Group = Group {
    name: "Sampling",
    about: "How answers are drawn",
    flags: &[
        Flag::float("temperature", 0.0, 2.0, "0 takes the likeliest token").unset("the model's").common(),
        Flag::new(
            "top-p",
            Kind::FloatAbove { min: 0.0, max: 1.0 },
            "Draw from the likeliest tokens of this mass",
        )
        .unset("the model's"),
        Flag::int("top-k", -1, 10_000_000, "Draw from this many of the likeliest tokens; -1 or 0: all")
            .unset("the model's"),
        Flag::float("min-p", 0.0, 1.0, "Least probability relative to the likeliest token")
            .unset("the model's"),
        Flag::float("frequency-penalty", -2.0, 2.0, "Against tokens, by how often they came").unset("0"),
        Flag::float("presence-penalty", -2.0, 2.0, "Against tokens that came").unset("0"),
        Flag::new(
            "repetition-penalty",
            Kind::FloatAbove { min: 0.0, max: 1e6 },
            "Divides the logits of tokens that came",
        )
        .unset("the model's"),
    ],
};

/// Doctor only.
pub const DOCTOR: Group =
    Group { name: "Doctor", about: "The report", flags: &[Flag::switch("json", "Answer as JSON").common()] };

/// Pull only.
pub const PULL: Group = Group {
    name: "Pull",
    about: "What to fetch",
    flags: &[
        Flag::text("model", "Hugging Face id; also the first word after the command").common(),
        Flag::list("include", "Globs of files to fetch").unset("what serving needs").common(),
        Flag::text("revision", "Hub branch, tag or commit").unset("main").common(),
        Flag::text("hf-token", "Token for the hub; without a value, the one the hub's tools stored")
            .unset("HF_TOKEN")
            .bare(""),
        Flag::path("download-dir", "Directory for downloads").unset("the hub's cache").common(),
    ],
};

/// A file of flags, for commands without the server's group.
pub const CONFIG_FILE: Group = Group {
    name: "Config",
    about: "Flags from a file",
    flags: &[Flag::path("config", "YAML file of flags; the environment and the command line win over it")],
};
