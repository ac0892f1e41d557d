//! A library's reader that panics on a damaged file is an error of that file.
//!
//! The `tokenizers` crate unwraps in places that a damaged `tokenizer.json` reaches: when it is read, and for some
//! damage when the tokenizer is used. Such a panic is caught here, and printed nowhere: the person sees one error that
//! names the file, and a request fails, or gets no text, without ending others.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

static HOOK: Once = Once::new();

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// What `read` returns, or the words of its panic. What `read` had begun must not be used after a panic.
pub(super) fn contained<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |panic| {
            if !CONTAINED.try_with(Cell::get).unwrap_or(false) {
                others(panic);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    CONTAINED.set(outer);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("the reader gave up").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::contained;

    #[test]
    fn a_panic_becomes_its_words() {
        assert_eq!(contained(|| 1), Ok(1));
        assert_eq!(contained(|| panic!("at {}", 2)), Err::<(), _>("at 2".to_owned()));
        assert_eq!(contained(|| panic!("static")), Err::<(), _>("static".to_owned()));
    }
}
