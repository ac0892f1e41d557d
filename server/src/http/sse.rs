//! Server-sent events: a body that asks its source for ready events and puts all of them into one write.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use bytes::{BufMut, BytesMut};
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep};

use super::error::ApiError;

/// Last event of every stream, failed ones included.
pub const DONE: &[u8] = b"data: [DONE]\n\n";
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
/// Events are cut from blocks of this size, so that most cost no allocation.
const BLOCK_BYTES: usize = 8 << 10;

/// Where the events of one answer come from.
pub trait EventSource: Send + Unpin + 'static {
    /// Appends every event that is ready, each as `data: ...` and an empty line. `Ready(true)` when these were
    /// the last but for `[DONE]`, `Ready(false)` when more will come, `Pending` when none is ready.
    fn poll_events(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<bool>;
}

/// A streamed answer of this source's events, ended by `[DONE]`.
pub fn event_stream(source: impl EventSource, keep_alive: Option<Duration>) -> Response<Body> {
    let body = EventBody {
        source: Some(source),
        block: BytesMut::new(),
        keep_alive: keep_alive.map(|every| (every, Box::pin(tokio::time::sleep(every)))),
    };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Appends an error as an event.
pub fn put_error(out: &mut BytesMut, error: &ApiError) {
    out.put_slice(b"data: ");
    out.put_slice(error.body().as_bytes());
    out.put_slice(b"\n\n");
}

struct EventBody<S> {
    /// `None` once the last event is out.
    source: Option<S>,
    block: BytesMut,
    keep_alive: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl<S: EventSource> HttpBody for EventBody<S> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        if this.block.capacity() < BLOCK_BYTES / 8 {
            this.block.reserve(BLOCK_BYTES);
        }
        let block = &mut this.block;
        // What panics here is one request's own work (detokenizing, formatting): it ends this stream only.
        let polled = catch_unwind(AssertUnwindSafe(|| source.poll_events(cx, block)));
        match polled {
            Ok(Poll::Ready(false)) => {}
            Ok(Poll::Ready(true)) => {
                block.put_slice(DONE);
                this.source = None;
            }
            Ok(Poll::Pending) => return this.poll_keep_alive(cx),
            Err(_) => {
                block.clear();
                put_error(block, &ApiError::internal("The answer could not be formatted."));
                block.put_slice(DONE);
                this.source = None;
            }
        }
        if let Some((every, sleep)) = &mut this.keep_alive {
            sleep.as_mut().reset(Instant::now() + *every);
        }
        Poll::Ready(Some(Ok(Frame::data(this.block.split().freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }
}

impl<S> EventBody<S> {
    fn poll_keep_alive(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let Some((every, sleep)) = &mut self.keep_alive else { return Poll::Pending };
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        sleep.as_mut().reset(Instant::now() + *every);
        // The timer must be armed again with this task's waker.
        let _ = sleep.as_mut().poll(cx);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(KEEP_ALIVE)))))
    }
}
