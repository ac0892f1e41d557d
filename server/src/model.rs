//! A model made ready for serving: found, its configuration read, its tokenizer and templates loaded. No weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::DType;
use engine_core::config::{GenerationConfig as GenerationFile, ModelConfig};
use engine_core::loader::gguf_model::GgufModel;
use engine_core::loader::source::{DummySource, WeightSource};
use engine_core::loader::{Checkpoint, LoadFormat as FileFormat};
use engine_core::quant::at_load::{LoadQuantization, QuantizingSource};
use engine_core::quant::checkpoint::{Method, QuantizedCheckpoint};
use serde_json::{Map, Value};

use crate::chat::content::ContentFormatOption;
use crate::chat::template::source::{ChatTemplates, TemplateSources, special_tokens};
use crate::cli::progress::Progress;
use crate::cli::{ContentFormat, EngineArgs, GenerationConfig, LoadFormat, LogFormat};
use crate::client::mock::bytes::ByteCodec;
use crate::demo;
use crate::gguf;
use crate::hub::{self, Event, HubConfig, Resolved};
use crate::openai::chat::ChatSetup;
use crate::openai::codec::Codec;
use crate::text::codec::TokenizerCodec;
use crate::text::tokenizer::{Tokenizer, TokenizerError};

/// Why a command could not start: one sentence that names the thing, its value and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    /// From a sentence.
    pub fn new(text: impl Into<String>) -> Self {
        StartError(text.into())
    }
}

macro_rules! start_error_from {
    ($($error:ty),+) => { $(impl From<$error> for StartError {
        fn from(e: $error) -> Self { StartError(e.to_string()) }
    })+ };
}
start_error_from!(
    engine_core::Error,
    hub::HubError,
    TokenizerError,
    crate::chat::template::TemplateError,
    crate::http::BindError,
    std::io::Error
);

/// A model without its weights.
pub struct OpenModel {
    pub dir: PathBuf,
    /// The GGUF file it is, if it is one.
    pub gguf: Option<Arc<GgufModel>>,
    /// Names the API answers to; at least one.
    pub names: Vec<String>,
    /// Where it came from, as given.
    pub root: String,
    pub config: ModelConfig,
    pub generation: GenerationFile,
    pub codec: Arc<dyn Codec>,
    pub chat: Option<ChatSetup>,
}

/// How the chat template is chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct TemplateOptions<'a> {
    /// `--chat-template`
    pub template: Option<&'a str>,
    /// `--chat-template-content-format`
    pub format: Option<ContentFormat>,
}

impl OpenModel {
    /// Finds the model (downloading it when it is a hub id that is not in the cache) and reads all but its weights.
    /// Without a model it is the bundled one.
    ///
    /// # Errors
    /// Anything missing, damaged or contradictory, by name.
    pub fn open(
        args: &EngineArgs,
        template: TemplateOptions<'_>,
        log: LogFormat,
    ) -> Result<Self, StartError> {
        let (dir, root, name) = locate(args, log)?;
        if dir.extension().is_some_and(|e| e == "gguf") {
            return Self::open_gguf(args, template, log, &dir, root, name);
        }
        let config_dir = match &args.hf_config_path {
            Some(path) => resolve(args, path, None, LoadFormat::Dummy, log)?.dir,
            None => dir.clone(),
        };
        let overrides = (!args.hf_overrides.is_empty()).then_some(&args.hf_overrides);
        let config = ModelConfig::from_dir(&config_dir, overrides)?;
        let generation = generation(args, &dir)?;
        let tokenizer_dir = tokenizer_dir(args, &dir, log)?;
        let codec = codec(args, &tokenizer_dir, &config)?;
        let chat = chat_setup(&tokenizer_dir, template)?;
        let names =
            if args.served_model_name.is_empty() { vec![name] } else { args.served_model_name.clone() };
        Ok(OpenModel { dir, gguf: None, names, root, config, generation, codec, chat })
    }

