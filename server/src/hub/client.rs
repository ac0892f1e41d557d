//! The hub's HTTP interface: a listing of a revision's files, a file's checksum and size, a file's bytes.
//!
//! Redirects are followed here rather than by the HTTP library: the token goes to the endpoint only, never on to the
//! storage it redirects to, and the checksum stands in the redirect itself.

use std::time::Duration;

use engine_core::limits::MAX_CONFIG_BYTES;
use serde::Deserialize;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::cache::is_name;
use super::select::is_plain_path;
use super::{HubConfig, HubError, Result};

/// Connections to one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    retry_pause: Duration,
}

/// A revision's commit and files.
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// What the hub says of a file before it is downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    /// Name of the contents in the cache; the sha256 of large files.
    pub etag: String,
    pub bytes: u64,
}

impl Meta {
    /// The contents' sha256 in hexadecimal, where the hub knows it.
    pub fn sha256(&self) -> Option<&str> {
        (self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit())).then_some(&*self.etag)
    }
}

/// A failed request: worth another try, or not.
pub(super) enum Failure {
    Transient(String),
    Final(HubError),
}

/// Which file of which repository a request is about, for messages.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub id: &'a str,
    pub revision: &'a str,
    /// A path, or empty for the repository as a whole.
    pub path: &'a str,
}

/// Tries of a request that makes no progress.
pub(super) const TRIES: u32 = 5;
/// Most redirects of one request.
const MAX_REDIRECTS: u32 = 8;
/// Most files of a repository.
const MAX_FILES: usize = 100_000;

impl Client {
    /// # Errors
    /// [`HubError::Io`] or [`HubError::Authorities`] when the file of certificate authorities is no good.
    pub fn new(config: &HubConfig) -> Result<Self> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(config.proxy.clone())
            .tls_config(TlsConfig::builder().root_certs(root_certs(config)?).build())
            .user_agent(concat!("pallium/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(config.read_timeout))
            .timeout_per_read(Some(config.read_timeout))
            .build()
            .into();
        let (endpoint, token) = (config.endpoint.clone(), config.token.clone());
        Ok(Client { agent, endpoint, token, retry_pause: config.retry_pause })
    }

    /// The commit a revision stands for, and its files.
    pub fn listing(&self, id: &str, revision: &str) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, encode(revision, ""));
        let subject = Subject { id, revision, path: "" };
        let answer: Answer = self.retrying(&url, || {
            let response = self.send(Method::Get { from: 0 }, &url, subject, Redirects::All)?;
            let text = response.into_body().into_with_config().limit(MAX_CONFIG_BYTES).read_to_vec();
            let text = text.map_err(|e| Failure::Transient(e.to_string()))?;
            serde_json::from_slice(&text)
                .map_err(|e| Failure::Final(protocol(&url, format!("no listing: {e}"))))
        })?;
        if !is_name(&answer.sha) || answer.siblings.len() > MAX_FILES {
            return Err(protocol(
                &url,
                format!("{} files at commit {:?}", answer.siblings.len(), answer.sha),
            ));
        }
        let files: Vec<String> = answer.siblings.into_iter().map(|s| s.rfilename).collect();
        match files.iter().find(|path| !is_plain_path(path)) {
            Some(path) => Err(protocol(&url, format!("a file is called {path:?}"))),
            None => Ok(Listing { commit: answer.sha, files }),
        }
    }

    /// Checksum and size of a file.
    pub fn meta(&self, subject: Subject<'_>) -> Result<Meta> {
        let url = self.file_url(subject);
        self.retrying(&url, || {
            let response = self.send(Method::Head, &url, subject, Redirects::UntilLinked)?;
            let get = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            let etag = get("x-linked-etag").or_else(|| get("etag"));
            let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"')).filter(|e| is_name(e));
            let bytes = get("x-linked-size").or_else(|| get("content-length")).and_then(|n| n.parse().ok());
            match (etag, bytes) {
                (Some(etag), Some(bytes)) => Ok(Meta { etag: etag.to_owned(), bytes }),
                _ => Err(Failure::Final(protocol(&url, "the answer has no ETag or no size".to_owned()))),
            }
        })
    }

    /// A file's bytes from `from` on. The server may ignore that and answer 200 with all of them.
    pub fn open(&self, subject: Subject<'_>, from: u64) -> std::result::Result<Response<Body>, Failure> {
        self.send(Method::Get { from }, &self.file_url(subject), subject, Redirects::All)
    }

    /// The address of a file.
    pub fn file_url(&self, s: Subject<'_>) -> String {
        format!("{}/{}/resolve/{}/{}", self.endpoint, s.id, encode(s.revision, ""), encode(s.path, "/"))
    }

    /// Waits before try `n` (from 1): twice as long each time.
    pub fn pause(&self, n: u32) {
        std::thread::sleep(self.retry_pause * 2u32.saturating_pow(n.saturating_sub(1)));
    }

    fn retrying<T>(&self, url: &str, request: impl Fn() -> std::result::Result<T, Failure>) -> Result<T> {
        let mut tries = 1;
        loop {
            match request() {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Transient(reason)) if tries == TRIES => {
                    return Err(HubError::Network { url: url.to_owned(), reason });
                }
                Err(Failure::Transient(_)) => self.pause(tries),
            }
            tries += 1;
        }
    }

    /// One request, through redirects, to an answer of success (or, until linked, to one with a checksum).
    fn send(
        &self,
        method: Method,
        url: &str,
        subject: Subject<'_>,
        redirects: Redirects,
    ) -> std::result::Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(method, &url).map_err(|e| failure(&url, e))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(self.refusal(subject, &url, &response));
            }
            let linked =
                ["x-linked-etag", "x-linked-size"].iter().all(|h| response.headers().contains_key(*h));
            if redirects == Redirects::UntilLinked && linked {
                return Ok(response);
            }
            let next = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
            url = next.and_then(|next| join(&url, next)).ok_or_else(|| {
                Failure::Final(protocol(&url, format!("redirects to {}", next.unwrap_or("nowhere"))))
            })?;
        }
        Err(Failure::Final(protocol(&url, format!("more than {MAX_REDIRECTS} redirects"))))
    }

    fn send_once(&self, method: Method, url: &str) -> std::result::Result<Response<Body>, ureq::Error> {
        let mut request = match method {
            Method::Head => self.agent.head(url),
            Method::Get { .. } => self.agent.get(url),
        };
        if let Method::Get { from } = method
            && from > 0
        {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = &self.token
            && origin(url) == origin(&self.endpoint)
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.call()
    }

    /// What an answer other than success means.
    fn refusal(&self, s: Subject<'_>, url: &str, response: &Response<Body>) -> Failure {
        let status = response.status();
        let code = response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or("");
        let (id, endpoint) = (s.id.to_owned(), self.endpoint.clone());
        Failure::Final(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                HubError::Forbidden { id, endpoint, status: status.as_u16(), hint: self.access_hint(code) }
            }
            StatusCode::NOT_FOUND => {
                let what = match (code, s.path) {
                    ("RepoNotFound", _) | ("", "") => "repository".to_owned(),
                    ("RevisionNotFound", _) | (_, "") => "such revision".to_owned(),
                    (_, path) => format!("file {path}"),
                };
                HubError::NotFound { id, revision: s.revision.to_owned(), what, endpoint }
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                return Failure::Transient(format!("the server answered {status}"));
            }
            _ if status.is_server_error() => {
                return Failure::Transient(format!("the server answered {status}"));
            }
            _ => protocol(url, format!("the server answered {status}")),
        })
    }

    fn access_hint(&self, code: &str) -> &'static str {
        match (&self.token, code) {
            (None, "GatedRepo") => "the model is gated; accept its terms on its page, then set HF_TOKEN",
            (Some(_), "GatedRepo") => {
                "the model is gated; accept its terms on its page with the account of HF_TOKEN"
            }
            (None, _) => "it does not exist, or is private or gated; check the spelling, or set HF_TOKEN",
            (Some(_), _) => "it does not exist, or the account of HF_TOKEN may not read it",
        }
    }
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    Get { from: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Redirects {
    All,
    /// Stop at an answer that has the checksum.
    UntilLinked,
}

fn protocol(url: &str, reason: String) -> HubError {
    HubError::Protocol { url: without_query(url), reason }
}

/// The authorities of the configured file, else those built in.
pub(crate) fn root_certs(config: &HubConfig) -> Result<RootCerts> {
    let Some(path) = &config.ca_file else { return Ok(RootCerts::WebPki) };
    let text = std::fs::read(path).map_err(|e| HubError::io(path, e, 0))?;
    let certificates: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match certificates.is_empty() {
        true => Err(HubError::Authorities { path: path.clone() }),
        false => Ok(RootCerts::new_with_certs(&certificates)),
    }
}

/// Storage addresses carry signatures; messages do not.
fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}

