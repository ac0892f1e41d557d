//! Which files of a repository are worth downloading.

use engine_core::loader::LoadFormat;

use super::{HubError, Request, Result};

/// Paths to download, small ones apart from weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Configuration, tokenizer, templates, indices.
    pub small: Vec<String>,
    pub weights: Vec<String>,
}

impl Selection {
    /// What serving needs: the configuration, the tokenizer, and weights in one format. Only files at the top level
    /// count; `consolidated.*` repeats the weights in another layout.
    pub fn for_serving(files: &[String], format: LoadFormat) -> Self {
        let top = |path: &&String| !path.contains('/') || path.starts_with("additional_chat_templates/");
        let small = files.iter().filter(top).filter(|path| is_small(path));
        Selection { small: small.cloned().collect(), weights: weights(files, format) }
    }

    /// Every file that one of the globs matches.
    pub fn matching(files: &[String], globs: &[String]) -> Self {
        let matched = files.iter().filter(|path| globs.iter().any(|glob| glob_matches(glob, path)));
        let (weights, small) = matched.cloned().partition(|path| is_weight(path));
        Selection { small, weights }
    }

    /// Refuses a selection that cannot be what was wanted.
    pub(super) fn check(&self, request: &Request<'_>, include: &[String]) -> Result<()> {
        let refuse = |reason: String| Err(HubError::NothingToDo { id: request.model.to_owned(), reason });
        if !include.is_empty() {
            return match self.small.is_empty() && self.weights.is_empty() {
                true => refuse(format!("no file of the repository matches --include {}", include.join(" "))),
                false => Ok(()),
            };
        }
        if !self.small.iter().any(|path| path == "config.json") {
            return refuse(
                "the repository has no config.json; a model in Hugging Face layout is wanted".into(),
            );
        }
        match self.weights.is_empty() && request.format != LoadFormat::Dummy {
            true => refuse(format!(
                "the repository has no weights for --load-format {}; safetensors, pytorch_model.bin or .pt are read",
                match request.format {
                    LoadFormat::Safetensors => "safetensors",
                    LoadFormat::Pt => "pt",
                    LoadFormat::Gguf => "gguf (name the quantization: org/name:Q4_K_M)",
                    LoadFormat::Auto | LoadFormat::Dummy => "auto",
                }
            )),
            false => Ok(()),
        }
    }
}

/// A relative path that stays below its directory, on every system.
pub(super) fn is_plain_path(path: &str) -> bool {
    let part = |p: &str| !matches!(p, "" | "." | "..") && !p.contains(['\\', ':', '\0']);
    path.len() <= 1024 && path.split('/').all(part)
}

/// Whether `glob` matches all of `path`: `*` any characters, `/` too (as Python's fnmatch, which the hub's own client
/// uses), `?` one, `[abc]`, `[a-z]` and `[!a]` one of a set.
pub fn glob_matches(glob: &str, path: &str) -> bool {
    let (glob, path): (Vec<char>, Vec<char>) = (glob.chars().collect(), path.chars().collect());
    let (mut g, mut p) = (0, 0);
    // Where to go back to: the last star, and how far it reaches.
    let mut star: Option<(usize, usize)> = None;
    while p < path.len() {
        let step = glob.get(g).and_then(|c| match c {
            '*' => None,
            '?' => Some(1),
            '[' => match set_matches(&glob[g..], path[p]) {
                Some((true, n)) => Some(n),
                Some((false, _)) => None,
                None => (path[p] == '[').then_some(1),
            },
            c => (*c == path[p]).then_some(1),
        });
        match (step, glob.get(g), star) {
            (Some(n), _, _) => (g, p) = (g + n, p + 1),
            (None, Some('*'), _) => {
                star = Some((g, p));
                g += 1;
            }
            (None, _, Some((at, reach))) => {
                star = Some((at, reach + 1));
                (g, p) = (at + 1, reach + 1);
            }
            (None, _, None) => return false,
        }
    }
    glob[g..].iter().all(|c| *c == '*')
}

/// Whether a set that starts at `glob[0]` holds `c`, and its length; `None` when it does not end.
fn set_matches(glob: &[char], c: char) -> Option<(bool, usize)> {
    let negated = glob.get(1) == Some(&'!');
    let first = if negated { 2 } else { 1 };
    let end = first + 1 + glob.get(first + 1..)?.iter().position(|c| *c == ']')?;
    let set = &glob[first..end];
    let (mut i, mut found) = (0, false);
    while i < set.len() {
        if i + 2 < set.len() && set[i + 1] == '-' {
            found |= (set[i]..=set[i + 2]).contains(&c);
            i += 3;
        } else {
            found |= set[i] == c;
            i += 1;
        }
    }
    Some((found != negated, end + 1))
}

