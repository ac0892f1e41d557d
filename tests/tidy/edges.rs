//! Which crate of ours depends on which: `cargo metadata` against the drawing in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crate -> the crates of ours it depends on, for whatever kind of build.
pub type Edges = BTreeMap<String, BTreeSet<String>>;

/// The drawing. A change here is a change of the architecture.
const DRAWING: &[(&str, &[&str])] = &[
    ("engine-core", &[]),
    ("kernels", &[]),
    ("backend-cpu", &["engine-core"]),
    ("backend-cuda", &["engine-core", "kernels"]),
    ("backend-rocm", &["engine-core", "kernels"]),
    ("backend-wgpu", &["engine-core", "kernels"]),
    ("server", &["engine-core", "backend-cpu", "backend-cuda", "backend-rocm", "backend-wgpu"]),
    ("tests", &["engine-core", "backend-cpu", "backend-cuda", "backend-rocm", "backend-wgpu", "server"]),
];

/// The edges as cargo sees them.
pub fn of_this_workspace() -> Edges {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    edges(&serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON"))
}

/// One line for each edge too many or too few.
pub fn breaches(edges: &Edges) -> Vec<String> {
    let drawn = |name: &str| DRAWING.iter().find(|d| d.0 == name).map(|d| d.1);
    let mut found = Vec::new();
    for (from, to) in edges {
        let Some(wanted) = drawn(from) else {
            found.push(format!("{from} is a crate that the drawing lacks"));
            continue;
        };
        found.extend(
            to.iter().filter(|t| !wanted.contains(&t.as_str())).map(|t| format!("{from} depends on {t}")),
        );
        let missing = wanted.iter().filter(|w| !to.contains(**w));
        found.extend(missing.map(|w| format!("{from} no longer depends on {w}: change the drawing")));
    }
    let gone = DRAWING.iter().filter(|d| !edges.contains_key(d.0));
    found.extend(gone.map(|d| format!("{} is drawn and is no crate", d.0)));
    found
}

fn edges(metadata: &Value) -> Edges {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or("").to_owned();
    let packages = list(metadata, "packages");
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let of = |package: &Value| {
        list(package, "dependencies").iter().map(name).filter(|d| ours.contains(d)).collect()
    };
    packages.iter().map(|package| (name(package), of(package))).collect()
}

#[test]
fn a_wrong_edge_is_found() {
    let drawn = || -> Edges {
        let set = |to: &[&str]| to.iter().map(|t| (*t).to_owned()).collect();
        DRAWING.iter().map(|(from, to)| ((*from).to_owned(), set(to))).collect()
    };
    assert!(breaches(&drawn()).is_empty());

    let mut upward = drawn();
    upward.get_mut("engine-core").unwrap().insert("server".into());
    assert_eq!(breaches(&upward), ["engine-core depends on server"]);

    let mut missing = drawn();
    missing.get_mut("tests").unwrap().remove("backend-cpu");
    assert_eq!(breaches(&missing).len(), 1);

    let mut renamed = drawn();
    let utils = renamed.remove("kernels").unwrap();
    renamed.insert("utils".into(), utils);
    assert_eq!(breaches(&renamed).len(), 2);
}

#[test]
fn metadata_is_read_with_every_kind_of_dependency() {
    let package = |name: &str, deps: &[(&str, &str)]| {
        let deps: Vec<_> =
            deps.iter().map(|(name, kind)| serde_json::json!({"name": name, "kind": kind})).collect();
        serde_json::json!({"name": name, "dependencies": deps})
    };
    let metadata = serde_json::json!({"packages": [
        package("a", &[("b", "dev"), ("serde", "normal")]), package("b", &[("a", "build")]),
    ]});
    let found = edges(&metadata);
    assert_eq!(found["a"].iter().collect::<Vec<_>>(), ["b"]);
    assert_eq!(found["b"].iter().collect::<Vec<_>>(), ["a"]);
}
