//! Graph capture as one safe call.

use super::{CaptureLevel, Graph, Stream};
use crate::error::Result;

/// Records what `body` enqueues as a graph, without running it, and returns the graph with the body's outputs.
/// `None` means the stream does not capture: `body` was enqueued eagerly instead.
///
/// Run it on a batch of padding only (rule 4 of the seam). The capture is aborted when `body` fails or panics.
pub fn capture<R>(
    s: &mut dyn Stream,
    body: impl FnOnce(&mut dyn Stream) -> Result<R>,
) -> Result<(Option<Graph>, R)> {
    if s.capture_begin()? == CaptureLevel::Never {
        return Ok((None, body(s)?));
    }
    let mut guard = AbortOnDrop { stream: s, armed: true };
    let outputs = body(&mut *guard.stream)?;
    guard.armed = false;
    let graph = guard.stream.capture_end()?;
    Ok((Some(graph), outputs))
}

struct AbortOnDrop<'a> {
    stream: &'a mut dyn Stream,
    armed: bool,
}

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.stream.capture_abort();
        }
    }
}
