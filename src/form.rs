//! Bracketed forms: `a[b]=c` as browsers, Rails and Plug write nested parameters.
//!
//! Bodies are read as Rack's query parser reads them, or refused. A name that Rack reads
//! differently from version to version (`a]=1`), drops (`a[][][b]=1`) or overwrites (`a[b]=1&a=2`)
//! is refused, because no sender can have meant it. Query strings are read leniently, as section
//! 3.1 of the protocol document requires: clients may put any parameters into the URL of a socket.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use serde_json::{Map, Value};

/// The most parameters of a form; Rack's own bound.
pub const PARAMETERS_MAX: usize = 4_096;

/// The most steps of one parameter's name, `a[b][]` has three; Rack's own bound.
pub const DEPTH_MAX: usize = 32;

/// The most objects and lists of a form, over all its parameters.
pub const BRANCHES_MAX: usize = 4_096;

/// The most characters of a bad name that an error shows.
const TOLD_CHARS_MAX: usize = 100;

/// The reason why a form is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormError {
    /// The form is not UTF-8 after decoding, or a `%` is not followed by two hexadecimal digits.
    NotText,
    /// A parameter is not valid.
    BadName {
        /// The parameter's name, cut where it is very long.
        name: String,
        /// The fault, worded to follow the name.
        fault: &'static str,
    },
}

/// The error of a query string that is not UTF-8 after decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotUtf8;

/// Parses a body: `a=1&b[c]=2&d[]=3` is `{"a":"1","b":{"c":"2"},"d":["3"]}`.
///
/// All leaves are strings, even those without a `=`. Empty pairs (`&&`) are skipped, and the last
/// of several equal plain names wins. `a[][x]=1&a[][y]=2` is a list of one object; a repeated name
/// begins the next object.
///
/// # Errors
/// [`FormError`], for the first parameter that is not valid.
pub fn parse(encoded: &[u8]) -> Result<Map<String, Value>, FormError> {
    let (mut root, mut branches) = (Map::new(), 0);
    for (nth, (name, value)) in pairs(encoded).enumerate() {
        let (name, value) = (decode_strictly(name)?, decode_strictly(value)?);
        let bad = |fault| FormError::BadName { name: told(&name), fault };
        if nth >= PARAMETERS_MAX {
            return Err(bad("is one parameter too many, a form has at most 4096"));
        }
        if !name.is_empty() {
            let (head, steps) = path(&name).map_err(bad)?;
            put_member(&mut branches, &mut root, head, &steps, value.into_owned()).map_err(bad)?;
        }
    }
    Ok(root)
}

/// Parses a query string leniently: it refuses no name, and the last of several parameters with one name wins. A name
/// that [`parse`] would refuse is kept literally. A parameter with steps, such as `a[b]=1`, becomes an empty object,
/// because its readers treat all values alike that are not texts.
///
/// # Errors
/// [`NotUtf8`].
pub fn parse_query(encoded: &[u8]) -> Result<Map<String, Value>, NotUtf8> {
    let mut query = Map::new();
    for (name, value) in pairs(encoded) {
        let name = decode(name).ok_or(NotUtf8)?;
        let value = decode(value).ok_or(NotUtf8)?;
        match path(&name) {
            Ok((head, steps)) if !steps.is_empty() => {
                query.insert(head.to_owned(), Value::Object(Map::new()));
            }
            _ if name.is_empty() => {}
            _ => {
                query.insert(name.into_owned(), Value::String(value.into_owned()));
            }
        }
    }
    Ok(query)
}

/// The encoded names and values. Rack skips blanks after an `&`, which some hand-written forms
/// have.
fn pairs(encoded: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs = encoded.split(|byte| *byte == b'&').map(<[u8]>::trim_ascii_start);
    pairs.filter(|pair| !pair.is_empty()).map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=');
        at.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]))
    })
}

