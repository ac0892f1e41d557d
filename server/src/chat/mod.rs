//! Chat: templates that turn messages into a prompt, and the shape of message content.

pub mod content;
pub mod template;
