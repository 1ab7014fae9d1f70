//! `docs/conformance.md` says which test shows which entry of the protocol document's section 14. These tests
//! check that it is true.
//!
//! The table is made from [`entries`] and from the names of the tests in the sources, and compared with the page.
//! Regenerate it with `HERALD_WRITE_CONFORMANCE=1 cargo test --test it conformance`.

mod entries;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use entries::{ENTRIES, Entry};

use crate::support::generated::Generated;

/// The table of the page.
const TABLE: Generated = Generated {
    page: "docs/conformance.md",
    begin: "<!-- The table is generated; see tests/it/conformance.rs. -->\n",
    end: "<!-- The table ends here. -->\n",
    variable: "HERALD_WRITE_CONFORMANCE",
    test: "conformance",
};

/// The last entry of the protocol document.
const LAST: u16 = 204;

/// The entries up to this one are about messages over a socket, so a test at a socket must show each of them.
const LAST_AT_THE_SOCKET: u16 = 106;

/// A function whose name begins with the numbers of entries.
#[derive(Debug, PartialEq, Eq)]
struct Numbered {
    /// Module and function, as the test runner names them, without `tests`.
    path: String,
    numbers: Vec<u16>,
    is_test: bool,
    place: Place,
}

/// The place in which a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Beside the code.
    Code,
    /// At a socket of a whole server.
    Socket,
    /// In a program of its own, with the clients' own code.
    Clients,
}

#[test]
fn the_document_says_what_the_tests_show() {
    TABLE.check(&table(&numbered()));
}

