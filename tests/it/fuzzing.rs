//! The corpus of the fuzz targets, run through the same checks that the fuzzer calls.
//!
//! Inputs that once broke a check, or that reach code that few others reach, are kept in
//! `tests/fuzz/corpus/`; the README beside it says how to look for more.

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

#[path = "../fuzz/src/lib.rs"]
mod checks;

/// The most files of one target, because they run with all other tests.
const FILES_MAX: usize = 120;

/// The most bytes of all targets together, because they are part of every checkout.
const BYTES_MAX: usize = 250_000;

#[test]
fn the_corpus_is_what_the_checks_say() {
    let mut bytes = 0;
    let mut findings = Vec::new();
    for (target, check) in checks::CHECKS {
        let files = files(&fuzz().join("corpus").join(target));
        assert!((5..=FILES_MAX).contains(&files.len()), "{target} has {} files", files.len());
        for file in files {
            let data = fs::read(&file).expect("a file");
            bytes += data.len();
            if catch_unwind(|| check(&data)).is_err() {
                findings.push(file.display().to_string());
            }
        }
    }
    assert!(findings.is_empty(), "these inputs break a check, see above: {findings:#?}");
    assert!(bytes <= BYTES_MAX, "the corpus has {bytes} bytes");
}

#[test]
fn every_check_has_a_target_and_every_target_a_check() {
    let mut expected: Vec<_> = checks::CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    expected.sort();
    let named = |files: Vec<PathBuf>| -> Vec<String> {
        files.iter().map(|file| file.file_stem().expect("a name").display().to_string()).collect()
    };
    assert_eq!(named(files(&fuzz().join("fuzz_targets"))), expected, "fuzz_targets/");
    assert_eq!(named(files(&fuzz().join("corpus"))), expected, "corpus/");
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("Cargo.toml");
    for name in expected {
        assert!(manifest.contains(&format!("[[bin]]\nname = \"{name}\"\n")), "{name}");
        let target = fuzz().join("fuzz_targets").join(format!("{name}.rs"));
        let target = fs::read_to_string(target).expect("a target");
        assert!(target.contains(&format!("herald_fuzz::{name}::check(data)")), "{name}");
    }
}

#[test]
fn the_lock_file_of_the_targets_has_all_dependencies() {
    let read = |file: PathBuf| fs::read_to_string(file).expect("a file");
    let (manifest, lock) = (read(root().join("Cargo.toml")), read(fuzz().join("Cargo.lock")));
    let dependencies =
        manifest.split("\n[").find_map(|table| table.strip_prefix("dependencies]\n"));
    let names = dependencies.expect("dependencies").lines().filter_map(|line| {
        let (name, _) = line.split_once(" = ")?;
        name.starts_with(|first: char| first.is_ascii_lowercase()).then_some(name)
    });
    let packages = lock.split("[[package]]\n");
    let herald = packages.into_iter().find(|package| package.starts_with("name = \"herald\"\n"));
    let locked: Vec<_> =
        herald.expect("herald").lines().map(|line| line.trim_matches([' ', '"', ','])).collect();
    let missing: Vec<_> = names
        .filter(|name| !locked.iter().any(|locked| locked.split(' ').next() == Some(name)))
        .collect();
    assert!(missing.is_empty(), "run `cargo metadata` in tests/fuzz; it lacks {missing:?}");
    assert!(locked.len() > 40, "the dependencies were found");
}

fn fuzz() -> PathBuf {
    root().join("tests/fuzz")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}
