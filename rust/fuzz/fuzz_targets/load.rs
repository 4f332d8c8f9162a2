//! Entry of libFuzzer; see `Cargo.toml` for how to run it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| drama_fuzz::load_mutated(input));
