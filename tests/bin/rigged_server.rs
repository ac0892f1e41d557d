//! `pallium serve` on a do-nothing device that breaks: `rigged-server FAULT WAITS [flags of serve]`. FAULT is `lost`,
//! `panic` or `hang`; the first WAITS waits of the stream go well.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::ExitCode;
use std::time::Instant;

use server::cli::{self, Command};
use tests::rigged::{Fault, Rigged};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let fault = match words.next().unwrap().to_str().unwrap() {
        "lost" => Fault::DeviceLost,
        "panic" => Fault::Panic,
        _ => Fault::Hang,
    };
    let waits = words.next().unwrap().to_str().unwrap().parse().unwrap();
    let words = std::iter::once("serve".into()).chain(words);
    let Command::Serve(args) = cli::parse(words, &|_| None).unwrap().command else { unreachable!() };
    let (backend, rig) = Rigged::new(tests::null::backend());
    rig.plant(waits, fault);
    match server::serve::serve_on(&args, Instant::now(), &|| Ok(backend.clone())) {
        Ok(ended) => ended.into(),
        Err(error) => panic!("{error}"),
    }
}
