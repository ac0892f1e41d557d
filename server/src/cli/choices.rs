//! Closed sets of words that flags take. Each type carries its own names, so that the flag table, the parser,
//! the help and the typed arguments cannot disagree.

use engine_core::DType;

/// A type whose values are a closed set of words on the command line.
pub trait Choice: Sized + Copy {
    /// Every word, in the order the help shows them.
    const NAMES: &'static [&'static str];
    /// The value of a word of [`Choice::NAMES`].
    fn from_name(name: &str) -> Option<Self>;
}

macro_rules! choice {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $type { $($(#[$vdoc])* $variant),+ }

        impl Choice for $type {
            const NAMES: &'static [&'static str] = &[$($name),+];
            fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some($type::$variant),)+ _ => None }
            }
        }

        impl $type {
            /// The word on the command line.
            pub const fn name(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }
        }
    };
}

choice! {
    /// Where weights come from (`--load-format`).
    LoadFormat {
        /// safetensors when there are any, else PyTorch files.
        Auto = "auto",
        Safetensors = "safetensors",
        /// `pytorch_model.bin` and `.pt`, through a reader that runs no pickled code.
        Pt = "pt",
        /// A GGUF file: weights, configuration and tokenizer.
        Gguf = "gguf",
        /// The usual files, quantized at load: `--quantization bitsandbytes`.
        BitsAndBytes = "bitsandbytes",
        /// Random weights of the config.json's shape.
        Dummy = "dummy",
    }
}
choice! {
    /// Who runs first (`--scheduling-policy`).
    SchedulingPolicy { Fcfs = "fcfs", Priority = "priority" }
}
choice! {
    /// What `logprobs` report (`--logprobs-mode`): before or after the sampler's changes, normalised or not.
    LogprobsMode {
        RawLogprobs = "raw_logprobs",
        RawLogits = "raw_logits",
        ProcessedLogprobs = "processed_logprobs",
        ProcessedLogits = "processed_logits",
    }
}
choice! {
    /// How message content reaches the chat template (`--chat-template-content-format`).
    ContentFormat {
        /// Read from the template.
        Auto = "auto",
        /// One string.
        String = "string",
        /// A list of typed parts.
        Openai = "openai",
    }
}
choice! {
    /// Shape of log lines (`--log-format`).
    LogFormat { Text = "text", Json = "json" }
}
choice! {
    /// Least level that is logged (`--log-level`).
    LogLevel {
        Trace = "trace",
        Debug = "debug",
        Info = "info",
        Warning = "warning",
        Error = "error",
        /// Nothing but errors that end the process.
        Critical = "critical",
    }
}
choice! {
    /// Element type as typed (`--dtype`).
    DtypeName { Auto = "auto", Float32 = "float32", Float16 = "float16", Bfloat16 = "bfloat16" }
}
choice! {
    /// Kind of device (`--device`, before a colon and an index).
    DeviceKind {
        Auto = "auto",
        Cpu = "cpu",
        Cuda = "cuda",
        Rocm = "rocm",
        Wgpu = "wgpu",
        /// Computes nothing: for load tests of everything around the device. Its index is a step's time in ms.
        Null = "null",
    }
}
choice! {
    /// Shell to write completions for.
    Shell { Bash = "bash", Zsh = "zsh", Fish = "fish", Powershell = "powershell", Elvish = "elvish" }
}
choice! {
    /// Endpoint family that `bench serve` loads.
    BenchBackend {
        /// `/v1/completions`, streamed.
        Openai = "openai",
        /// `/v1/chat/completions`, streamed.
        OpenaiChat = "openai-chat",
    }
}
choice! {
    /// Where a bench takes its prompts from.
    DatasetName {
        /// Random token ids of the lengths asked for.
        Random = "random",
        /// A ShareGPT JSON file (`--dataset-path`).
        Sharegpt = "sharegpt",
        /// A JSONL file with a `prompt` field (`--dataset-path`).
        Custom = "custom",
    }
}
choice! {
    /// How `bench serve` raises the request rate.
    RampUp { Linear = "linear", Exponential = "exponential" }
}

impl DtypeName {
    /// The element type; `None` is auto.
    pub const fn dtype(self) -> Option<DType> {
        match self {
            DtypeName::Auto => None,
            DtypeName::Float32 => Some(DType::F32),
            DtypeName::Float16 => Some(DType::F16),
            DtypeName::Bfloat16 => Some(DType::Bf16),
        }
    }
}

/// `--device KIND[:INDEX]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    pub kind: DeviceKind,
    /// Which device of that kind; `None` is the backend's first.
    pub index: Option<u32>,
}

impl DeviceChoice {
    /// Whatever this machine does best.
    pub const AUTO: DeviceChoice = DeviceChoice { kind: DeviceKind::Auto, index: None };

    /// Reads `cpu`, `cuda`, `cuda:1`; `None` when it is none of these. Only devices that come in several
    /// (cuda, rocm, wgpu) take an index; that of null is the time a step takes, in ms.
    pub fn from_text(text: &str) -> Option<Self> {
        let (kind, index) = match text.split_once(':') {
            None => (text, None),
            Some((kind, index)) => (kind, Some(index.parse().ok()?)),
        };
        let kind = DeviceKind::from_name(kind)?;
        let indexed = !matches!(kind, DeviceKind::Auto | DeviceKind::Cpu);
        (indexed || index.is_none()).then_some(DeviceChoice { kind, index })
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.index {
            None => f.write_str(self.kind.name()),
            Some(index) => write!(f, "{}:{index}", self.kind.name()),
        }
    }
}
