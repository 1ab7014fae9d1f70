//! Comments: each sentence names its subject.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folders whose comments are read.
const FOLDERS: [&str; 3] = ["benches", "src", "tests"];

/// Words with which no sentence begins, because a noun says more.
const BARE: [&str; 3] = ["What", "Who", "Whoever"];

#[test]
fn every_sentence_names_its_subject_and_its_number() {
    let mut found = 0;
    let mut faults = Vec::new();
    for path in FOLDERS.iter().flat_map(|folder| sources(folder)) {
        let text = fs::read_to_string(&path).expect("a source file");
        for comment in comments(&text) {
            found += 1;
            if is_vague(&comment) {
                faults.push(format!("{}: {comment}", path.display()));
            }
        }
    }
    assert!(found > 5_000, "the comments were found: {found}");
    assert!(faults.is_empty(), "write the noun, or \"this number of\": {faults:#?}");
}

#[test]
fn a_vague_comment_is_found_wherever_its_sentence_begins() {
    let code = "/// What it does.\nfn f() {\n    // A client waits.\n    // Who waits longest is first.\n}\n\
                //! Reads so\n//! many lines.\n//!\n//! Whatever follows.\nlet url = \"// What\";\n";
    let found: Vec<_> = comments(code).filter(|comment| is_vague(comment)).collect();
    let expected =
        ["What it does.", "A client waits. Who waits longest is first.", "Reads so many lines."];
    assert_eq!(found, expected);
}

/// Returns whether a sentence begins with a bare word, or hides a number.
fn is_vague(comment: &str) -> bool {
    let begins_bare = |sentence: &str| {
        let first = sentence.split(' ').next();
        first.is_some_and(|first| BARE.contains(&first))
    };
    comment.split(". ").any(begins_bare) || comment.to_lowercase().contains("so many")
}

/// The paragraphs of the comments that have lines of their own.
fn comments(code: &str) -> impl Iterator<Item = String> {
    let mut paragraphs = vec![String::new()];
    for line in code.lines() {
        let comment = line.trim_start().strip_prefix("//");
        let text =
            comment.map(|text| text.trim_start_matches(['/', '!']).trim()).unwrap_or_default();
        match paragraphs.last_mut() {
            Some(last) if !text.is_empty() => {
                last.push_str(if last.is_empty() { "" } else { " " });
                last.push_str(text);
            }
            _ => paragraphs.push(String::new()),
        }
    }
    paragraphs.into_iter().filter(|paragraph| !paragraph.is_empty())
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}
