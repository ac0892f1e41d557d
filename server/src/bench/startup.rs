//! `pallium bench startup`: this very program as `serve`, from the start of its process to its first token, with
//! cold and with warm files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::statistics::{mean, percentile};
use crate::cli::BenchStartupArgs;
use crate::cli::progress::Progress;
use crate::model::{OpenModel, StartError, TemplateOptions};

const PERCENTILES: [u32; 6] = [10, 25, 50, 75, 90, 99];
/// How long one start may take.
const LONGEST: Duration = Duration::from_secs(1800);
/// Lines of a server's log that are shown when it does not start.
const LAST_LINES: usize = 5;

/// Measures, prints, and writes the file of `--output-json`.
///
/// # Errors
/// The model cannot be found, or a server does not start: with the end of its log.
pub fn run(args: &BenchStartupArgs) -> Result<(), StartError> {
    // Found, and downloaded if need be, before any clock runs.
    let model = OpenModel::open(&args.engine, TemplateOptions::default(), args.logging.format)?;
    let files = files_of(&model.dir)?;
    let total = u64::from(args.num_iters_cold) + u64::from(args.num_iters_warm);
    let bar = Progress::steps("Starts", total, args.logging.format);
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..args.num_iters_cold {
        files.iter().try_for_each(|file| evict(file))?;
        cold.push(start_once(args)?);
        bar.advance(1);
    }
    if args.num_iters_warm > 0 && cold.is_empty() {
        start_once(args)?;
    }
    for _ in 0..args.num_iters_warm {
        warm.push(start_once(args)?);
        bar.advance(1);
    }
    bar.finish();
    let figures = [("cold", cold), ("warm", warm)];
    std::io::stdout().write_all(text(&figures).as_bytes())?;
    super::save(args.output_json.as_deref(), &json_of(&figures))
}

/// Seconds since the process was started.
struct Start {
    /// Until the server said that it listens.
    ready_s: f64,
    /// Until a request of one token was answered.
    first_token_s: f64,
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>, StartError> {
    let about = |e: std::io::Error| StartError::new(format!("{}: {e}", dir.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(about)? {
        let path = entry.map_err(about)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// Takes a file out of the page cache.
fn evict(path: &Path) -> Result<(), StartError> {
    let about = |e: std::io::Error| StartError::new(format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(about)?;
    // What is not on the disk yet stays in the cache.
    file.sync_all().map_err(about)?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| about(e.into()))?;
    Ok(())
}

/// A server that ends with its measurement.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_once(args: &BenchStartupArgs) -> Result<Start, StartError> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    // The flags of this bench would otherwise reach the server as well.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PALLIUM_") {
            command.env_remove(name);
        }
    }
    command.envs(args.serve_variables.iter().map(|(name, value)| (name, value.expose())));
    command.args(["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "text"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut server = Server(command.spawn()?);
    let lines = server.0.stderr.take().map(read_lines).ok_or_else(|| StartError::new("no log to read"))?;
    let url = address(&lines)?;
    let ready_s = start.elapsed().as_secs_f64();
    ask_one_token(&url)?;
    Ok(Start { ready_s, first_token_s: start.elapsed().as_secs_f64() })
}

/// Reads to the end, so that the server never writes to a closed pipe.
fn read_lines(log: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// The row of the start-up table.
fn address(lines: &Receiver<String>) -> Result<String, StartError> {
    let mut last = VecDeque::new();
    let give_up = Instant::now() + LONGEST;
    while let Ok(line) = lines.recv_timeout(give_up.saturating_duration_since(Instant::now())) {
        if let Some(url) = line.trim().strip_prefix("address ") {
            return Ok(url.trim().to_owned());
        }
        last.push_back(line);
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    }
    let log: Vec<String> = last.into();
    Err(StartError::new(format!("the server did not start: {}", log.join("; "))))
}

fn ask_one_token(url: &str) -> Result<(), StartError> {
    let about = |what: String| StartError::new(format!("{url}: {what}"));
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(LONGEST))
        .build()
        .into();
    let body = json!({"prompt": "Hello", "max_tokens": 1, "temperature": 0}).to_string();
    let response = agent
        .post(format!("{url}/v1/completions"))
        .header("Content-Type", "application/json")
        .send(body)
        .map_err(|e| about(e.to_string()))?;
    let status = response.status();
    let text = response.into_body().read_to_string().map_err(|e| about(e.to_string()))?;
    if status.is_success() { Ok(()) } else { Err(about(text)) }
}

fn text(figures: &[(&str, Vec<Start>)]) -> String {
    let mut text = String::new();
    for (name, starts) in figures.iter().filter(|f| !f.1.is_empty()) {
        let ready: Vec<f64> = starts.iter().map(|s| s.ready_s).collect();
        let first: Vec<f64> = starts.iter().map(|s| s.first_token_s).collect();
        text.push_str(&format!(
            "{} starts: {} ({} files)\n",
            if *name == "cold" { "Cold" } else { "Warm" },
            starts.len(),
            if *name == "cold" { "evicted" } else { "cached" }
        ));
        text.push_str(&format!("Avg time to ready: {:.3} seconds\n", mean(&ready)));
        text.push_str(&format!("Avg time to first token: {:.3} seconds\n", mean(&first)));
        for p in PERCENTILES {
            let seconds = percentile(&first, f64::from(p));
            text.push_str(&format!("{p}% percentile time to first token: {seconds:.3} seconds\n"));
        }
    }
    text
}

fn json_of(figures: &[(&str, Vec<Start>)]) -> Value {
    let mut map = Map::new();
    for (name, starts) in figures.iter().filter(|f| !f.1.is_empty()) {
        let ready: Vec<f64> = starts.iter().map(|s| s.ready_s).collect();
        let first: Vec<f64> = starts.iter().map(|s| s.first_token_s).collect();
        let percentiles: Map<String, Value> =
            PERCENTILES.iter().map(|p| (p.to_string(), percentile(&first, f64::from(*p)).into())).collect();
        map.insert(format!("avg_{name}_startup_time"), mean(&first).into());
        map.insert(format!("{name}_startup_times"), json!(first));
        map.insert(format!("{name}_startup_percentiles"), percentiles.into());
        map.insert(format!("avg_{name}_ready_time"), mean(&ready).into());
        map.insert(format!("{name}_ready_times"), json!(ready));
    }
    map.into()
}
