//! Parts of documentation pages that tests generate.

use std::{env, fs, path::Path};

/// A part of a documentation page that a test generates, between two marks.
pub struct Generated {
    /// The file of the page.
    pub page: &'static str,
    /// The mark before the part.
    pub begin: &'static str,
    /// The mark after it.
    pub end: &'static str,
    /// The environment variable that has the part written instead of compared.
    pub variable: &'static str,
    /// The test, as a filter for the command that writes the part.
    pub test: &'static str,
}

impl Generated {
    /// Checks that the page has this part. If the environment variable is set, the part is written instead.
    pub fn check(&self, part: &str) {
        let Self { page, begin, end, variable, test } = *self;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{page}: {error}"));
        let (before, rest) = text.split_once(begin).expect("the mark where the part begins");
        let (shown, after) = rest.split_once(end).expect("the mark where the part ends");
        if env::var_os(variable).is_some() {
            let text = format!("{before}{begin}{part}{end}{after}");
            return fs::write(path, text).unwrap_or_else(|error| panic!("{page}: {error}"));
        }
        assert!(shown == part, "{page} differs: {variable}=1 cargo test --test it {test}");
    }
}