fn failure(url: &str, e: ureq::Error) -> Failure {
    let reason = e.to_string();
    match e {
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::ConnectionFailed
        | ureq::Error::HostNotFound
        | ureq::Error::Protocol(_) => Failure::Transient(reason),
        _ => Failure::Final(HubError::Network { url: without_query(url), reason }),
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |i| start + i);
    &url[..end]
}

/// Where a redirect from `base` leads; `None` when it leaves HTTP, or HTTPS.
fn join(base: &str, location: &str) -> Option<String> {
    let scheme = base.split("://").next()?;
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Some(format!("{}{location}", origin(base)));
    }
    if location.contains("://") {
        let kept = location.starts_with("https://") || (scheme == "http" && location.starts_with("http://"));
        return kept.then(|| location.to_owned());
    }
    let path = without_query(base);
    let folder = path.rfind('/').filter(|i| *i > origin(base).len() - 1).map_or(origin(base), |i| &path[..i]);
    Some(format!("{folder}/{location}"))
}

/// Percent-encodes all but unreserved characters and those in `keep`.
fn encode(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        let c = char::from(b);
        if b.is_ascii_alphanumeric() || "-._~".contains(c) || keep.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_join_as_browsers_join_them() {
        for (base, location, want) in [
            ("http://a:1/x/y", "/z?q", Some("http://a:1/z?q")),
            ("http://a:1/x/y?q", "z", Some("http://a:1/x/z")),
            ("http://a", "z", Some("http://a/z")),
            ("https://a/x", "//b/z", Some("https://b/z")),
            ("https://a/x", "https://b/z", Some("https://b/z")),
            ("http://a/x", "http://b/z", Some("http://b/z")),
            ("https://a/x", "http://b/z", None),
            ("https://a/x", "file:///etc/passwd", None),
        ] {
            assert_eq!(join(base, location).as_deref(), want, "{base} {location}");
        }
    }

    #[test]
    fn paths_are_encoded() {
        assert_eq!(encode("a b/é#?.json", "/"), "a%20b/%C3%A9%23%3F.json");
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(origin("https://h:8/x?y"), "https://h:8");
        assert_eq!(origin("https://h"), "https://h");
    }
}
