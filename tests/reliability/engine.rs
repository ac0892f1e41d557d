//! The contract at the engine's own boundary: bounds, cancellation, loss, stalls.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine_core::engine::types::{
    EngineFailure, FinishReason, OutputSink, Refused, Request, RequestId, StepOutputs, StepStats,
};
use engine_core::engine::{EngineOptions, EngineState, QueueLimits};
use engine_core::sampling::SamplingParams;
use tests::engine::TestEngine;
use tests::null::{self, SOURCE};
use tests::rigged::{Fault, Rig, Rigged};

const LEN: u32 = 4_096;

fn engine(options: &EngineOptions) -> (TestEngine, Arc<Rig>) {
    let (backend, rig) = Rigged::new(null::backend());
    (TestEngine::start(backend, &null::config(LEN), &SOURCE, options), rig)
}

fn params(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens, ..SamplingParams::default() }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not happen");
        std::thread::yield_now();
    }
}

/// One row runs and hangs; the queue in front of it is under test.
fn hung(queue: QueueLimits) -> (TestEngine, Arc<Rig>, RequestId) {
    let options = EngineOptions { max_num_seqs: Some(1), queue, ..EngineOptions::default() };
    let (e, rig) = engine(&options);
    rig.plant(0, Fault::Hang);
    let running = e.submit(&[11, 12], params(5));
    until("admission", || e.running.handle.queued() == 0);
    (e, rig, running)
}

#[test]
fn the_queue_is_bounded_in_requests() {
    let (e, rig, first) = hung(QueueLimits { requests: 3, tokens: None });
    let waiting: Vec<_> = (0..3).map(|_| e.submit(&[11, 12], params(5))).collect();
    let refused = e.try_submit(&[11, 12], params(5), 0);
    assert_eq!(refused, Err(Refused::QueueFull { queued: 3, limit: 3 }));
    e.running.handle.abort(waiting[1]);
    rig.mend();
    e.wait(&[first, waiting[0], waiting[1], waiting[2]]).iter().for_each(|got| assert_eq!(got.ends, 1));
    assert_eq!(e.running.handle.queued(), 0, "what ended while it waited has left the queue");
    e.generate(&[11], params(3));
}

#[test]
fn the_queue_is_bounded_in_prompt_tokens() {
    let (e, rig, first) = hung(QueueLimits { requests: 100, tokens: Some(10) });
    let six = e.submit(&[11; 6], params(5));
    let refused = e.try_submit(&[11; 5], params(5), 0);
    assert_eq!(refused, Err(Refused::QueueTokensFull { queued: 6, limit: 10 }));
    let four = e.submit(&[11; 4], params(5));
    rig.mend();
    e.wait(&[first, six, four]);
    // A prompt longer than the bound gets its turn when nothing else waits.
    e.generate(&[11; 20], params(3));
}

#[test]
fn what_can_never_fit_is_refused_before_it_queues() {
    let (e, rig, _) = hung(QueueLimits { requests: 1, tokens: None });
    e.submit(&[11], params(1));
    assert_eq!(e.try_submit(&[11], params(1), 0), Err(Refused::QueueFull { queued: 1, limit: 1 }));
    for prompt in [0, LEN as usize, LEN as usize + 1] {
        match e.try_submit(&vec![11; prompt], params(1), 0) {
            Err(Refused::NeverFits(text)) => {
                assert!(text.contains("4095 fit") && text.contains("--max-model-len"), "{text}");
            }
            other => panic!("{prompt}: {other:?}"),
        }
    }
    assert_eq!(e.running.handle.queued(), 1);
    rig.mend();
}

/// Everything a sink was told, in order.
type Log = Arc<Mutex<Vec<(StepStats, Vec<(RequestId, Option<FinishReason>)>)>>>;

struct Logging {
    log: Log,
    ended: Sender<()>,
}

impl OutputSink for Logging {
    fn deliver(&mut self, outputs: &mut StepOutputs) {
        let rows: Vec<_> = outputs.rows.drain(..).map(|r| (r.id, r.finish)).collect();
        let end = rows.iter().any(|r| r.1.is_some());
        self.log.lock().unwrap().push((outputs.stats, rows));
        if end {
            let _ = self.ended.send(());
        }
    }
    fn engine_lost(&mut self, reason: &str) {
        panic!("lost: {reason}");
    }
}