/// Decodes `+` and `%20`; a `%` without two hexadecimal digits stays unchanged. `None` if the
/// result is not UTF-8.
fn decode(encoded: &[u8]) -> Option<Cow<'_, str>> {
    let spaced: Cow<'_, [u8]> = match encoded.contains(&b'+') {
        true => encoded.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect(),
        false => encoded.into(),
    };
    match spaced {
        Cow::Borrowed(encoded) => match percent_decode(encoded).into() {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
        },
        Cow::Owned(encoded) => {
            let bytes = Cow::from(percent_decode(&encoded)).into_owned();
            String::from_utf8(bytes).ok().map(Cow::Owned)
        }
    }
}

fn decode_strictly(encoded: &[u8]) -> Result<Cow<'_, str>, FormError> {
    let is_escape = |after: &[u8]| matches!(after, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    let mut after_percents = encoded.split(|byte| *byte == b'%').skip(1);
    if !after_percents.all(is_escape) {
        return Err(FormError::NotText);
    }
    decode(encoded).ok_or(FormError::NotText)
}

fn told(name: &str) -> String {
    name.chars().take(TOLD_CHARS_MAX).collect()
}

/// One step of a parameter's name after its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameStep<'a> {
    /// `[b]`: a member of an object.
    Member(&'a str),
    /// `[]`: an item of a list.
    Item,
}

const MALFORMED: &str = "is not a well-formed name such as a, a[b] or a[]";
const TOO_DEEP: &str = "is nested too deeply";
const LIST_IN_LIST: &str = "has a list within a list, which forms cannot tell";
const CONTRADICTORY: &str = "contradicts another parameter of that name";
const TOO_MANY_BRANCHES: &str = "is one object or list too many, a form has at most 4096";

/// Splits `a[b][]` into its head `a` and the steps after it.
fn path(name: &str) -> Result<(&str, Vec<NameStep<'_>>), &'static str> {
    let head_ends = name.find(['[', ']']).unwrap_or(name.len());
    let (head, mut rest) = name.split_at(head_ends);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let inner = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let Some((step, after)) = inner.filter(|(step, _)| !step.contains('[')) else {
            return Err(MALFORMED);
        };
        let step = if step.is_empty() { NameStep::Item } else { NameStep::Member(step) };
        if (step, steps.last()) == (NameStep::Item, Some(&NameStep::Item)) {
            return Err(LIST_IN_LIST);
        }
        steps.push(step);
        if steps.len() >= DEPTH_MAX {
            return Err(TOO_DEEP);
        }
        rest = after;
    }
    if head.is_empty() { Err(MALFORMED) } else { Ok((head, steps)) }
}

/// Inserts a parameter at the place to which its steps lead. `branches` counts the objects and lists below the root.
fn put_member(
    branches: &mut usize,
    object: &mut Map<String, Value>,
    name: &str,
    steps: &[NameStep<'_>],
    leaf: String,
) -> Result<(), &'static str> {
    match (object.get_mut(name), steps) {
        (Some(Value::Array(items)), [NameStep::Item, rest @ ..]) => {
            put_item(branches, items, rest, leaf)
        }
        (Some(Value::Object(members)), [NameStep::Member(name), rest @ ..]) => {
            put_member(branches, members, name, rest, leaf)
        }
        (None | Some(Value::String(_)), []) | (None, _) => {
            object.insert(name.to_owned(), branch(branches, steps, leaf)?);
            Ok(())
        }
        (Some(_), _) => Err(CONTRADICTORY),
    }
}

/// Puts a parameter into the last item of a list, or into a new one.
fn put_item(
    branches: &mut usize,
    items: &mut Vec<Value>,
    steps: &[NameStep<'_>],
    leaf: String,
) -> Result<(), &'static str> {
    match (items.last_mut(), steps) {
        (Some(Value::Object(last)), [NameStep::Member(name), rest @ ..])
            if !has(last, name, rest) =>
        {
            put_member(branches, last, name, rest, leaf)
        }
        _ => {
            items.push(branch(branches, steps, leaf)?);
            Ok(())
        }
    }
}