    /// Finds a model that only drafts, whose text nobody sees: no tokenizer, no templates.
    ///
    /// # Errors
    /// As [`OpenModel::open`].
    pub fn open_draft(args: &EngineArgs, log: LogFormat) -> Result<Self, StartError> {
        let (dir, root, name) = locate(args, log)?;
        let is_gguf = dir.extension().is_some_and(|e| e == "gguf");
        let gguf = if is_gguf { Some(Arc::new(GgufModel::open(&dir)?)) } else { None };
        let config = match &gguf {
            Some(model) => ModelConfig::from_json(model.config()?)?,
            None => ModelConfig::from_dir(&dir, None)?,
        };
        let generation = GenerationFile::from_json(&Map::new())?;
        let codec = Arc::new(ByteCodec);
        Ok(OpenModel { dir, gguf, names: vec![name], root, config, generation, codec, chat: None })
    }

    fn open_gguf(
        args: &EngineArgs,
        template: TemplateOptions<'_>,
        log: LogFormat,
        path: &Path,
        root: String,
        name: String,
    ) -> Result<Self, StartError> {
        let model = GgufModel::open(path)?;
        let dir = path.parent().unwrap_or(Path::new(".")).to_owned();
        let config = match &args.hf_config_path {
            Some(path) => {
                let dir = resolve(args, path, None, LoadFormat::Dummy, log)?.dir;
                ModelConfig::from_dir(&dir, Some(&args.hf_overrides))?
            }
            None => {
                let mut map = model.config()?;
                engine_core::config::apply_overrides(&mut map, &args.hf_overrides);
                ModelConfig::from_json(map)?
            }
        };
        let mut generation = generation(args, &dir)?;
        generation.eos_token_ids.extend(gguf::end_ids(model.metadata()));
        let (codec, chat): (Arc<dyn Codec>, _) = match &args.tokenizer {
            Some(_) => {
                let dir = tokenizer_dir(args, &dir, log)?;
                (codec(args, &dir, &config)?, chat_setup(&dir, template)?)
            }
            None => {
                let tokenizer = Tokenizer::from_gguf(model.metadata())?;
                tokenizer.check_fits(config.vocab_size as usize)?;
                let sources = match template.template {
                    Some(flag) => TemplateSources::of_flag(flag)?,
                    None => TemplateSources::of_named(gguf::templates(model.metadata())),
                };
                let chat = compiled(&sources, gguf::special_tokens(model.metadata()), template.format)?;
                (Arc::new(TokenizerCodec::new(Arc::new(tokenizer))), chat)
            }
        };
        let names =
            if args.served_model_name.is_empty() { vec![name] } else { args.served_model_name.clone() };
        let gguf = Some(Arc::new(model));
        Ok(OpenModel { dir: path.to_owned(), gguf, names, root, config, generation, codec, chat })
    }

    /// Ids that end an answer: of config.json and of generation_config.json.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        let mut ids = self.config.eos_token_ids.clone();
        ids.extend(&self.generation.eos_token_ids);
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| *id < self.config.vocab_size);
        ids
    }

    /// Where the weights come from.
    ///
    /// # Errors
    /// Missing or damaged weight files, by name.
    pub fn weights(&self, args: &EngineArgs) -> Result<Box<dyn WeightSource>, StartError> {
        let asked = args.quantization.as_deref();
        if let Some(gguf) = &self.gguf {
            if let Some(other) = asked.filter(|name| *name != "gguf") {
                return Err(StartError::new(format!(
                    "--quantization {other}: {} is a GGUF file, whose weights are read as they are; leave the flag out",
                    self.root
                )));
            }
            return Ok(Box::new(gguf.clone()));
        }
        if args.load_format == LoadFormat::Dummy {
            let dtype = self.config.dtype.unwrap_or(DType::Bf16);
            let dummy = DummySource { seed: args.seed, std: self.config.initializer_range, dtype };
            return quantized_at_load(Box::new(dummy), asked);
        }
        let method = Method::of(&self.config)?;
        let checkpoint = Checkpoint::open(&self.dir, file_format(args.load_format))?;
        match (method, asked) {
            (None, _) => quantized_at_load(Box::new(checkpoint), asked),
            (Some(method), Some(other)) if !method.is_named(other) => Err(StartError::new(format!(
                "--quantization {other}: {} is quantized by {}; leave the flag out",
                self.root,
                method.name()
            ))),
            (Some(method), _) => Ok(Box::new(QuantizedCheckpoint::new(checkpoint, method))),
        }
    }
}

