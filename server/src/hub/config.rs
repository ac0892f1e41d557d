//! [`HubConfig`]: the hub's environment variables, read once.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where models come from when HF_ENDPOINT names no other place.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Everything about the hub that the environment decides.
#[derive(Clone)]
pub struct HubConfig {
    /// Without a trailing slash.
    pub endpoint: String,
    /// Directory of `models--org--name` folders.
    pub cache: PathBuf,
    /// Sent to the endpoint only.
    pub token: Option<String>,
    /// Whether the network may not be asked.
    pub offline: bool,
    pub proxy: Option<ureq::Proxy>,
    /// PEM file of the certificate authorities to trust instead of the built-in ones (Mozilla's, so that no system
    /// file is needed); for networks whose proxy reads TLS.
    pub ca_file: Option<PathBuf>,
    /// Pause before the first retry; doubles each time.
    pub retry_pause: Duration,
    /// How long a silent connection is waited for.
    pub read_timeout: Duration,
}

impl HubConfig {
    /// From the process's environment: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, and
    /// what Python's client heeds besides: the usual proxy variables, SSL_CERT_FILE, REQUESTS_CA_BUNDLE.
    pub fn from_env() -> Self {
        let proxy = ureq::Proxy::try_from_env();
        HubConfig { proxy, ..Self::from_lookup(&|name| std::env::var(name).ok()) }
    }

    /// The same from any look-up; without a proxy.
    pub fn from_lookup(var: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let home = hugging_face_home(&set);
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        HubConfig {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            cache: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            token: token(&set, &home),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            proxy: None,
            ca_file: set("SSL_CERT_FILE").or_else(|| set("REQUESTS_CA_BUNDLE")).map(PathBuf::from),
            retry_pause: Duration::from_secs(1),
            read_timeout: Duration::from_secs(30),
        }
    }
}

impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token stays out of logs.
        let token = self.token.as_ref().map(|_| "set");
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &token)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

fn hugging_face_home(set: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(home) = set("HF_HOME") {
        return PathBuf::from(home);
    }
    let user = || PathBuf::from(set("HOME").or_else(|| set("USERPROFILE")).unwrap_or_else(|| ".".to_owned()));
    set("XDG_CACHE_HOME").map_or_else(|| user().join(".cache"), PathBuf::from).join("huggingface")
}

fn token(set: &dyn Fn(&str) -> Option<String>, home: &Path) -> Option<String> {
    let direct = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
    let path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
    let token = direct.or_else(|| std::fs::read_to_string(path).ok())?;
    let token = token.trim();
    // A token that could not stand in a header is no token.
    (!token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())).then(|| token.to_owned())
}

fn is_true(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}
