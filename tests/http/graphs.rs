//! Flags about graphs and steps, by what they make a device do.

use std::ffi::OsString;
use std::sync::Arc;

use serde_json::json;
use server::cli::{Command, EngineArgs, parse};
use server::http::HttpOptions;
use tests::http::until;
use tests::rigged::Fault;
use tests::server::Server;

/// The engine's arguments of `serve` with these words.
fn args(words: &str) -> EngineArgs {
    let words = ["serve"].into_iter().chain(words.split_whitespace()).map(OsString::from);
    match parse(words, &|_| None).unwrap().command {
        Command::Serve(args) => args.engine,
        other => panic!("{other:?}"),
    }
}

/// Graphs captured and replayed while one to nine rows decode together.
async fn graphs(words: &str) -> (u64, u64) {
    let args = EngineArgs { max_num_seqs: Some(16), ..args(words) };
    let server = Server::paced(args, HttpOptions::default(), 256);
    for rows in 1..=9 {
        let body = json!({"prompt": vec!["a"; rows], "max_tokens": 16, "ignore_eos": true});
        assert_eq!(server.complete(body).await.status, 200);
    }
    let counts = server.rig.counts();
    (counts.captures, counts.replays)
}

#[tokio::test]
async fn nothing_is_captured_where_graphs_are_off() {
    for words in
        ["--enforce-eager", "-O0", "--optimization-level 0", "--compilation-config.cudagraph_mode NONE"]
    {
        assert_eq!(graphs(words).await, (0, 0), "{words}");
    }
    for words in ["", "-O1", "-O3", "--compilation-config.cudagraph_mode FULL"] {
        let (captures, replays) = graphs(words).await;
        assert!(captures > 0 && replays > 16, "{words:?}: {captures} captures, {replays} replays");
    }
}

#[tokio::test]
async fn capture_sizes_are_the_graphs_there_are() {
    // One graph serves all row counts up to its size.
    let (captures, replays) = graphs("--cudagraph-capture-sizes 16").await;
    assert!(captures == 1 && replays > 16, "{captures} captures, {replays} replays");
    let (captures, _) = graphs("--cudagraph-capture-sizes 2 16").await;
    assert_eq!(captures, 2);
    let config = "--compilation-config.cudagraph_capture_sizes [16]";
    assert_eq!(graphs(config).await.0, 1, "{config}");
}

#[tokio::test]
async fn rows_beyond_the_largest_graph_run_without_one() {
    let (_, all) = graphs("").await;
    let (captures, some) = graphs("--max-cudagraph-capture-size 2").await;
    assert!(
        (1..=2).contains(&captures) && some > 0 && some < all / 2,
        "{captures} captures, {some} of {all}"
    );
    let (captures, _) = graphs("--cudagraph-capture-sizes 2 4 16 --max-cudagraph-capture-size 4").await;
    assert_eq!(captures, 2);
}

/// Steps that are enqueued when the device hangs.
async fn in_flight(words: &str) -> u64 {
    let server = Server::start(args(words), HttpOptions::default(), 65_536);
    server.rig.plant(100, Fault::Hang);
    let asking: Arc<Server> = server.clone();
    let body = json!({"prompt": "abc", "max_tokens": 60_000, "ignore_eos": true});
    let task = tokio::spawn(async move { asking.complete(body).await });
    until("the hang", || server.rig.counts().waits == 101).await;
    let counts = server.rig.counts();
    task.abort();
    server.rig.mend();
    counts.downloads - (counts.waits - 1)
}

#[tokio::test]
async fn steps_are_prepared_ahead_unless_told_otherwise() {
    assert_eq!(in_flight("--no-async-scheduling").await, 1);
    assert_eq!(in_flight("--async-scheduling").await, 2);
    assert_eq!(in_flight("").await, 2);
}
