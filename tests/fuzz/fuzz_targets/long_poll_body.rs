#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| herald_fuzz::long_poll_body::check(data));
