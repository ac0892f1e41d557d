//! One program per target, named as the target is.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (pallium_fuzz::targets::target(env!("CARGO_BIN_NAME")).run)(data);
});