fn quantized_at_load(
    plain: Box<dyn WeightSource>,
    asked: Option<&str>,
) -> Result<Box<dyn WeightSource>, StartError> {
    let Some(name) = asked else { return Ok(plain) };
    let to = LoadQuantization::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = LoadQuantization::ALL.iter().map(|(name, _)| *name).collect();
        StartError::new(format!(
            "--quantization {name}: the model's weights are plain; at load they become one of {}",
            known.join(", ")
        ))
    })?;
    Ok(Box::new(QuantizingSource::new(plain, to)))
}

/// A directory that holds a GGUF file and no Hugging Face model, or is said to hold one.
fn is_gguf_directory(args: &EngineArgs, model: &str) -> bool {
    let dir = Path::new(model);
    let bare = !dir.join("config.json").is_file() && gguf::file_in(dir, None).is_ok();
    dir.is_dir() && (args.load_format == LoadFormat::Gguf || (args.load_format == LoadFormat::Auto && bare))
}

fn locate(args: &EngineArgs, log: LogFormat) -> Result<(PathBuf, String, String), StartError> {
    match &args.model {
        Some(model) if gguf::is_gguf_path(model) => {
            let name =
                Path::new(model).file_stem().map_or(model.clone(), |s| s.to_string_lossy().into_owned());
            Ok((PathBuf::from(model), model.clone(), name))
        }
        Some(model) if let Some((id, quant)) = gguf::repository_and_quant(model) => {
            let request =
                hub::Request { model: id, revision: args.revision.as_deref(), format: FileFormat::Gguf };
            let bar = DownloadBar::new(model, log);
            let found = |dir: &Path| gguf::file_in(dir, Some(quant)).is_ok();
            let config = hub_config(args);
            let resolved =
                hub::resolve_files(&request, &gguf::globs(quant), &config, &found, &|event| bar.on(event));
            bar.finish();
            Ok((gguf::file_in(&resolved?.dir, Some(quant))?, model.clone(), model.clone()))
        }
        Some(model) if is_gguf_directory(args, model) => {
            Ok((gguf::file_in(Path::new(model), None)?, model.clone(), model.clone()))
        }
        Some(model) => {
            let dir = resolve(args, model, args.revision.as_deref(), args.load_format, log)?.dir;
            Ok((dir, model.clone(), model.clone()))
        }
        None => Ok((demo::directory()?, demo::NAME.to_owned(), demo::NAME.to_owned())),
    }
}

/// The model's own tokenizer, or the one of `--tokenizer` and `--tokenizer-revision`.
fn tokenizer_dir(args: &EngineArgs, dir: &Path, log: LogFormat) -> Result<PathBuf, StartError> {
    let revision = args.tokenizer_revision.as_deref();
    match (&args.tokenizer, &args.model, revision) {
        (Some(tokenizer), _, _) => Ok(resolve(args, tokenizer, revision, LoadFormat::Dummy, log)?.dir),
        (None, Some(model), Some(_)) => Ok(resolve(args, model, revision, LoadFormat::Dummy, log)?.dir),
        _ => Ok(dir.to_owned()),
    }
}

fn file_format(format: LoadFormat) -> FileFormat {
    match format {
        LoadFormat::Auto | LoadFormat::BitsAndBytes => FileFormat::Auto,
        LoadFormat::Safetensors => FileFormat::Safetensors,
        LoadFormat::Pt => FileFormat::Pt,
        LoadFormat::Gguf => FileFormat::Gguf,
        LoadFormat::Dummy => FileFormat::Dummy,
    }
}

/// The hub as environment and flags describe it.
pub fn hub_config(args: &EngineArgs) -> HubConfig {
    let mut config = HubConfig::from_env();
    if let Some(token) = &args.hf_token {
        config.token = Some(token.expose().to_owned());
    }
    if let Some(dir) = &args.download_dir {
        config.cache = dir.clone();
    }
    config
}

fn resolve(
    args: &EngineArgs,
    model: &str,
    revision: Option<&str>,
    format: LoadFormat,
    log: LogFormat,
) -> Result<Resolved, StartError> {
    let request = hub::Request { model, revision, format: file_format(format) };
    let bar = DownloadBar::new(model, log);
    let resolved = hub::resolve(&request, &hub_config(args), &|event| bar.on(event));
    bar.finish();
    Ok(resolved?)
}

