//! The sources under `src`, as text.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file of the sources.
pub struct Source {
    /// Its path under `src`.
    pub file: String,
    /// Its code, without comments that have lines of their own and without a `mod tests` at its end.
    pub code: String,
    /// Whether only tests use it.
    pub is_for_tests: bool,
}

/// The folder of the sources.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All files.
pub fn all() -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let file = path.strip_prefix(root()).expect("under src").display().to_string();
            if file.ends_with(".rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let is_for_tests = is_for_tests(&file);
                found.push(Source { file, code: code(&text), is_for_tests });
            }
        }
    }
    found
}

fn is_for_tests(file: &str) -> bool {
    file.trim_end_matches(".rs")
        .split('/')
        .any(|part| matches!(part, "tests" | "testing" | "contract"))
}

fn code(text: &str) -> String {
    // The rules that are checked in the sources do not hold for a file's own tests.
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let lines: Vec<_> = text.lines().filter(is_code).collect();
    lines.join("\n")
}

/// The word with which a text begins, after white space.
pub fn first_word(text: &str) -> String {
    let is_word = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    text.trim_start().chars().take_while(is_word).collect()
}