const WEIGHTS: [&str; 9] =
    [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data"];

/// Files of torch that are no model.
const NOT_A_MODEL: [&str; 6] =
    ["training_args", "optimizer", "scheduler", "rng_state", "scaler", "adapter_model"];

fn is_weight(path: &str) -> bool {
    WEIGHTS.iter().any(|end| path.ends_with(end))
}

fn is_small(path: &str) -> bool {
    let data = [".json", ".jinja", ".model", ".tiktoken"].iter().any(|end| path.ends_with(end));
    (data && !path.ends_with(".index.json")) || path == "merges.txt" || path == "vocab.txt"
}

/// Weights and their index, in the format that `Checkpoint::open` would choose among these files.
fn weights(files: &[String], format: LoadFormat) -> Vec<String> {
    let pick = |matches: &dyn Fn(&str) -> bool| -> Vec<String> {
        let usable = |p: &&String| {
            let skip = p.contains('/')
                || p.starts_with("consolidated")
                || NOT_A_MODEL.iter().any(|name| p.starts_with(name));
            !skip && matches(p)
        };
        files.iter().filter(usable).cloned().collect()
    };
    let sharded = |p: &str, stem: &str, end: &str| p.starts_with(stem) && p.ends_with(end);
    let safetensors: [&dyn Fn(&str) -> bool; 3] = [
        &|p| p == "model.safetensors.index.json" || sharded(p, "model-", ".safetensors"),
        &|p| p == "model.safetensors",
        &|p| p.ends_with(".safetensors"),
    ];
    let torch: [&dyn Fn(&str) -> bool; 3] = [
        &|p| p == "pytorch_model.bin.index.json" || sharded(p, "pytorch_model-", ".bin"),
        &|p| p == "pytorch_model.bin",
        &|p| [".bin", ".pt", ".pth"].iter().any(|end| p.ends_with(end)),
    ];
    let choices: Vec<&dyn Fn(&str) -> bool> = match format {
        LoadFormat::Dummy | LoadFormat::Gguf => Vec::new(),
        LoadFormat::Safetensors => safetensors.to_vec(),
        LoadFormat::Pt => torch.to_vec(),
        LoadFormat::Auto => safetensors.into_iter().chain(torch).collect(),
    };
    choices
        .iter()
        .map(|choice| pick(choice))
        .find(|found| found.iter().any(|p| is_weight(p)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(files: &[&str], format: LoadFormat) -> (String, String) {
        let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
        let s = Selection::for_serving(&files, format);
        (s.small.join(" "), s.weights.join(" "))
    }

    #[test]
    fn serving_needs_configuration_tokenizer_and_one_set_of_weights() {
        let files = [
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "generation_config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "onnx/config.json",
            "original/consolidated.00.pth",
            "original/params.json",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
            "training_args.bin",
            "chat_template.jinja",
            "additional_chat_templates/rag.jinja",
        ];
        let (small, weights) = select(&files, LoadFormat::Auto);
        assert_eq!(
            small,
            "config.json generation_config.json merges.txt tokenizer.json tokenizer.model chat_template.jinja \
             additional_chat_templates/rag.jinja"
        );
        assert_eq!(
            weights,
            "model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json"
        );
        assert_eq!(select(&files, LoadFormat::Pt).1, "pytorch_model.bin");
        assert_eq!(select(&files, LoadFormat::Dummy).1, "");
    }

    #[test]
    fn weights_are_chosen_as_the_loader_chooses() {
        let auto = |files: &[&str]| select(files, LoadFormat::Auto).1;
        assert_eq!(auto(&["model.safetensors", "other.safetensors", "x.pt"]), "model.safetensors");
        assert_eq!(auto(&["other.safetensors", "pytorch_model.bin"]), "other.safetensors");
        assert_eq!(auto(&["consolidated.safetensors", "pytorch_model.bin"]), "pytorch_model.bin");
        assert_eq!(auto(&["training_args.bin", "optimizer.pt", "weights.pt"]), "weights.pt");
        assert_eq!(auto(&["model.safetensors.index.json", "pytorch_model.bin"]), "pytorch_model.bin");
        assert_eq!(auto(&["adapter_model.safetensors"]), "");
        assert_eq!(select(&["pytorch_model.bin"], LoadFormat::Safetensors).1, "");
    }

    #[test]
    fn globs_match_as_fnmatch_does() {
        for (glob, path, want) in [
            ("*.json", "config.json", true),
            ("*.json", "onnx/config.json", true),
            ("*.json", "config.jso", false),
            ("model-0000?-of-*.safetensors", "model-00001-of-00002.safetensors", true),
            ("*", "", true),
            ("", "a", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("[abc].txt", "b.txt", true),
            ("[!abc].txt", "b.txt", false),
            ("[a-c]?", "cx", true),
            ("[a-c", "[a-c", true),
            ("[]]", "]", true),
            ("é*", "été", true),
        ] {
            assert_eq!(glob_matches(glob, path), want, "{glob} {path}");
        }
        let slow = "*a".repeat(50) + "b";
        assert!(!glob_matches(&slow, &"a".repeat(2000)));
    }

    #[test]
    fn paths_stay_below_their_directory() {
        for good in ["a", "a/b.json", "..a", "refs/pr/1"] {
            assert!(is_plain_path(good), "{good}");
        }
        for bad in ["", "/a", "a/", "../a", "a/../b", "a//b", "a\\b", "C:/a", "a\0"] {
            assert!(!is_plain_path(bad), "{bad}");
        }
    }
}
