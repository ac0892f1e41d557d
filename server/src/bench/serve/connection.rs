//! A small HTTP/1.1 client for answers of JSON or events. It reads what the servers under test send: a length
//! or chunks, kept-alive connections, no compression.

use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::body::headers;
use crate::cli::BenchServeArgs;

/// Longest head of an answer.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Where the server listens.
#[derive(Clone, Debug)]
pub struct Endpoint {
    host: String,
    port: u16,
    prefix: String,
}

/// What one request brought.
#[derive(Debug, Default)]
pub struct Reply {
    /// When each event with text came; one entry for an answer that is no stream.
    pub tokens_at: Vec<Instant>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// An open connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were read but not yet used.
    from: usize,
    keep_alive: bool,
}

impl Endpoint {
    /// Reads `http://host:port`.
    ///
    /// # Errors
    /// One sentence when it is no such URL.
    pub fn parse(url: &str) -> Result<Endpoint, String> {
        let wrong = || format!("{url} is not an address such as http://127.0.0.1:8000");
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, prefix) =
            rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (authority, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Endpoint { host, port, prefix: prefix.trim_end_matches('/').to_string() })
    }

    /// The `host` header.
    pub fn host(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// JSON from a GET.
    ///
    /// # Errors
    /// One sentence when the server cannot be reached or does not answer 200.
    pub async fn get(&self, path: &str, args: &BenchServeArgs) -> Result<Value, String> {
        self.call("GET", path, args, "").await
    }

    /// JSON from a POST of JSON.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, path: &str, args: &BenchServeArgs, body: &Value) -> Result<Value, String> {
        self.call("POST", path, args, &body.to_string()).await
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        args: &BenchServeArgs,
        body: &str,
    ) -> Result<Value, String> {
        let mut connection = Connection::open(self).await?;
        let request = format!(
            "{method} {}{path} HTTP/1.1\r\nhost: {}\r\n{}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.prefix,
            self.host(),
            headers(args),
            body.len()
        );
        connection.write(request.as_bytes()).await?;
        let head = connection.head().await?;
        let mut answer = Vec::new();
        connection.body(&head, |bytes| answer.extend_from_slice(bytes)).await?;
        if head.status != 200 {
            return Err(format!("{path} answers {}: {}", head.status, String::from_utf8_lossy(&answer)));
        }
        Ok(serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }
}

struct Head {
    status: u16,
    length: Length,
    events: bool,
}

