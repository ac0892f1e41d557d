//! Prints the op × backend matrix of docs/support.md, or with `--write` puts it there.

use tests::conformance::{devices, support};

fn main() -> Result<(), String> {
    match std::env::args().nth(1).as_deref() {
        Some("--write") => support::write(),
        None => {
            println!("{}", support::matrix(&devices()));
            Ok(())
        }
        Some(other) => Err(format!("unknown argument {other}; --write is the only one")),
    }
}