/// A progress bar that follows a download.
pub struct DownloadBar {
    label: String,
    log: LogFormat,
    bar: std::sync::OnceLock<Progress>,
}

impl DownloadBar {
    /// Shown from the first event on, on a terminal.
    pub fn new(model: &str, log: LogFormat) -> Self {
        DownloadBar { label: format!("Downloading {model}"), log, bar: std::sync::OnceLock::new() }
    }

    /// Takes the bar off the terminal.
    pub fn finish(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish();
        }
    }

    /// Takes one event of the hub.
    pub fn on(&self, event: Event<'_>) {
        match event {
            Event::Planned { total_bytes, resumed_bytes, .. } => {
                let bar = self.bar.get_or_init(|| Progress::bytes(self.label.clone(), total_bytes, self.log));
                bar.advance(resumed_bytes);
            }
            Event::Bytes(n) => {
                if let Some(bar) = self.bar.get() {
                    bar.advance(n);
                }
            }
            Event::Retry { path, reason } => tracing::warn!("{path}: {reason}; trying again"),
            Event::Discarded(_) | Event::FileDone { .. } => {}
        }
    }
}

fn generation(args: &EngineArgs, dir: &Path) -> Result<GenerationFile, StartError> {
    let file = match &args.generation_config {
        GenerationConfig::Auto => Some(dir.to_owned()),
        GenerationConfig::Path(path) => Some(path.clone()),
        GenerationConfig::Neutral => None,
    };
    let file = file.map(|d| d.join("generation_config.json"));
    let asked_for = matches!(args.generation_config, GenerationConfig::Path(_));
    let mut values = match file {
        Some(path) if path.exists() => engine_core::config::read_json(&path)?,
        Some(path) if asked_for => {
            return Err(StartError::new(format!(
                "--generation-config: {} is not there; give a directory that has one, auto or vllm",
                path.display()
            )));
        }
        _ => Map::new(),
    };
    for (key, value) in &args.override_generation_config {
        values.insert(key.clone(), value.clone());
    }
    Ok(GenerationFile::from_json(&values)?)
}

/// The checkpoint's tokenizer. Random weights of a bare config.json have none: bytes stand in for it.
fn codec(args: &EngineArgs, dir: &Path, config: &ModelConfig) -> Result<Arc<dyn Codec>, StartError> {
    match Tokenizer::from_directory(dir) {
        Ok(tokenizer) => {
            tokenizer.check_fits(config.vocab_size as usize)?;
            Ok(Arc::new(TokenizerCodec::new(Arc::new(tokenizer))))
        }
        Err(TokenizerError::Missing { .. }) if args.load_format == LoadFormat::Dummy => {
            tracing::warn!("no tokenizer beside the dummy weights: text is taken as bytes");
            Ok(Arc::new(ByteCodec))
        }
        Err(e) => Err(e.into()),
    }
}

fn chat_setup(dir: &Path, options: TemplateOptions<'_>) -> Result<Option<ChatSetup>, StartError> {
    let sources = match options.template {
        Some(flag) => TemplateSources::of_flag(flag)?,
        None => TemplateSources::of_checkpoint(dir)?,
    };
    if sources.is_empty() {
        return Ok(None);
    }
    compiled(&sources, special_tokens(dir)?, options.format)
}

fn compiled(
    sources: &TemplateSources,
    special_tokens: Map<String, Value>,
    format: Option<ContentFormat>,
) -> Result<Option<ChatSetup>, StartError> {
    if sources.is_empty() {
        return Ok(None);
    }
    let templates = ChatTemplates::compile(sources, &special_tokens)?;
    let format = match format.unwrap_or(ContentFormat::Auto) {
        ContentFormat::Auto => ContentFormatOption::Auto,
        ContentFormat::String => ContentFormatOption::String,
        ContentFormat::Openai => ContentFormatOption::OpenAi,
    };
    let content_format = format.resolve(templates.get(crate::chat::template::source::WithTools::No));
    Ok(Some(ChatSetup { templates: Arc::new(templates), content_format, special_tokens }))
}
