//! The contract through HTTP, over the engine loop and a device that does nothing until it is told to break.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use server::cli::EngineArgs;
use server::client::EngineClient;
use server::http::{Ended, HttpOptions};
use tests::http::{Answer, merged, raw, raw_post, until};
use tests::rigged::Fault;
use tests::server::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LEN: u32 = 65_536;

fn long(extra: Value) -> Value {
    merged(json!({"prompt": "abc", "max_tokens": 60_000}), &extra)
}

fn short(prompt: &str) -> Value {
    json!({"prompt": prompt, "max_tokens": 3})
}

fn check_refused(answer: &Answer, flag: &str) {
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.body.contains(flag), "{}", answer.body);
}

/// One row hangs, `waiting` requests wait behind it; then `body` is sent.
async fn behind_a_full_queue(args: EngineArgs, waiting: usize, bodies: Vec<Value>) -> Vec<Answer> {
    let server = Server::start(EngineArgs { max_num_seqs: Some(1), ..args }, HttpOptions::default(), LEN);
    server.rig.plant(0, Fault::Hang);
    let spawn = |prompt: &'static str| {
        let server = server.clone();
        tokio::spawn(async move { server.complete(short(prompt)).await })
    };
    let mut open = vec![spawn("first")];
    until("admission", || server.rig.counts().waits == 1).await;
    for done in 1..=waiting {
        open.push(spawn("waits"));
        until("queueing", || server.engine.stats().waiting == done as u64).await;
    }
    let mut answers = Vec::new();
    for body in bodies {
        answers.push(server.complete(body).await);
    }
    server.rig.mend();
    for task in open {
        assert_eq!(task.await.unwrap().status, 200);
    }
    until("the end", || server.is_idle()).await;
    assert_eq!(server.complete(short("again")).await.status, 200);
    answers
}

#[tokio::test]
async fn a_full_queue_is_503_with_retry_after_and_what_never_fits_is_400_before_it() {
    let args = EngineArgs { max_num_queued_reqs: Some(2), ..EngineArgs::default() };
    let too_long = json!({"prompt": vec![97; LEN as usize + 1]});
    let several = json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 3});
    let got = behind_a_full_queue(args, 2, vec![short("more"), too_long, several]).await;
    check_refused(&got[0], "--max-num-queued-reqs is 2");
    assert_eq!((got[1].status, &got[1].json()["error"]["param"]), (400, &json!("input_tokens")));
    check_refused(&got[2], "--max-num-queued-reqs is 2");
}

#[tokio::test]
async fn the_queue_is_bounded_in_tokens_too() {
    let args = EngineArgs { max_num_queued_tokens: Some(12), ..EngineArgs::default() };
    // "waits" has five tokens: two of them wait, a third does not fit.
    let got = behind_a_full_queue(args, 2, vec![short("12345")]).await;
    check_refused(&got[0], "--max-num-queued-tokens is 12");
}

#[tokio::test]
async fn an_answer_of_several_sequences_that_fits_in_part_leaves_nothing_in_the_queue() {
    let args = EngineArgs { max_num_queued_reqs: Some(2), ..EngineArgs::default() };
    let several = json!({"prompt": "a", "n": 3, "max_tokens": 3});
    let got = behind_a_full_queue(args, 1, vec![several, short("b")]).await;
    check_refused(&got[0], "--max-num-queued-reqs is 2");
    // Its first sequence had been taken, and the engine hangs before it hears that it is aborted.
    check_refused(&got[1], "--max-num-queued-reqs is 2");
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_pages_within_one_step() {
    for stream in [true, false] {
        let server = Server::build(
            EngineArgs::default(),
            HttpOptions::default(),
            LEN,
            Arc::new(server::client::mock::bytes::ByteCodec),
        );
        let (address, _signal, _served) = server.listen().await;
        server.rig.plant(50, Fault::Hang);
        let mut client = TcpStream::connect(&address).await.unwrap();
        client
            .write_all(raw_post("/v1/completions", &long(json!({"stream": stream, "n": 4}))).as_bytes())
            .await
            .unwrap();
        until("the hang", || server.rig.counts().waits == 51).await;
        if stream {
            assert!(client.read(&mut [0; 512]).await.unwrap() > 0);
        }
        until("all four", || server.state.fanout.open_rows() == 4).await;
        assert!(server.engine.stats().running > 0 && server.engine.stats().kv_cache_usage > 0.0);
        drop(client);
        until("noticing", || server.state.fanout.open_rows() == 0).await;
        server.rig.mend();
        until("freeing", || server.is_idle()).await;
        // The step that hung, and the one that was enqueued behind it.
        let waits = server.rig.counts().waits;
        assert!(waits <= 52, "stream {stream}: {} steps after the client had gone", waits - 51);
    }
}

#[tokio::test]
async fn a_lost_engine_fails_streams_turns_health_and_ends_the_server() {
    for fault in [Fault::DeviceLost, Fault::Panic] {
        let server = Server::build(
            EngineArgs { max_num_seqs: Some(2), ..EngineArgs::default() },
            HttpOptions::default(),
            LEN,
            Arc::new(server::client::mock::bytes::ByteCodec),
        );
        let (address, _signal, served) = server.listen().await;
        assert_eq!(server.get("/health").await.status, 200);
        server.rig.plant(300, Fault::Hang);
        let (stream, whole) = (
            raw_post("/v1/completions", &long(json!({"stream": true}))),
            raw_post("/v1/completions", &long(json!({}))),
        );
        let asked = [&stream, &whole, &stream, &whole].map(|request| {
            let (address, request) = (address.clone(), request.clone());
            tokio::spawn(async move { raw(&address, &request).await })
        });
        until("the hang", || server.rig.counts().waits == 301).await;
        until("all four", || server.state.fanout.open_rows() == 4).await;
        server.rig.plant(0, fault);
        for (i, answer) in asked.into_iter().enumerate() {
            let answer = answer.await.unwrap();
            assert_eq!(answer.matches("\"InternalServerError\"").count(), 1, "{fault:?} {i}: {answer}");
            match i % 2 {
                0 => assert!(
                    answer.contains("data: {\"error\"") && answer.contains("data: [DONE]"),
                    "{answer}"
                ),
                _ => assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}"),
            }
        }
        let health = server.get("/health").await;
        assert_eq!(health.status, 503);
        assert!(health.body.contains("the engine is lost"), "{}", health.body);
        assert_eq!(server.get("/ready").await.status, 503);
        assert_eq!(served.await.unwrap(), Ended::EngineLost);
    }
}

