#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| herald_fuzz::token_pair::check(data));
