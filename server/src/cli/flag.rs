//! What one row of the flag table is. The rows themselves stand under `flags/`.
//!
//! A row's [`Status`] says what happens when somebody types it. The rule: a flag whose function is there is
//! `Active`; one whose function comes later and whose absence a user would notice is `Neutral`, so that a
//! script either gets what it asks for or hears why not; one that only tunes what Pallium does in its own way
//! is `Note`; names that vLLM no longer has are `Mapped`, `Accepted` or `Refused`.

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Long name without dashes in front, words joined by `-`.
    pub name: &'static str,
    /// Other spellings as typed, dashes included: `-tp`, `--device-memory-utilization`.
    pub aliases: &'static [&'static str],
    pub kind: Kind,
    /// Parsed when nobody gives a value; empty: there is none.
    pub default: &'static str,
    /// What the help shows where there is no default: `from config.json`.
    pub unset: &'static str,
    pub help: &'static str,
    pub status: Status,
    /// Values that are known and refused, each set with the reason.
    pub refused_values: &'static [(&'static [&'static str], &'static str)],
    /// Older values and what they are called now, one notice each.
    pub renamed_values: &'static [(&'static str, &'static str)],
    /// The value of the flag typed without one.
    pub bare: Option<&'static str>,
    /// Shown by `--help` without a topic.
    pub common: bool,
}

/// What a flag's value looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `--x` and `--no-x`.
    Bool,
    /// A whole number.
    Int {
        min: i128,
        max: i128,
    },
    /// A whole number that may be written `32k` (32,000) or `32K` (32,768); `what` names what it counts.
    Human {
        min: i128,
        max: i128,
        what: &'static str,
    },
    /// As `Human`, or `auto`, or -1 for it.
    HumanOrAuto {
        max: i128,
        what: &'static str,
    },
    /// A size that may be written `8G` (binary), `8g` (decimal), `8GiB`, `8GB`.
    Bytes,
    /// A number within `[min, max]`.
    Float {
        min: f64,
        max: f64,
    },
    /// A number within `(min, max]`.
    FloatAbove {
        min: f64,
        max: f64,
    },
    Text,
    /// Text that names a file or directory.
    Path,
    /// A JSON object, or dotted: `--x.key value`.
    Json,
    /// Several words, or the flag several times, or one JSON list.
    List,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `auto`, `cpu`, `cuda`, `cuda:1`, ...
    Device,
}

