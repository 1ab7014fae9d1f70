//! Bracketed forms: `a[b]=c` as browsers, Rails and Plug write nested parameters.
//!
//! Query strings of sockets and bodies of the admin API both arrive in this shape; see
//! section 3.1 of the protocol document for the leniency that phoenix.js needs.

use serde_json::{Map, Value};

/// How many `[key]` steps one parameter may have; deeper ones are kept under their literal name.
const DEPTH_MAX: usize = 16;

/// Parses `a=1&b[c]=2&d[]=3` into `{"a":"1","b":{"c":"2"},"d":["3"]}`.
///
/// All leaves are strings. Empty pairs (`&&`) are skipped, of duplicate keys the last one wins,
/// and bytes that are not UTF-8 are replaced. A key that is used both as a leaf and as a branch
/// keeps its last use.
pub fn parse(encoded: &[u8]) -> Map<String, Value> {
    let mut root = Map::new();
    for (key, value) in form_urlencoded::parse(encoded) {
        if !key.is_empty() {
            insert(&mut root, &path(&key), value.into_owned());
        }
    }
    root
}

/// Splits `a[b][]` into `["a", "b", ""]`; a key that is not well bracketed is one literal step.
fn path(key: &str) -> Vec<&str> {
    let literal = vec![key];
    let Some((head, mut rest)) = key.split_once('[') else {
        return literal;
    };
    if head.is_empty() {
        return literal;
    }
    let mut steps = vec![head];
    loop {
        let Some((step, after)) = rest.split_once(']') else {
            return literal;
        };
        steps.push(step);
        if steps.len() > DEPTH_MAX {
            return literal;
        }
        if after.is_empty() {
            return steps;
        }
        let Some(next) = after.strip_prefix('[') else {
            return literal;
        };
        rest = next;
    }
}

fn insert(into: &mut Map<String, Value>, steps: &[&str], leaf: String) {
    let (head, rest) = (steps[0], &steps[1..]);
    match rest {
        [] => {
            into.insert(head.to_owned(), Value::String(leaf));
        }
        [""] => match into.get_mut(head) {
            Some(Value::Array(items)) => items.push(Value::String(leaf)),
            _ => {
                into.insert(head.to_owned(), Value::Array(vec![Value::String(leaf)]));
            }
        },
        _ => {
            if !matches!(into.get(head), Some(Value::Object(_))) {
                into.insert(head.to_owned(), Value::Object(Map::new()));
            }
            if let Some(Value::Object(branch)) = into.get_mut(head) {
                insert(branch, rest, leaf);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forms_become_nested_values() {
        for (case, encoded, expected) in [
            ("nothing", "", json!({})),
            ("flat", "a=1&b=2", json!({"a": "1", "b": "2"})),
            ("no value", "a", json!({"a": ""})),
            ("empty pairs", "a=1&&b[c]=2&", json!({"a": "1", "b": {"c": "2"}})),
            ("encoded brackets", "nested%5Ba%5D=1", json!({"nested": {"a": "1"}})),
            ("last wins", "vsn=1.0.0&vsn=2.0.0", json!({"vsn": "2.0.0"})),
            ("list", "o[]=x&o[]=y", json!({"o": ["x", "y"]})),
            ("list in a branch", "app[o][]=x&app[o][]=y", json!({"app": {"o": ["x", "y"]}})),
            ("branch then leaf", "a[b]=1&a=2", json!({"a": "2"})),
            ("leaf then branch", "a=2&a[b]=1", json!({"a": {"b": "1"}})),
            ("unclosed", "a[b=1", json!({"a[b": "1"})),
            ("trailing text", "a[b]c=1", json!({"a[b]c": "1"})),
            ("no head", "[b]=1", json!({"[b]": "1"})),
            ("plus and percent", "a=x+y%21", json!({"a": "x y!"})),
            ("bad percent", "a=%zz", json!({"a": "%zz"})),
            ("not UTF-8", "a=%ff", json!({"a": "\u{fffd}"})),
        ] {
            assert_eq!(Value::Object(parse(encoded.as_bytes())), expected, "{case}");
        }
    }

    #[test]
    fn a_key_nested_beyond_reason_stays_literal() {
        let key = format!("a{}", "[b]".repeat(10_000));
        let parsed = parse(format!("{key}=1").as_bytes());
        assert_eq!(parsed.get(&key), Some(&json!("1")));
    }
}