/// The value that the steps lead to if it does not exist yet.
fn branch(
    branches: &mut usize,
    steps: &[NameStep<'_>],
    leaf: String,
) -> Result<Value, &'static str> {
    if *branches + steps.len() > BRANCHES_MAX {
        return Err(TOO_MANY_BRANCHES);
    }
    *branches += steps.len();
    Ok(steps.iter().rfold(Value::String(leaf), |inner, step| match step {
        NameStep::Item => Value::Array(vec![inner]),
        NameStep::Member(name) => Value::Object(Map::from_iter([((*name).to_owned(), inner)])),
    }))
}

/// Returns whether an object of a list already has this parameter, so that the parameter begins the next object.
/// A parameter that ends in a list, or passes through one, adds to the present object.
fn has(object: &Map<String, Value>, name: &str, steps: &[NameStep<'_>]) -> bool {
    let Some(value) = object.get(name) else { return false };
    match (steps, value) {
        ([], _) => true,
        ([NameStep::Member(name), rest @ ..], Value::Object(inner)) => has(inner, name, rest),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, process::Command};

    use serde_json::json;

    use super::*;

    /// Forms, and their contents.
    fn readable() -> Vec<(&'static str, Value)> {
        vec![
            ("", json!({})),
            ("a=1&b=2", json!({"a": "1", "b": "2"})),
            ("a=", json!({"a": ""})),
            ("a=1&&b[c]=2&", json!({"a": "1", "b": {"c": "2"}})),
            ("a=1& b=2", json!({"a": "1", "b": "2"})),
            ("=1&a=2", json!({"a": "2"})),
            ("nested%5Ba%5D=1", json!({"nested": {"a": "1"}})),
            ("vsn=1.0.0&vsn=2.0.0", json!({"vsn": "2.0.0"})),
            ("a=x+y%21&b=1=2", json!({"a": "x y!", "b": "1=2"})),
            ("gr%C3%BC%C3%9Fe=%F0%9F%98%80", json!({"gr\u{fc}\u{df}e": "\u{1f600}"})),
            ("o[]=x&o[]=y&o[]=x", json!({"o": ["x", "y", "x"]})),
            ("o[]=&o[]=x", json!({"o": ["", "x"]})),
            ("app[o][]=x&app[o][]=y", json!({"app": {"o": ["x", "y"]}})),
            ("a[b][c]=1&a[b][d]=2&a[e]=3", json!({"a": {"b": {"c": "1", "d": "2"}, "e": "3"}})),
            ("a[b]=1&a[b]=2", json!({"a": {"b": "2"}})),
            ("a[][x]=1&a[][y]=2", json!({"a": [{"x": "1", "y": "2"}]})),
            ("a[][x]=1&a[][x]=2", json!({"a": [{"x": "1"}, {"x": "2"}]})),
            (
                "i[][id]=1&i[][n]=a&i[][id]=2&i[][n]=b",
                json!({"i": [{"id": "1", "n": "a"}, {"id": "2", "n": "b"}]}),
            ),
            (
                "payload[items][][id]=1&payload[items][][n]=a&payload[items][][id]=2",
                json!({"payload": {"items": [{"id": "1", "n": "a"}, {"id": "2"}]}}),
            ),
            ("a[][b][]=1&a[][b][]=2", json!({"a": [{"b": ["1", "2"]}]})),
            (
                "a[][x]=1&a[][b][]=1&a[][x]=2&a[][b][]=3",
                json!({"a": [{"x": "1", "b": ["1"]}, {"x": "2", "b": ["3"]}]}),
            ),
            ("a[][b][c]=1&a[][b][d]=2", json!({"a": [{"b": {"c": "1", "d": "2"}}]})),
            ("a[][b][c]=1&a[][b][c]=2", json!({"a": [{"b": {"c": "1"}}, {"b": {"c": "2"}}]})),
            ("a[][b][c]=1&a[][b]=2", json!({"a": [{"b": {"c": "1"}}, {"b": "2"}]})),
            ("a[][b][][c]=1&a[][b][][c]=2", json!({"a": [{"b": [{"c": "1"}, {"c": "2"}]}]})),
            ("a[]=1&a[][x]=2&a[]=3", json!({"a": ["1", {"x": "2"}, "3"]})),
            ("a[0][x]=1&a[1][x]=2", json!({"a": {"0": {"x": "1"}, "1": {"x": "2"}}})),
            ("a.b=1&a-b[c d]=2", json!({"a.b": "1", "a-b": {"c d": "2"}})),
        ]
    }

    /// The contents as a query string has them: every value that is not a text is an empty object.
    fn flat(form: Value) -> Value {
        let Value::Object(members) = form else { panic!("{form}") };
        let flat = |value: Value| if value.is_string() { value } else { json!({}) };
        members.into_iter().map(|(name, value)| (name, flat(value))).collect()
    }

    #[test]
    fn forms_become_nested_values() {
        for (encoded, expected) in readable() {
            let read = parse(encoded.as_bytes()).map(Value::Object);
            assert_eq!(read, Ok(expected.clone()), "{encoded}");
            let read = parse_query(encoded.as_bytes()).map(Value::Object);
            assert_eq!(read, Ok(flat(expected)), "{encoded}, as a query");
        }
        let bare = parse(b"a&b[c]").map(Value::Object);
        assert_eq!(bare, Ok(json!({"a": "", "b": {"c": ""}})), "no =, for which Rack has nil");
    }

    /// Forms that are refused, the parameter at fault, and the contents as a query string.
    fn contradictory_or_malformed() -> Vec<(&'static str, &'static str, &'static str, Value)> {
        vec![
            ("a[b=1", "a[b", MALFORMED, json!({"a[b": "1"})),
            ("payload[a=1", "payload[a", MALFORMED, json!({"payload[a": "1"})),
            ("a[b]c=1", "a[b]c", MALFORMED, json!({"a[b]c": "1"})),
            ("a[b]]=1", "a[b]]", MALFORMED, json!({"a[b]]": "1"})),
            ("a[b[c]]=1", "a[b[c]]", MALFORMED, json!({"a[b[c]]": "1"})),
            ("a[[b]]=1", "a[[b]]", MALFORMED, json!({"a[[b]]": "1"})),
            ("a]=1", "a]", MALFORMED, json!({"a]": "1"})),
            ("a[=1", "a[", MALFORMED, json!({"a[": "1"})),
            ("[b]=1", "[b]", MALFORMED, json!({"[b]": "1"})),
            ("[]=1", "[]", MALFORMED, json!({"[]": "1"})),
            ("a[][]=1", "a[][]", LIST_IN_LIST, json!({"a[][]": "1"})),
            ("a[][][b]=1", "a[][][b]", LIST_IN_LIST, json!({"a[][][b]": "1"})),
            ("a=1&a[b]=2", "a[b]", CONTRADICTORY, json!({"a": {"b": "2"}})),
            ("a[b]=1&a=2", "a", CONTRADICTORY, json!({"a": "2"})),
            ("a=1&a[]=2", "a[]", CONTRADICTORY, json!({"a": ["2"]})),
            ("a[]=1&a=2", "a", CONTRADICTORY, json!({"a": "2"})),
            ("a[]=1&a[b]=2", "a[b]", CONTRADICTORY, json!({"a": {"b": "2"}})),
            ("a[b]=1&a[]=2", "a[]", CONTRADICTORY, json!({"a": ["2"]})),
            ("a[][b]=1&a[][b][c]=2", "a[][b][c]", CONTRADICTORY, json!({"a": [{"b": {"c": "2"}}]})),
            ("a[][b]=1&a[][b][]=2", "a[][b][]", CONTRADICTORY, json!({"a": [{"b": ["2"]}]})),
            (
                "payload={\"x\":1}&payload[a]=1",
                "payload[a]",
                CONTRADICTORY,
                json!({"payload": {"a": "1"}}),
            ),
        ]
    }

    #[test]
    fn a_name_that_cannot_be_read_is_told_and_in_a_query_string_kept() {
        for (encoded, name, fault, as_query) in contradictory_or_malformed() {
            let refused = FormError::BadName { name: name.to_owned(), fault };
            assert_eq!(parse(encoded.as_bytes()), Err(refused), "{encoded}");
            let query = parse_query(encoded.as_bytes()).map(Value::Object);
            assert_eq!(query, Ok(flat(as_query)), "{encoded}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_everywhere_and_a_bad_escape_in_forms() {
        for (encoded, as_query) in [
            (b"a=%ff".as_slice(), Err(NotUtf8)),
            (b"%ff=a", Err(NotUtf8)),
            (b"a=\xff", Err(NotUtf8)),
            (b"a=+%C3", Err(NotUtf8)),
            (b"a=%ed%a0%80", Err(NotUtf8)),
            (b"a[%ff]=1", Err(NotUtf8)),
            (b"a=%zz", Ok(json!({"a": "%zz"}))),
            (b"a=1%", Ok(json!({"a": "1%"}))),
            (b"a%2=1+2", Ok(json!({"a%2": "1 2"}))),
        ] {
            let shown = String::from_utf8_lossy(encoded);
            assert_eq!(parse(encoded), Err(FormError::NotText), "{shown}");
            assert_eq!(parse_query(encoded).map(Value::Object), as_query, "{shown}");
        }
    }

    fn deep(steps: usize) -> String {
        format!("a{}", "[b]".repeat(steps - 1))
    }

    #[test]
    fn depth_and_numbers_are_bounded() {
        let bad = |name: &str, fault| Err(FormError::BadName { name: told(name), fault });
        assert!(parse(deep(DEPTH_MAX).as_bytes()).is_ok());
        for steps in [DEPTH_MAX + 1, 10_000] {
            let name = deep(steps);
            assert_eq!(parse(name.as_bytes()), bad(&name, TOO_DEEP));
            let query = parse_query(name.as_bytes()).expect("text");
            assert_eq!(query.get(&name), Some(&json!("")), "{steps}");
        }
        let flat = |n: usize| (0..n).fold(String::new(), |form, nth| format!("{form}{nth}=&"));
        assert_eq!(parse(flat(PARAMETERS_MAX).as_bytes()).expect("a form").len(), PARAMETERS_MAX);
        let fault = "is one parameter too many, a form has at most 4096";
        assert_eq!(parse(flat(PARAMETERS_MAX + 1).as_bytes()), bad("4096", fault));
        let query = parse_query(flat(2 * PARAMETERS_MAX).as_bytes()).expect("text");
        assert_eq!(query.len(), 2 * PARAMETERS_MAX);

        let steps = DEPTH_MAX - 1;
        let fits = BRANCHES_MAX / steps;
        let bushy = |n: usize| {
            (0..n).fold(String::new(), |mut form, nth| {
                let _ = write!(form, "{nth}{}=&", "[b]".repeat(steps));
                form
            })
        };
        assert!(parse(bushy(fits).as_bytes()).is_ok());
        let name = format!("{fits}{}", "[b]".repeat(steps));
        assert_eq!(parse(bushy(fits + 1).as_bytes()), bad(&name, TOO_MANY_BRANCHES));
    }

    /// The result of this machine's Rack; `None` if Rack refuses the form.
    fn rack_reads(forms: &[&str]) -> Vec<Option<Value>> {
        let script = r#"
            require "json"
            require "rack"
            read = JSON.parse(ARGV[0]).map do |form|
              Rack::Utils.parse_nested_query(form)
            rescue Rack::QueryParser::ParameterTypeError, Rack::QueryParser::InvalidParameterError, RangeError
              nil
            end
            puts JSON.generate(read)
        "#;
        let forms = json!(forms).to_string();
        let ran = Command::new("ruby").args(["-e", script, "--", &forms]).output();
        let ran = ran.expect("ruby, which scripts/test installs");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "ruby-rack, which scripts/test installs: {said}");
        serde_json::from_slice(&ran.stdout).expect("JSON")
    }

    #[test]
    fn a_form_is_read_as_rack_reads_it() {
        let readable = readable();
        let forms: Vec<_> = readable.iter().map(|(encoded, _)| *encoded).collect();
        for ((encoded, expected), rack) in readable.iter().zip(rack_reads(&forms)) {
            assert_eq!(rack.as_ref(), Some(expected), "{encoded}");
        }
    }
}