/// What happens when a flag is given.
#[derive(Clone, Copy, Debug)]
pub enum Status {
    Active,
    /// Only these values are accepted; any other is refused with the clause `later`.
    Neutral {
        values: &'static [&'static str],
        later: &'static str,
    },
    /// Accepted with a notice, without effect; the clause says why that is right.
    Note(&'static str),
    /// An older name.
    Mapped(Map),
    /// An older name, without effect.
    Accepted(&'static str),
    /// Not accepted; the clause says what to use.
    Refused(&'static str),
}

/// What an older flag turns into. Targets are flag names, with a dotted key for a JSON flag.
#[derive(Clone, Copy, Debug)]
pub enum Map {
    /// The value goes there unchanged.
    To(&'static str),
    /// A switch whose meaning is the opposite.
    Negate(&'static str),
    /// What it turns into depends on the value; the text describes it.
    By(&'static str, fn(&str) -> Mapped),
}

/// What one value of an older flag turns into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// This flag gets this value.
    Set(&'static str, String),
    /// Nothing, for this reason.
    Nothing(&'static str),
    /// Not accepted; the clause says what to use.
    Refused(&'static str),
}

/// Rows that the help shows under one heading.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Heading, and what `--help=` takes.
    pub name: &'static str,
    pub about: &'static str,
    pub flags: &'static [Flag],
}

impl Flag {
    /// A row with everything but name, kind and help left empty. It is `Active` until a method says otherwise.
    pub const fn new(name: &'static str, kind: Kind, help: &'static str) -> Flag {
        Flag {
            name,
            aliases: &[],
            kind,
            default: "",
            unset: "",
            help,
            status: Status::Active,
            refused_values: &[],
            renamed_values: &[],
            bare: None,
            common: false,
        }
    }
    /// A switch, off unless given.
    pub const fn switch(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Kind::Bool, help).default("false")
    }
    /// Any text.
    pub const fn text(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Kind::Text, help)
    }
    /// A file or directory.
    pub const fn path(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Kind::Path, help)
    }
    /// A JSON object.
    pub const fn json(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Kind::Json, help)
    }
    /// Several words.
    pub const fn list(name: &'static str, help: &'static str) -> Flag {
        Flag::new(name, Kind::List, help)
    }
    /// One of `words`.
    pub const fn choice(name: &'static str, words: &'static [&'static str], help: &'static str) -> Flag {
        Flag::new(name, Kind::Choice(words), help)
    }
    /// A whole number from `min` to `max`.
    pub const fn int(name: &'static str, min: i128, max: i128, help: &'static str) -> Flag {
        Flag::new(name, Kind::Int { min, max }, help)
    }
    /// A count that may be written `32k`.
    pub const fn count(
        name: &'static str,
        what: &'static str,
        min: i128,
        max: i128,
        help: &'static str,
    ) -> Flag {
        Flag::new(name, Kind::Human { min, max, what }, help)
    }
    /// A number from `min` to `max`, both included.
    pub const fn float(name: &'static str, min: f64, max: f64, help: &'static str) -> Flag {
        Flag::new(name, Kind::Float { min, max }, help)
    }

    /// Sets the value that holds when nobody gives one.
    pub const fn default(mut self, value: &'static str) -> Flag {
        self.default = value;
        self
    }
    /// Says what holds when nobody gives a value and the table has no default.
    pub const fn unset(mut self, words: &'static str) -> Flag {
        self.unset = words;
        self
    }
    /// Adds other spellings, as typed.
    pub const fn alias(mut self, aliases: &'static [&'static str]) -> Flag {
        self.aliases = aliases;
        self
    }
    /// Shows it in the short help.
    pub const fn common(mut self) -> Flag {
        self.common = true;
        self
    }
    /// Allows the flag without a value.
    pub const fn bare(mut self, value: &'static str) -> Flag {
        self.bare = Some(value);
        self
    }
    /// Names values that are known and refused, with a reason each.
    pub const fn refuse_values(mut self, values: &'static [(&'static [&'static str], &'static str)]) -> Flag {
        self.refused_values = values;
        self
    }
    /// Names older values with what they are called now.
    pub const fn rename_values(mut self, values: &'static [(&'static str, &'static str)]) -> Flag {
        self.renamed_values = values;
        self
    }
    /// Accepts `values` only; `later` is the clause that explains it.
    pub const fn neutral(mut self, values: &'static [&'static str], later: &'static str) -> Flag {
        self.status = Status::Neutral { values, later };
        self
    }
    /// Accepts no value at all for now; a switch may be turned off.
    pub const fn later(self, later: &'static str) -> Flag {
        match self.kind {
            Kind::Bool => self.neutral(&["false"], later),
            Kind::Json => self.neutral(&["{}"], later),
            _ => self.neutral(&[], later),
        }
    }
    /// Accepts it with a notice.
    pub const fn note(mut self, why: &'static str) -> Flag {
        self.status = Status::Note(why);
        self
    }
    /// An older name.
    pub const fn mapped(mut self, map: Map) -> Flag {
        self.status = Status::Mapped(map);
        self.default = "";
        self
    }
    /// An older name without effect.
    pub const fn accepted(mut self, why: &'static str) -> Flag {
        self.status = Status::Accepted(why);
        self.default = "";
        self
    }
    /// A name that is refused.
    pub const fn refused(mut self, instead: &'static str) -> Flag {
        self.status = Status::Refused(instead);
        self.default = "";
        self
    }

    /// Name of the environment twin, for flags that are not older names.
    pub fn env_name(&self) -> Option<String> {
        let current = matches!(self.status, Status::Active | Status::Neutral { .. } | Status::Note(_));
        current.then(|| format!("PALLIUM_{}", self.name.replace('-', "_").to_uppercase()))
    }
    /// Whether a value follows the flag.
    pub fn takes_value(&self) -> bool {
        self.kind != Kind::Bool
    }
    /// Whether the help and suggestions offer it: older names are understood, not advertised.
    pub fn is_current(&self) -> bool {
        matches!(self.status, Status::Active | Status::Neutral { .. } | Status::Note(_))
    }
    /// What stands in the default column.
    pub fn shown_default(&self) -> String {
        match (self.kind, self.default) {
            (Kind::Bool, "true") => "on".to_owned(),
            (Kind::Bool, "false") => "off".to_owned(),
            (_, "") => self.unset.to_owned(),
            (_, default) => default.to_owned(),
        }
    }
}

impl Kind {
    /// Placeholder in usage lines.
    pub const fn placeholder(&self) -> &'static str {
        match self {
            Kind::Bool => "",
            Kind::Int { .. } | Kind::Human { .. } | Kind::HumanOrAuto { .. } => "N",
            Kind::Bytes => "BYTES",
            Kind::Float { .. } | Kind::FloatAbove { .. } => "X",
            Kind::Text => "TEXT",
            Kind::Path => "PATH",
            Kind::Json => "JSON",
            Kind::List => "ITEM",
            Kind::Choice(_) => "WORD",
            Kind::Device => "DEVICE",
        }
    }
}
