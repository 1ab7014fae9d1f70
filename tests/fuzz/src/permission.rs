//! Permission patterns.

use herald::{
    app::{Slug, permission::Patterns},
    broker::{Addressing, TopicName},
};
use serde_json::{Value, json};

/// The most cells of the table that [`matches`] may fill.
const CELLS_MAX: usize = 1 << 20;

/// The first line is a pattern, or a whole claim as JSON; what follows is a topic.
pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (pattern, topic) = text.split_once('\n').unwrap_or((text, ""));
    if pattern.len().saturating_mul(topic.len()) > CELLS_MAX {
        return;
    }
    one(pattern, topic);
    bare_star(topic);
    open_end(pattern, topic);
    if let Ok(claim) = serde_json::from_str::<Value>(pattern) {
        claimed(&claim, topic);
    }
}

/// Whether a claim of patterns allows a topic, by the rule read aloud.
pub(crate) fn allows(claim: &Value, topic: &str) -> bool {
    let Value::Array(entries) = claim else { return false };
    let patterns = entries.iter().filter_map(Value::as_str).take(Patterns::COUNT_MAX);
    patterns.into_iter().any(|pattern| matches(pattern, topic))
}

fn one(pattern: &str, topic: &str) {
    let found = Patterns::compile(&json!([pattern])).allow(topic);
    assert_eq!(found, matches(pattern, topic), "{pattern:?} on {topic:?}");
}

/// A pattern of stars alone allows no valid topic; any other name may match.
fn bare_star(topic: &str) {
    let star = Patterns::compile(&json!(["*", "**"]));
    let only = Addressing::SingleApp(Slug::parse("only-app").expect("a slug"));
    let is_topic = |addressing| TopicName::parse(topic, addressing).is_ok();
    if is_topic(&Addressing::ManyApps) || is_topic(&only) {
        assert!(!star.allow(topic), "a bare star allows {topic:?}");
    }
}

/// `:*` at the end allows what begins like it, and nothing else.
fn open_end(pattern: &str, topic: &str) {
    if pattern.contains(":*") {
        return;
    }
    let found = Patterns::compile(&json!([format!("{pattern}:*")])).allow(topic);
    let begins = topic.starts_with(&format!("{pattern}:")) && !topic.contains('\n');
    assert_eq!(found, begins, "{pattern:?} and :* on {topic:?}");
}

fn claimed(claim: &Value, topic: &str) {
    let texts = claim.as_array().into_iter().flatten().filter_map(Value::as_str);
    let bytes: usize = texts.map(str::len).sum();
    if bytes.saturating_mul(topic.len()) <= CELLS_MAX {
        assert_eq!(Patterns::compile(claim).allow(topic), allows(claim, topic), "{claim}");
    }
}

/// Fills a row for each piece of the pattern: at which ends of the topic's beginnings the pattern
/// so far could stop.
fn matches(pattern: &str, topic: &str) -> bool {
    if topic.contains('\n') {
        return false;
    }
    let topic = topic.as_bytes();
    let mut ends = vec![false; topic.len() + 1];
    ends[0] = true;
    let mut rest = pattern.as_bytes();
    while let [first, others @ ..] = rest {
        let mut next = vec![false; topic.len() + 1];
        for (at, byte) in topic.iter().enumerate() {
            next[at + 1] = ends[at] && byte == first;
        }
        rest = others;
        if let (b':', [b'*', others @ ..]) = (first, others) {
            // The colon, and anything after it.
            for at in 1..next.len() {
                next[at] |= next[at - 1];
            }
            rest = others;
        }
        ends = next;
    }
    ends[topic.len()]
}