#[tokio::test]
async fn health_names_an_engine_that_has_work_and_ends_no_step() {
    let options = HttpOptions { stall_limit: Duration::from_millis(30), ..HttpOptions::default() };
    let server = Server::start(EngineArgs::default(), options, LEN);
    // In the very first step, and in the middle.
    for steps in [0, 20] {
        assert_eq!(server.get("/health").await.status, 200, "idle is healthy");
        server.rig.plant(steps, Fault::Hang);
        let asked = tokio::spawn({
            let server = server.clone();
            async move { server.complete(json!({"prompt": "abc", "max_tokens": 100})).await }
        });
        until("a stall", || server.engine.health().since_progress > Duration::from_millis(30)).await;
        let health = server.get("/health").await;
        assert_eq!(health.status, 503);
        assert!(health.body.contains("no step ended in") && health.body.contains("1 requests"), "{health:?}");
        assert_eq!(server.get("/ready").await.status, 503);
        server.rig.mend();
        assert_eq!(asked.await.unwrap().status, 200);
        until("recovery", || server.is_idle()).await;
    }
    assert_eq!(server.get("/health").await.status, 200);
}

fn seeded(seed: u64) -> EngineArgs {
    EngineArgs { seed, ..EngineArgs::default() }
}

#[tokio::test]
async fn unseeded_answers_differ_and_repeat_after_a_restart_with_the_same_seed() {
    let body = json!({"prompt": "abc", "max_tokens": 20, "temperature": 1});
    let mut runs = Vec::new();
    for seed in [0, 0, 7] {
        let server = Server::start(seeded(seed), HttpOptions::default(), LEN);
        let mut texts = Vec::new();
        for _ in 0..3 {
            texts.push(server.complete(body.clone()).await.text());
        }
        let several = server.complete(merged(body.clone(), &json!({"n": 2}))).await.json();
        assert_ne!(several["choices"][0]["text"], several["choices"][1]["text"]);
        assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
        runs.push(texts);
    }
    assert_eq!(runs[0], runs[1], "--seed 0, the same requests in the same order");
    assert_ne!(runs[0], runs[2], "--seed 7");
}

#[tokio::test]
async fn seeded_answers_are_the_same_alone_and_in_any_company() {
    let server = Server::start(seeded(0), HttpOptions::default(), LEN);
    let body = json!({"prompt": "abc", "max_tokens": 50, "seed": 42});
    let alone = server.complete(body.clone()).await.text();
    let crowd: Vec<_> = (0..40)
        .map(|i| {
            let (server, body) = (server.clone(), body.clone());
            tokio::spawn(async move {
                match i % 4 {
                    0 => Some(server.complete(body).await.text()),
                    _ => {
                        server.complete(json!({"prompt": "x".repeat(i), "max_tokens": 70})).await;
                        None
                    }
                }
            })
        })
        .collect();
    for text in crowd {
        assert!(text.await.unwrap().is_none_or(|text| text == alone));
    }
}

#[tokio::test]
async fn streams_dropped_at_random_leave_nothing_behind() {
    let args = EngineArgs { max_num_seqs: Some(16), ..EngineArgs::default() };
    let server = Server::start(args, HttpOptions::default(), 512);
    let lanes: Vec<_> = (0..8_u64)
        .map(|lane| {
            let server = server.clone();
            tokio::spawn(async move {
                let mut rng = tests::rng::Rng::new(lane);
                for _ in 0..250 {
                    let n = rng.between(1, 4);
                    let body = json!({"prompt": ["a", "bc"], "n": n, "max_tokens": 60, "stream": true});
                    let asked = server.complete(body);
                    let patience = Duration::from_micros(u64::from(rng.between(1, 3_000)));
                    // Half of them are dropped where they stand: before, in or after their first step.
                    match rng.percent(50) {
                        true => drop(tokio::time::timeout(patience, asked).await),
                        false => assert_eq!(asked.await.status, 200),
                    }
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await.unwrap();
    }
    until("freeing", || server.is_idle()).await;
}