#[derive(Clone, Copy)]
enum Length {
    Bytes(usize),
    Chunked,
    UntilClose,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// One sentence naming the address.
    pub async fn open(endpoint: &Endpoint) -> Result<Connection, String> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|e| format!("{}: {e}", endpoint.host()))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        Ok(Connection { stream, buffer: Vec::with_capacity(4096), from: 0, keep_alive: true })
    }

    /// Whether another request may be sent.
    pub fn reusable(&self) -> bool {
        self.keep_alive
    }

    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// One sentence when the connection breaks; an error status is in the reply.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Reply, String> {
        self.write(request).await?;
        let head = self.head().await?;
        let mut reply = Reply::default();
        if head.status == 200 && head.events {
            let mut events = Events::default();
            self.body(&head, |bytes| events.take(bytes, &mut reply)).await?;
            if !events.done && reply.error.is_none() {
                reply.error = Some("the stream ended without [DONE]".into());
            }
            return Ok(reply);
        }
        let mut answer = Vec::new();
        self.body(&head, |bytes| answer.extend_from_slice(bytes)).await?;
        if head.status != 200 {
            reply.error = Some(format!("{}: {}", head.status, String::from_utf8_lossy(&answer)));
            return Ok(reply);
        }
        reply.tokens_at.push(Instant::now());
        reply.note_usage(&answer);
        Ok(reply)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).await.map_err(|e| format!("sending: {e}"))
    }

    /// Reads more bytes; `false` at the end of the stream.
    async fn fill(&mut self) -> Result<bool, String> {
        if self.from == self.buffer.len() {
            self.buffer.clear();
            self.from = 0;
        }
        let count = self.stream.read_buf(&mut self.buffer).await.map_err(|e| format!("receiving: {e}"))?;
        Ok(count > 0)
    }

    async fn more(&mut self) -> Result<(), String> {
        if self.fill().await? { Ok(()) } else { Err("the server closed the connection".into()) }
    }

    async fn head(&mut self) -> Result<Head, String> {
        loop {
            let unread = &self.buffer[self.from..];
            if let Some(end) = find(unread, b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&unread[..end]).to_ascii_lowercase();
                self.from += end + 4;
                return self.parse_head(&head);
            }
            if unread.len() > MAX_HEAD_BYTES {
                return Err("the head of the answer is too long".into());
            }
            self.more().await?;
        }
    }

    fn parse_head(&mut self, head: &str) -> Result<Head, String> {
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| "the answer is no HTTP".to_string())?;
        let (mut length, mut events) = (Length::UntilClose, false);
        for (name, value) in lines.filter_map(|l| l.split_once(':')) {
            let value = value.trim();
            match name {
                "content-length" => length = Length::Bytes(value.parse().map_err(|_| "bad content-length")?),
                "transfer-encoding" if value == "chunked" => length = Length::Chunked,
                "content-type" => events = value.starts_with("text/event-stream"),
                "connection" if value == "close" => self.keep_alive = false,
                _ => {}
            }
        }
        Ok(Head { status, length, events })
    }

    async fn body(&mut self, head: &Head, mut take: impl FnMut(&[u8])) -> Result<(), String> {
        match head.length {
            Length::Bytes(count) => self.exactly(count, &mut take).await,
            Length::Chunked => self.chunks(&mut take).await,
            Length::UntilClose => {
                self.keep_alive = false;
                loop {
                    take(&self.buffer[self.from..]);
                    self.from = self.buffer.len();
                    if !self.fill().await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn exactly(&mut self, mut count: usize, take: &mut impl FnMut(&[u8])) -> Result<(), String> {
        while count > 0 {
            let part = (self.buffer.len() - self.from).min(count);
            if part == 0 {
                self.more().await?;
                continue;
            }
            take(&self.buffer[self.from..self.from + part]);
            self.from += part;
            count -= part;
        }
        Ok(())
    }

    async fn chunks(&mut self, take: &mut impl FnMut(&[u8])) -> Result<(), String> {
        loop {
            let size = loop {
                let unread = &self.buffer[self.from..];
                if let Some(end) = find(unread, b"\r\n") {
                    let digits = unread[..end].split(|b| *b == b';').next().unwrap_or_default();
                    let size = std::str::from_utf8(digits)
                        .ok()
                        .and_then(|d| usize::from_str_radix(d.trim(), 16).ok());
                    self.from += end + 2;
                    break size.ok_or("bad chunk size")?;
                }
                self.more().await?;
            };
            self.exactly(size, take).await?;
            self.exactly(2, &mut |_| {}).await?;
            if size == 0 {
                return Ok(());
            }
        }
    }
}

/// Splits bytes into events and notes when those with text came.
#[derive(Default)]
struct Events {
    /// The beginning of an event whose end has not come.
    partial: Vec<u8>,
    done: bool,
}

impl Events {
    fn take(&mut self, bytes: &[u8], reply: &mut Reply) {
        let now = Instant::now();
        if self.partial.is_empty() {
            let used = self.split(bytes, now, reply);
            self.partial.extend_from_slice(&bytes[used..]);
            return;
        }
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        let used = self.split(&all, now, reply);
        all.drain(..used);
        self.partial = all;
    }

    fn split(&mut self, bytes: &[u8], now: Instant, reply: &mut Reply) -> usize {
        let mut used = 0;
        while let Some(end) = find(&bytes[used..], b"\n\n") {
            self.event(&bytes[used..used + end], now, reply);
            used += end + 2;
        }
        used
    }

    fn event(&mut self, event: &[u8], now: Instant, reply: &mut Reply) {
        let Some(data) = event.strip_prefix(b"data: ") else { return };
        if data == b"[DONE]" {
            self.done = true;
        } else if data.starts_with(b"{\"error\"") {
            reply.error = Some(String::from_utf8_lossy(data).into_owned());
        } else if find(data, b"\"choices\":[]").is_some() {
            reply.note_usage(data);
        } else if find(data, b"\"role\":").is_none() {
            // A chat stream begins with a chunk that has a role and no text.
            reply.tokens_at.push(now);
        }
    }
}

impl Reply {
    fn note_usage(&mut self, body: &[u8]) {
        let Ok(body) = serde_json::from_slice::<Value>(body) else { return };
        self.prompt_tokens = body.pointer("/usage/prompt_tokens").and_then(Value::as_u64);
        self.completion_tokens = body.pointer("/usage/completion_tokens").and_then(Value::as_u64);
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle[0];
    let mut at = 0;
    while let Some(step) = haystack[at..].iter().position(|b| *b == first) {
        at += step;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_are_split_wherever_the_bytes_are() {
        let stream = b"data: {\"choices\":[{\"delta\":{\"role\":\"a\"}}]}\n\ndata: {\"choices\":[{\"text\":\"x\"}]}\n\n\
            : keep-alive\n\ndata: {\"choices\":[{\"text\":\"y\"}]}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        for size in [1, 2, 7, 50, stream.len()] {
            let (mut events, mut reply) = (Events::default(), Reply::default());
            stream.chunks(size).for_each(|part| events.take(part, &mut reply));
            assert!(events.done);
            assert_eq!(reply.tokens_at.len(), 2, "{size}");
            assert_eq!((reply.prompt_tokens, reply.completion_tokens), (Some(3), Some(2)));
        }
    }

    #[test]
    fn addresses_are_read() {
        let e = Endpoint::parse("http://[::1]:81/v2/").unwrap();
        assert_eq!((e.host.as_str(), e.port, e.prefix.as_str()), ("::1", 81, "/v2"));
        assert_eq!(Endpoint::parse("http://h").unwrap().port, 80);
        for bad in ["h:1", "https://h", "http://h:x", "http://:1"] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }
}
