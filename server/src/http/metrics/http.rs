//! Counts per route, as prometheus-fastapi-instrumentator names them.

use std::time::Duration;

use super::registry::{Counter, Histogram, write_header, write_sample};

/// The routes that are counted. Health, version and metrics paths are not, as in vLLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Completions,
    ChatCompletions,
    Models,
    Tokenize,
    Detokenize,
    Other,
}

impl Route {
    const ALL: [(Route, &'static str); 6] = [
        (Route::Completions, "/v1/completions"),
        (Route::ChatCompletions, "/v1/chat/completions"),
        (Route::Models, "/v1/models"),
        (Route::Tokenize, "/tokenize"),
        (Route::Detokenize, "/detokenize"),
        (Route::Other, "none"),
    ];
    const UNCOUNTED: [&'static str; 6] = ["/metrics", "/health", "/load", "/ping", "/version", "/ready"];

    /// The route of a path, `None` when it is not counted.
    pub fn of(path: &str) -> Option<Route> {
        if Self::UNCOUNTED.contains(&path) {
            return None;
        }
        let known = Self::ALL.iter().find(|(_, p)| *p == path);
        Some(known.map_or(Route::Other, |(route, _)| *route))
    }
}

const METHODS: [&str; 3] = ["GET", "POST", "other"];
const STATUSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];
const DURATION_BOUNDS: [f64; 3] = [0.1, 0.5, 1.0];
const HIGHR_DURATION_BOUNDS: [f64; 21] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0,
    30.0, 60.0,
];

/// Requests and their times by route.
#[derive(Debug)]
pub struct HttpMetrics {
    requests: [[[Counter; STATUSES.len()]; METHODS.len()]; Route::ALL.len()],
    duration: [[Histogram; METHODS.len()]; Route::ALL.len()],
    duration_of_all: Histogram,
    request_size: [Size; Route::ALL.len()],
    response_size: [Size; Route::ALL.len()],
}

/// Bodies, and their bytes as far as they were announced.
#[derive(Debug, Default)]
struct Size {
    count: Counter,
    bytes: Counter,
}

impl Size {
    fn observe(&self, bytes: u64) {
        self.count.add(1);
        self.bytes.add(bytes);
    }
}

impl HttpMetrics {
    pub(super) fn new() -> Self {
        HttpMetrics {
            requests: Default::default(),
            duration: std::array::from_fn(|_| {
                std::array::from_fn(|_| Histogram::of_seconds(&DURATION_BOUNDS))
            }),
            duration_of_all: Histogram::of_seconds(&HIGHR_DURATION_BOUNDS),
            request_size: Default::default(),
            response_size: Default::default(),
        }
    }

    /// Counts an answer when its head is sent.
    pub fn observe(&self, route: Route, method: &str, status: u16, time: Duration) {
        let method = METHODS.iter().position(|m| *m == method).unwrap_or(METHODS.len() - 1);
        let class = (usize::from(status / 100)).clamp(2, 5) - 2;
        self.requests[route as usize][method][class].add(1);
        self.duration[route as usize][method].observe(time);
        self.duration_of_all.observe(time);
    }

    /// Counts the bodies of a request and its answer; a stream has 0 bytes.
    pub fn observe_sizes(&self, route: Route, request_bytes: u64, response_bytes: u64) {
        self.request_size[route as usize].observe(request_bytes);
        self.response_size[route as usize].observe(response_bytes);
    }

    pub(super) fn write(&self, out: &mut String) {
        let name = "http_requests_total";
        write_header(out, name, "counter", "Total number of requests by method, status and handler.");
        for (route, handler) in Route::ALL {
            for (m, method) in METHODS.iter().enumerate() {
                for (s, status) in STATUSES.iter().enumerate() {
                    let count = self.requests[route as usize][m][s].get();
                    if count > 0 {
                        let labels = format!("handler=\"{handler}\",method=\"{method}\",status=\"{status}\"");
                        write_sample(out, name, &labels, count as f64);
                    }
                }
            }
        }
        let name = "http_request_duration_highr_seconds";
        write_header(out, name, "histogram", "Time until the head of the answer, over all handlers.");
        self.duration_of_all.write(out, name, "");
        let name = "http_request_duration_seconds";
        write_header(out, name, "histogram", "Time until the head of the answer, by handler.");
        for (route, handler) in Route::ALL {
            for (m, method) in METHODS.iter().enumerate() {
                let histogram = &self.duration[route as usize][m];
                if histogram.count() > 0 {
                    histogram.write(out, name, &format!("handler=\"{handler}\",method=\"{method}\""));
                }
            }
        }
        write_sizes(out, "http_request_size_bytes", "Length of requests by handler.", &self.request_size);
        write_sizes(out, "http_response_size_bytes", "Length of answers by handler.", &self.response_size);
    }
}

fn write_sizes(out: &mut String, name: &str, help: &str, sizes: &[Size; Route::ALL.len()]) {
    write_header(out, name, "summary", help);
    for (route, handler) in Route::ALL {
        let size = &sizes[route as usize];
        if size.count.get() > 0 {
            let labels = format!("handler=\"{handler}\"");
            write_sample(out, &format!("{name}_count"), &labels, size.count.get() as f64);
            write_sample(out, &format!("{name}_sum"), &labels, size.bytes.get() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_index_their_names() {
        for (i, (route, path)) in Route::ALL.iter().enumerate() {
            assert_eq!(*route as usize, i, "{path}");
        }
        assert_eq!(Route::of("/health"), None);
        assert_eq!(Route::of("/nowhere"), Some(Route::Other));
    }
}
