//! `docs/pusher-conformance.md` says which test shows which entry of the protocol document of Pusher. These tests
//! keep it true.
//!
//! A table is made from [`entries`] and from the names of the tests in the sources, and compared with the page.
//! Regenerate it with `HERALD_WRITE_CONFORMANCE=1 cargo test --test it conformance`.

mod entries;

use std::{collections::BTreeMap, fmt::Write as _};

use entries::{ENTRIES, Entry};

use crate::support::generated::Generated;

use crate::conformance::{client_sources, functions, module, sources};

/// The table of the page.
const TABLE: Generated = Generated {
    page: "docs/pusher-conformance.md",
    begin: "<!-- The table is generated; see tests/it/pusher_conformance.rs. -->\n",
    end: "<!-- The table ends here. -->\n",
    variable: "HERALD_WRITE_CONFORMANCE",
    test: "conformance",
};

/// The last entry of the protocol document.
const LAST: u16 = 187;

#[test]
fn the_document_says_what_the_tests_show() {
    TABLE.check(&table(&tests_by_number()));
}

#[test]
fn each_entry_is_shown_by_a_test_or_has_a_reason() {
    let tests = tests_by_number();
    let mut faults = Vec::new();
    for (expected, Entry { number, reason, .. }) in (1..).zip(ENTRIES) {
        assert_eq!(*number, expected, "the entries are in their order");
        match (reason, tests.contains_key(number)) {
            (None, false) => faults.push(format!("{number}: no test, no reason")),
            (Some(_), true) => faults.push(format!("{number}: test and reason")),
            _ => {}
        }
    }
    assert_eq!(ENTRIES.len(), usize::from(LAST));
    assert!(faults.is_empty(), "{faults:#?}");
    let unknown: Vec<_> = tests.keys().filter(|number| !(1..=LAST).contains(*number)).collect();
    assert!(unknown.is_empty(), "there are no entries {unknown:?}");
}

fn table(tests: &BTreeMap<u16, Vec<String>>) -> String {
    let mut table = String::from("\n| # | what | shown by |\n|---|---|---|\n");
    for Entry { number, what, reason, deviation } in ENTRIES {
        let tests = tests.get(number).map_or(&[][..], Vec::as_slice);
        let shown = match reason {
            Some(reason) => format!("– {reason}"),
            None => tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join("<br>"),
        };
        let deviation = deviation.map(|deviation| format!("<br>– {deviation}"));
        let deviation = deviation.unwrap_or_default();
        writeln!(table, "| {number} | {what} | {shown}{deviation} |").expect("a string takes all");
    }
    table.push('\n');
    table
}

/// The tests that carry a number, in alphabetical order for each number.
fn tests_by_number() -> BTreeMap<u16, Vec<String>> {
    let mut tests: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    let mut note = |name: &str, path: String| {
        for number in numbers(name) {
            tests.entry(number).or_default().push(path.clone());
        }
    };
    for (file, code) in sources() {
        for (name, is_test) in functions(&code) {
            let path = format!("{}::{name}", module(&file));
            assert!(is_test || numbers(&name).is_empty(), "{path} carries a number but is no test");
            note(&name, path);
        }
    }
    for (file, code) in client_sources() {
        let lines = code.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        for title in lines.filter_map(|line| line.split_once("(\"")?.1.split_once('"')) {
            note(title.0, format!("{}: {}", file.display(), title.0));
        }
    }
    tests.values_mut().for_each(|paths| paths.sort_unstable());
    tests
}

/// The numbers with which a name begins: `p001_p012_…`.
fn numbers(name: &str) -> Vec<u16> {
    let number = |part: &str| {
        let digits = part.strip_prefix('p')?;
        (digits.len() == 3).then(|| digits.parse().ok())?
    };
    let name = name.split(' ').next().unwrap_or("");
    name.split('_').map_while(number).collect()
}

#[test]
fn numbers_are_told_from_other_names() {
    for (name, expected) in [
        ("p001_x", vec![1]),
        ("p039_p040_a_p041", vec![39, 40]),
        ("p12_x", vec![]),
        ("p1234_x", vec![]),
        ("p172_p173 hears p174", vec![172, 173]),
        ("presence", vec![]),
    ] {
        assert_eq!(numbers(name), expected, "{name}");
    }
}
