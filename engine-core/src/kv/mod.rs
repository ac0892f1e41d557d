//! KV memory as page numbers: who holds which page, which pages can be shared, what the device's tables must learn.
//!
//! Nothing here touches a device. One pool of equal-byte pages serves every group of layers ([`GroupSpec`]); a page
//! belongs to whatever row and group took it last. Page 0 is the null page: never handed out, never written, and the
//! value of a table entry that points nowhere.
//!
//! Contract with the device queue: pages freed while steps are in flight may be handed out at once, because whoever
//! gets them writes in a later step of the same in-order queue. A queue of its own (offload) must wait for the
//! ticket of the step that freed them.

pub mod faults;
pub mod groups;
pub mod manager;
pub mod pages;
pub mod prefix;
pub mod siphash;
pub mod tables;

pub use groups::{GroupKind, GroupSpec};
pub use manager::{KvConfig, KvManager, PrefixHit};
pub use prefix::{PrefixCaching, random_key};
pub use tables::TableDelta;

/// A page number. 0 is [`NULL_PAGE`].
pub type Page = u32;

/// The page that is never used.
pub const NULL_PAGE: Page = 0;