#[test]
fn each_entry_is_shown_by_a_test_or_has_a_reason() {
    let mut faults = Vec::new();
    let mut next = 1;
    let all = numbered();
    for Entry { first, last, reason, .. } in ENTRIES {
        if *first != next || last < first {
            faults.push(format!("entry {next} is missing, or {first} to {last} are out of order"));
        }
        next = last + 1;
        for number in *first..=*last {
            let shows: Vec<_> = all.iter().filter(|test| test.numbers.contains(&number)).collect();
            let at_the_socket = shows.iter().any(|test| test.place == Place::Socket);
            match reason {
                None if shows.is_empty() => faults.push(format!("{number}: no test, no reason")),
                None if number <= LAST_AT_THE_SOCKET && !at_the_socket => {
                    faults.push(format!("{number}: no test at the socket"));
                }
                Some(_) if !shows.is_empty() => faults.push(format!("{number}: test and reason")),
                _ => {}
            }
        }
    }
    assert_eq!(next, LAST + 1, "the last entry");
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn each_function_with_a_number_is_a_test_of_an_existing_entry() {
    let mut paths = BTreeSet::new();
    for Numbered { path, numbers, is_test, .. } in numbered() {
        assert!(is_test, "{path} carries a number but is no test");
        for number in numbers {
            assert!((1..=LAST).contains(&number), "{path}: there is no entry {number}");
        }
        assert!(paths.insert(path.clone()), "{path} is there twice");
    }
}

/// Tests in a file that `npm test` does not run would never run, and neither would tests that the code leaves out.
#[test]
fn the_clients_tests_are_those_that_npm_runs() {
    let package = root().join("tests/clients/package.json");
    let script = fs::read_to_string(package).expect("package.json");
    let sources = client_sources();
    let imports = |name: &str| {
        let import = format!("from \"./{name}\"");
        sources.iter().any(|(file, code)| {
            file.to_string_lossy().ends_with(".test.mjs") && code.contains(&import)
        })
    };
    for (file, code) in &sources {
        let name = file.to_string_lossy();
        let runs =
            if name.ends_with(".test.mjs") { script.contains(&*name) } else { imports(&name) };
        assert!(runs, "npm test does not run {name}");
        // A longer word that ends with a key, such as `authorized_only:`, is no option of a test.
        let is_key = |&(at, _): &(usize, &str)| {
            !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
        };
        for omission in [".only", ".skip", ".todo"] {
            assert!(!code.contains(omission), "{name} leaves tests out with {omission}");
        }
        for key in ["only:", "skip:", "todo:"] {
            let is_there = code.match_indices(key).any(|found| is_key(&found));
            assert!(!is_there, "{name} leaves tests out with {key}");
        }
    }
}

#[test]
fn no_test_is_ignored() {
    let ignore = concat!("#[", "ignore");
    for (file, code) in sources() {
        assert!(!code.contains(ignore), "{} ignores a test", file.display());
    }
    assert_eq!(listed(&["--ignored"]), BTreeSet::new());
}

/// Tests in a file that no module names would never run.
#[test]
fn the_files_with_numbered_tests_are_part_of_the_crate() {
    for (file, code) in sources().iter().filter(|(file, _)| file.starts_with("src")) {
        let folder = file.parent().expect("a folder");
        let stem = file.file_stem().expect("a name").to_string_lossy();
        let is_numbered = functions(code).iter().any(|(name, _)| !numbers(name).is_empty());
        if is_numbered && stem != "mod" {
            let doors = [folder.join("mod.rs"), folder.with_extension("rs"), folder.join("lib.rs")];
            let doors = doors.iter().filter_map(|door| fs::read_to_string(root().join(door)).ok());
            let named = doors.flat_map(|door| door.lines().map(str::to_owned).collect::<Vec<_>>());
            let declaration = format!("mod {stem};");
            let mut named = named.filter(|line| line.trim_start_matches("pub ") == declaration);
            assert!(named.next().is_some(), "{} is in no module", file.display());
        }
    }
}

#[test]
fn the_numbered_tests_are_those_that_run() {
    let in_sources = numbered().into_iter().filter(|test| test.place == Place::Socket);
    let in_sources: BTreeSet<_> = in_sources.map(|test| test.path).collect();
    let carries_a_number =
        |path: &String| !numbers(path.rsplit("::").next().unwrap_or("")).is_empty();
    let running: BTreeSet<_> = listed(&[]).into_iter().filter(carries_a_number).collect();
    let differ: Vec<_> = in_sources.symmetric_difference(&running).collect();
    assert!(
        differ.is_empty(),
        "in the sources or among the tests that run, but not both: {differ:?}"
    );
}

/// The tables of broken rules on the page name the tests that failed.
#[test]
fn the_breaks_name_tests_that_exist() {
    let document = fs::read_to_string(root().join("docs/conformance.md")).expect("the document");
    let (_, after) = document.split_once(TABLE.end).expect("the mark where the table ends");
    let paths: BTreeSet<_> = numbered().into_iter().map(|test| test.path).collect();
    let mut named = 0;
    for word in after.split('`').filter(|word| word.contains("::e")) {
        assert!(paths.contains(word), "{word} is no test");
        named += 1;
    }
    assert!(named >= 12, "the tables of broken rules name only {named} tests");
}

/// The table, with one line per element of [`ENTRIES`].
fn table(all: &[Numbered]) -> String {
    let mut shown_by: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for test in all {
        for number in &test.numbers {
            shown_by.entry(*number).or_default().push(&test.path);
        }
    }
    let mut table = String::from("\n| # | what | shown by |\n|---|---|---|\n");
    for Entry { first, last, what, reason } in ENTRIES {
        let number = if first == last { first.to_string() } else { format!("{first}–{last}") };
        let mut tests = shown_by.remove(first).unwrap_or_default();
        tests.sort_unstable();
        let shown = match reason {
            Some(reason) => format!("– {reason}"),
            None => tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join("<br>"),
        };
        writeln!(table, "| {number} | {what} | {shown} |").expect("a string takes all");
    }
    table.push('\n');
    table
}

/// Every function and client test whose name carries a number, in the order of files.
fn numbered() -> Vec<Numbered> {
    let mut all = Vec::new();
    for (file, code) in sources() {
        let module = module(&file);
        for (name, is_test) in functions(&code) {
            let numbers = numbers(&name);
            if numbers.is_empty() {
                continue;
            }
            let path = format!("{module}::{name}");
            let place = if file.starts_with("tests") { Place::Socket } else { Place::Code };
            all.push(Numbered { path, numbers, is_test, place });
        }
    }
    assert!(all.len() > 50, "too few functions with numbers were found in the sources");
    all.extend(client_tests());
    all
}

/// The numbered tests of `tests/clients/`, by file and title.
fn client_tests() -> Vec<Numbered> {
    let mut all = Vec::new();
    for (file, code) in client_sources() {
        for title in titles(&code) {
            let path = format!("{}: {title}", file.display());
            all.push(Numbered {
                path,
                numbers: numbers(title),
                is_test: true,
                place: Place::Clients,
            });
        }
    }
    assert!(all.len() > 20, "too few numbered tests of the clients were found");
    all
}

/// The titles of tests that begin with the numbers of entries.
fn titles(code: &str) -> Vec<&str> {
    let lines = code.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let titles = lines.filter_map(|line| line.split_once("(\"")?.1.split_once('"'));
    titles.map(|(title, _)| title).filter(|title| !numbers(title).is_empty()).collect()
}

/// The names of functions, and whether a test attribute stands before them.
pub fn functions(code: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut is_test = false;
    let mut in_attribute = false;
    for line in code.lines().map(str::trim) {
        if in_attribute || line.starts_with("#[") {
            let test = ["#[test]", "#[tokio::test]", "#[tokio::test(", "#[actix_web::test]"];
            is_test |= test.iter().any(|attribute| line.starts_with(attribute));
            in_attribute = !line.ends_with(']');
            continue;
        }
        let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let Some(declared) = declared {
            let end = declared.find(|c: char| !c.is_alphanumeric() && c != '_');
            found.push((declared[..end.unwrap_or(declared.len())].to_owned(), is_test));
        }
        if !line.starts_with("//") {
            is_test = false;
        }
    }
    found
}

/// The numbers with which a name begins: `e001_e012_…`.
fn numbers(name: &str) -> Vec<u16> {
    let number = |part: &str| {
        let digits = part.strip_prefix('e')?;
        (digits.len() == 3).then(|| digits.parse().ok())?
    };
    let name = name.split(' ').next().unwrap_or("");
    name.split('_').map_while(number).collect()
}

/// The module of a file, relative to its crate.
pub fn module(file: &Path) -> String {
    let file = file.strip_prefix("tests/it").or_else(|_| file.strip_prefix("src")).unwrap_or(file);
    let parts = file.with_extension("");
    let parts = parts.iter().map(|part| part.to_string_lossy());
    parts.filter(|part| part != "mod" && part != "tests").collect::<Vec<_>>().join("::")
}

/// The tests of this binary, as its runner lists them.
fn listed(arguments: &[&str]) -> BTreeSet<String> {
    let binary = env::current_exe().expect("this binary");
    let output =
        Command::new(binary).args(["--list", "--format", "terse"]).args(arguments).output();
    let output = String::from_utf8(output.expect("a list of tests").stdout).expect("text");
    output.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// The files that `npm test` runs and those that they import: the path within `tests/clients`, and the code.
pub fn client_sources() -> Vec<(PathBuf, String)> {
    let folder = Path::new("tests/clients");
    let mut found = Vec::new();
    for part in ["", "steps"] {
        for entry in fs::read_dir(root().join(folder).join(part)).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = Path::new(part).join(entry.file_name());
            if path.extension().is_some_and(|extension| extension == "mjs") {
                let code = fs::read_to_string(entry.path()).expect("a source");
                found.push((path, code));
            }
        }
    }
    found.sort();
    found
}

/// Every source file of the package and of these tests: the path within the package, and the code.
pub fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("src"), PathBuf::from("tests/it")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("a type").is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = fs::read_to_string(entry.path()).expect("a source");
                found.push((path, code));
            }
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn tests_are_told_from_other_functions() {
    let code = r#"
        #[test]
        fn _001_plain() {}
        #[tokio::test(
            flavor = "multi_thread",
        )]
        /// A word.
        async fn _002_e003_with_arguments() {}
        fn _004_no_test() {}
        #[test]
        struct Between;
        fn _005_no_test_either() {}
            #[test]
            #[should_panic]
            fn _006_in_a_macro(x in 0..3) {}
        // fn _007_commented_out() {}
    "#;
    // The text above has `_` for `e`: otherwise this file would seem to have numbered functions.
    let code = code.replace("fn _", "fn e");
    let expected = [
        ("e001_plain", true),
        ("e002_e003_with_arguments", true),
        ("e004_no_test", false),
        ("e005_no_test_either", false),
        ("e006_in_a_macro", true),
    ];
    assert_eq!(functions(&code), expected.map(|(name, is_test)| (name.to_owned(), is_test)));
    for (name, expected) in [
        ("e001_x", vec![1]),
        ("e039_e040_a_e041", vec![39, 40]),
        ("e12_x", vec![]),
        ("e1234_x", vec![]),
        ("e172_e173 hears e174", vec![172, 173]),
        ("each_entry", vec![]),
    ] {
        assert_eq!(numbers(name), expected, "{name}");
    }
}

#[test]
fn titles_of_client_tests_are_told_from_other_words() {
    let code = r#"
        test("_172 plainly", async () => {
          step("_173__174 in a table", {
        restarts("_175 by another name", "SIGTERM"),
        // test("_176 commented out")
        const title = "_177 declares nothing"
        test("no number")
    "#;
    let code = code.replace('_', "e").replace("ee", "_e");
    let expected = ["e172 plainly", "e173_e174 in a table", "e175 by another name"];
    assert_eq!(titles(&code), expected);
}
