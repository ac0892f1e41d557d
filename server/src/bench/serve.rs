//! `pallium bench serve`: load on a running server, and what its clients experience. Flags, printed block and
//! JSON keys are those of `vllm bench serve`.
//!
//! One thread, one task per request, its own HTTP/1.1 client: the load generator must not eat the cores it
//! shares with the server it measures.

mod arrivals;
mod body;
mod connection;
mod dataset;
mod report;
pub(super) mod rng;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

pub use report::Report;

use crate::cli::BenchServeArgs;
use body::RequestWriter;
use connection::{Connection, Endpoint, Reply};
use dataset::Sample;

/// Idle connections kept for the next request.
type Pool = Rc<RefCell<Vec<Connection>>>;

/// Runs the bench and prints its block; writes the result file when asked for.
///
/// # Errors
/// One sentence: the server cannot be reached, does not know the model, or a file cannot be read or written.
pub fn run(args: &BenchServeArgs) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime for the load client: {e}"))?;
    let report = LocalSet::new().block_on(&runtime, bench(args))?;
    print!("{}", report.text(args));
    report.save(args)?;
    Ok(report)
}

async fn bench(args: &BenchServeArgs) -> Result<Report, String> {
    let endpoint = Endpoint::parse(&args.base_url)?;
    wait_until_ready(args, &endpoint).await?;
    let model = model_name(args, &endpoint).await?;
    let samples = dataset::load(args, &endpoint, &model).await?;
    let writer = RequestWriter::new(args, &endpoint, &model);
    let client =
        Rc::new(Client { endpoint, pool: Pool::default(), open: Cell::new(0), most_open: Cell::new(0) });
    for sample in samples.iter().cycle().take(args.num_warmups as usize) {
        let outcome = client.send(&writer.request(sample)).await;
        if let Some(error) = outcome.reply.error {
            return Err(format!("the warm-up request failed: {error}"));
        }
    }
    client.most_open.set(0);
    let (outcomes, duration) = drive(args, &client, &writer, &samples).await;
    Ok(Report::new(model, &samples, outcomes, duration, client.most_open.get()))
}

/// Sends every request at its time and gathers the outcomes in order.
async fn drive(
    args: &BenchServeArgs,
    client: &Rc<Client>,
    writer: &RequestWriter,
    samples: &[Sample],
) -> (Vec<Outcome>, Duration) {
    let times = arrivals::times(args, samples.len());
    let slots =
        Arc::new(Semaphore::new(args.max_concurrency.map_or(Semaphore::MAX_PERMITS, |c| c.max(1) as usize)));
    let progress = progress_bar(args, samples.len());
    let requests: Vec<Vec<u8>> = samples.iter().map(|s| writer.request(s)).collect();
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(samples.len());
    for (request, at) in requests.into_iter().zip(times) {
        let due = start + at;
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        // With a bound, waiting here rather than in the task keeps the number of tasks bounded as well.
        let slot = slots.clone().acquire_owned().await;
        let (client, progress) = (client.clone(), progress.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let outcome = client.send(&request).await;
            drop(slot);
            progress.inc(1);
            outcome
        }));
    }
    let mut outcomes = Vec::with_capacity(tasks.len());
    for task in tasks {
        outcomes.push(task.await.unwrap_or_else(|e| Outcome::failed(Instant::now(), e.to_string())));
    }
    let duration = start.elapsed();
    progress.finish_and_clear();
    (outcomes, duration)
}

/// What became of one request.
#[derive(Debug)]
pub struct Outcome {
    start: Instant,
    reply: Reply,
}

impl Outcome {
    fn failed(start: Instant, error: String) -> Outcome {
        Outcome { start, reply: Reply { error: Some(error), ..Reply::default() } }
    }
}

struct Client {
    endpoint: Endpoint,
    pool: Pool,
    open: Cell<u32>,
    most_open: Cell<u32>,
}

impl Client {
    /// Sends one request over an idle connection, or a new one.
    async fn send(&self, request: &[u8]) -> Outcome {
        let start = Instant::now();
        self.open.set(self.open.get() + 1);
        self.most_open.set(self.most_open.get().max(self.open.get()));
        let outcome = match self.exchange(request).await {
            Ok(reply) => Outcome { start, reply },
            Err(error) => Outcome::failed(start, error),
        };
        self.open.set(self.open.get() - 1);
        outcome
    }

    async fn exchange(&self, request: &[u8]) -> Result<Reply, String> {
        let idle = self.pool.borrow_mut().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => Connection::open(&self.endpoint).await?,
        };
        let reply = connection.exchange(request).await?;
        if connection.reusable() {
            self.pool.borrow_mut().push(connection);
        }
        Ok(reply)
    }
}

async fn wait_until_ready(args: &BenchServeArgs, endpoint: &Endpoint) -> Result<(), String> {
    let limit = Duration::from_secs(u64::from(args.ready_check_timeout_s));
    if limit.is_zero() {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        match endpoint.get("/health", args).await {
            Ok(_) => return Ok(()),
            Err(e) if start.elapsed() > limit => return Err(format!("the server is not ready: {e}")),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

async fn model_name(args: &BenchServeArgs, endpoint: &Endpoint) -> Result<String, String> {
    if let Some(name) = args.served_model_name.as_ref().or(args.model.as_ref()) {
        return Ok(name.clone());
    }
    let models = endpoint.get("/v1/models", args).await?;
    let name = models.pointer("/data/0/id").and_then(Value::as_str);
    name.map(str::to_string).ok_or_else(|| "/v1/models names no model; give one with --model".to_string())
}

fn progress_bar(args: &BenchServeArgs, count: usize) -> indicatif::ProgressBar {
    use std::io::IsTerminal;
    if args.disable_progress || !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    indicatif::ProgressBar::new(count as u64)
}