#[test]
fn an_aborted_request_frees_its_pages_within_one_step() {
    let (backend, rig) = Rigged::new(null::backend());
    let (log, (ended, ends)) = (Log::default(), channel());
    let sink = Box::new(Logging { log: log.clone(), ended });
    let options = EngineOptions::default();
    let running =
        engine_core::engine::start(backend, &null::config(LEN), &SOURCE, &options, sink, &|_| {}).unwrap();
    rig.plant(40, Fault::Hang);
    let request = |id| Request {
        id: RequestId(id),
        prompt: [11; 100].as_slice().into(),
        params: params(3_000),
        priority: 0,
        cache_salt: None,
        arrival: Instant::now(),
    };
    running.handle.submit(request(1)).unwrap();
    until("the hang", || rig.counts().waits == 41);
    let before = running.handle.figures().last_step;
    assert!(before.kv_pages_used >= 8, "{before:?}");
    running.handle.abort(RequestId(1));
    rig.mend();
    ends.recv_timeout(Duration::from_secs(20)).unwrap();
    let log = log.lock().unwrap();
    let (stats, rows) = log.iter().find(|(_, rows)| rows.iter().any(|r| r.1.is_some())).unwrap();
    assert_eq!(rows.as_slice(), [(RequestId(1), Some(FinishReason::Abort))]);
    assert_eq!((stats.running, stats.kv_pages_used), (0, 0));
    assert!(stats.steps <= before.steps + 1, "{} steps after {}", stats.steps, before.steps);
    running.handle.stop();
}

/// The engine breaks in the middle of running and waiting requests.
fn check_loss(fault: Fault, reason: &str) {
    for steps_in_flight in [1, 2] {
        let options = EngineOptions { max_num_seqs: Some(4), steps_in_flight, ..EngineOptions::default() };
        let (e, rig) = engine(&options);
        rig.plant(30, Fault::Hang);
        let short = e.submit(&[11, 12], params(5));
        let ids: Vec<_> = (0..20).map(|_| e.submit(&[11, 12], params(4_000))).collect();
        until("the hang", || rig.counts().waits == 31);
        rig.plant(0, fault);
        let (got, why) = e.wait_lost(&[vec![short], ids].concat());
        assert!(why.contains(reason), "{why}");
        assert_eq!(got[0].finish, Some(FinishReason::Length), "it ended before the loss");
        for g in &got[1..] {
            assert_eq!((g.ends, g.finish), (1, Some(FinishReason::Error(EngineFailure::DeviceLost))));
        }
        assert_eq!(e.running.handle.state(), EngineState::Lost);
        assert_eq!(e.try_submit(&[11], params(1), 0), Err(Refused::NotRunning));
        assert_eq!(e.running.handle.stalled_for(), None, "it is dead, not slow");
    }
}

#[test]
fn a_lost_device_ends_every_request_once() {
    check_loss(Fault::DeviceLost, "the rig pulled its plug");
}

#[test]
fn a_panic_of_the_engine_thread_ends_every_request_once() {
    check_loss(Fault::Panic, "the engine thread panicked: the rig panics");
}

#[test]
fn a_hung_step_shows_as_a_stall_and_idling_does_not() {
    let (e, rig) = engine(&EngineOptions::default());
    assert_eq!(e.running.handle.stalled_for(), None);
    rig.plant(0, Fault::Hang);
    let id = e.submit(&[11, 12], params(20));
    let stalled = |ms| e.running.handle.stalled_for().is_some_and(|d| d >= Duration::from_millis(ms));
    until("a stall", || stalled(30));
    rig.mend();
    assert_eq!(e.wait(&[id])[0].ends, 1);
    until("idling", || e.running.handle.stalled_for().is_none());
}

#[test]
fn dropping_every_handle_ends_the_thread() {
    let (backend, _) = Rigged::new(null::backend());
    let sink = Box::new(tests::engine::Collector::default());
    let options = EngineOptions::default();
    let running =
        engine_core::engine::start(backend, &null::config(LEN), &SOURCE, &options, sink, &|_| {}).unwrap();
    let thread = running.thread;
    drop(running.handle);
    thread.join().unwrap();
}
