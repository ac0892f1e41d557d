//! Who answers `chat` and `complete`: a server, or the engine in this process. Both get the same JSON body and
//! answer with the same events; in process the endpoint's own handler is called, without a socket.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, header};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use ureq::tls::TlsConfig;

use super::events::{Delta, EventReader, error_text};
use crate::cli::{LogFormat, Secret, Target};
use crate::hub::{HubConfig, root_certs};
use crate::local::Local;
use crate::model::StartError;
use crate::openai;

/// An endpoint that streams text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
}

/// Takes requests.
pub enum Answerer {
    Server(Server),
    Local(Box<Local>),
}

/// A server that speaks OpenAI's API.
pub struct Server {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    model: String,
    runtime: Runtime,
}

/// One answer on its way.
pub struct Answer {
    source: Source,
    events: EventReader,
}

enum Source {
    Local(Body),
    Server(mpsc::Receiver<Result<Bytes, String>>),
}

/// Longest error body that is read.
const MAX_ERROR_BYTES: u64 = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Answerer {
    /// Connects to the server, or loads the model.
    ///
    /// # Errors
    /// The server cannot be reached or names no model; the model cannot be loaded.
    pub fn open(target: &Target, log: LogFormat) -> Result<Self, StartError> {
        match target {
            Target::Server { url, api_key, model_name } => {
                Ok(Answerer::Server(Server::open(url, api_key.as_ref(), model_name.clone())?))
            }
            Target::InProcess(engine) => {
                super::refuse_null(engine)?;
                Ok(Answerer::Local(Box::new(Local::start(engine, log)?)))
            }
        }
    }

    /// Name of the model that answers.
    pub fn model(&self) -> &str {
        match self {
            Answerer::Server(server) => &server.model,
            Answerer::Local(local) => local.state.model_name(),
        }
    }

    /// Where it runs, in words.
    pub fn place(&self) -> &str {
        match self {
            Answerer::Server(server) => &server.url,
            Answerer::Local(local) => &local.engine.report.device_name,
        }
    }

    /// The runtime that [`Answerer::ask`] runs on.
    pub fn runtime(&self) -> &Runtime {
        match self {
            Answerer::Server(server) => &server.runtime,
            Answerer::Local(local) => local.runtime(),
        }
    }

    /// Sends a body; model name and streaming are added.
    ///
    /// # Errors
    /// What the endpoint answers in place of a stream, or why there was no answer.
    pub async fn ask(&self, endpoint: Endpoint, mut body: Map<String, Value>) -> Result<Answer, String> {
        body.insert("model".to_owned(), self.model().into());
        body.insert("stream".to_owned(), true.into());
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        let body = Value::Object(body).to_string();
        let source = match self {
            Answerer::Server(server) => Source::Server(server.post(endpoint, body).await?),
            Answerer::Local(local) => Source::Local(post_here(local, endpoint, body).await?),
        };
        Ok(Answer { source, events: EventReader::default() })
    }
}

async fn post_here(local: &Local, endpoint: Endpoint, body: String) -> Result<Body, String> {
    let request = Request::post("/")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|e| e.to_string())?;
    let state = State(local.state.clone());
    let response = match endpoint {
        Endpoint::Chat => openai::chat::handle(state, request).await,
        Endpoint::Completions => openai::completions::handle(state, request).await,
    };
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    let status = response.status().as_u16();
    let text = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    Err(error_text(status, &text))
}

impl Answer {
    /// The next piece; `None` at the end. Dropping an answer before its end stops it.
    ///
    /// # Errors
    /// The engine or the connection failed in mid-answer.
    pub async fn next(&mut self) -> Option<Result<Delta, String>> {
        loop {
            if let Some(delta) = self.events.next() {
                return Some(delta);
            }
            if self.events.is_done() {
                return None;
            }
            match self.chunk().await {
                Some(Ok(bytes)) => self.events.push(&bytes),
                Some(Err(e)) => return Some(Err(e)),
                None => return Some(Err("the answer broke off".to_owned())),
            }
        }
    }

    async fn chunk(&mut self) -> Option<Result<Bytes, String>> {
        match &mut self.source {
            Source::Server(chunks) => chunks.recv().await,
            Source::Local(body) => loop {
                match body.frame().await? {
                    Ok(frame) => {
                        if let Ok(bytes) = frame.into_data() {
                            return Some(Ok(bytes));
                        }
                    }
                    Err(e) => return Some(Err(e.to_string())),
                }
            },
        }
    }
}

impl Server {
    fn open(url: &str, key: Option<&Secret>, model: Option<String>) -> Result<Self, StartError> {
        let roots = root_certs(&HubConfig::from_env())?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("pallium/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .build()
            .into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let key = key.map(|k| k.expose().to_owned());
        let mut server = Server { agent, url: url.to_owned(), key, model: String::new(), runtime };
        server.model = match model {
            Some(model) => model,
            None => server.first_model().map_err(|e| StartError::new(format!("{url}: {e}")))?,
        };
        Ok(server)
    }

    fn first_model(&self) -> Result<String, String> {
        let mut request = self.agent.get(format!("{}/models", self.url));
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let response = request.call().map_err(|e| e.to_string())?;
        let status = response.status();
        let text = read_all(response)?;
        if !status.is_success() {
            return Err(error_text(status.as_u16(), &text));
        }
        let models: Value = serde_json::from_slice(&text).unwrap_or_default();
        let name = models.pointer("/data/0/id").and_then(Value::as_str);
        name.map(str::to_owned).ok_or_else(|| "/models names no model; give one with --model-name".to_owned())
    }

    /// Sends on a thread of its own, which reads until the receiver is dropped.
    async fn post(
        &self,
        endpoint: Endpoint,
        body: String,
    ) -> Result<mpsc::Receiver<Result<Bytes, String>>, String> {
        let path = match endpoint {
            Endpoint::Chat => "chat/completions",
            Endpoint::Completions => "completions",
        };
        let mut request =
            self.agent.post(format!("{}/{path}", self.url)).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let (started, start) = tokio::sync::oneshot::channel();
        let (sender, receiver) = mpsc::channel(16);
        let url = self.url.clone();
        let work = move || match connect(request, body) {
            Ok(reader) => {
                if started.send(Ok(())).is_ok() {
                    pump(reader, &sender);
                }
            }
            Err(e) => drop(started.send(Err(format!("{url}: {e}")))),
        };
        std::thread::Builder::new().name("answer".to_owned()).spawn(work).map_err(|e| e.to_string())?;
        start.await.map_err(|_| "the connection failed".to_owned())??;
        Ok(receiver)
    }
}

fn connect(
    request: ureq::RequestBuilder<ureq::typestate::WithBody>,
    body: String,
) -> Result<impl std::io::Read, String> {
    let response = request.send(body).map_err(|e| e.to_string())?;
    let status = response.status();
    if status.is_success() {
        return Ok(response.into_body().into_reader());
    }
    Err(error_text(status.as_u16(), &read_all(response)?))
}

fn read_all(response: ureq::http::Response<ureq::Body>) -> Result<Vec<u8>, String> {
    response.into_body().into_with_config().limit(MAX_ERROR_BYTES).read_to_vec().map_err(|e| e.to_string())
}

fn pump(mut reader: impl std::io::Read, sender: &mpsc::Sender<Result<Bytes, String>>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let chunk = match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => Ok(Bytes::copy_from_slice(&buffer[..n])),
            Err(e) => Err(e.to_string()),
        };
        let failed = chunk.is_err();
        if sender.blocking_send(chunk).is_err() || failed {
            return;
        }
    }
}
