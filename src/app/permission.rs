//! Permissions: the topic patterns that a token's `listen` and `publish` claims hold.
//!
//! In a pattern `:*` stands for a colon and any text after it, and everything else is literal; a
//! bare `*` therefore allows only a topic of that name, which no topic can have. The rule and its
//! truth table are in section 12.6 of the protocol document.

use serde_json::Value;

/// Compiled topic patterns of one claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patterns(Box<[Pattern]>);

impl Patterns {
    /// The most patterns of one claim that are read; those beyond allow nothing.
    pub const COUNT_MAX: usize = 1_000;

    /// Compiles a claim: an array of strings. Entries of other types are ignored, and a claim of
    /// any other type allows nothing.
    pub fn compile(claim: &Value) -> Self {
        let entries = claim.as_array().map(Vec::as_slice).unwrap_or_default();
        let texts = entries.iter().filter_map(Value::as_str);
        Self(texts.take(Self::COUNT_MAX).map(Pattern::compile).collect())
    }

    /// Returns whether any pattern matches the whole topic.
    pub fn allow(&self, topic: &str) -> bool {
        // The implementation from which the rule comes used regular expressions, in which `.` does not
        // match a newline. No topic may contain a newline, so a text with one matches nothing here.
        !topic.contains('\n') && self.0.iter().any(|pattern| pattern.matches(topic))
    }

    /// The patterns one by one, for topics that have several spellings.
    pub fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.0.iter()
    }
}

/// One pattern, cut after the colon of every `:*`: `a:*:z` is `a:`, anything, `:z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// The prefix of a topic; the whole topic if no other piece follows.
    first: Box<str>,
    /// The pieces that must follow in this order, with any text in between; the last one ends the
    /// topic.
    rest: Box<[Box<str>]>,
}

impl Pattern {
    fn compile(text: &str) -> Self {
        let (mut pieces, mut left) = (Vec::new(), text);
        while let Some(colon) = left.find(":*") {
            pieces.push(Box::from(&left[..=colon]));
            left = &left[colon + 2..];
        }
        pieces.push(Box::from(left));
        let first = pieces.remove(0);
        Self { first, rest: pieces.into() }
    }

    /// The prefix of every topic that this pattern matches; for a pattern without `:*` the whole
    /// topic.
    pub fn head(&self) -> &str {
        &self.first
    }

    /// Returns whether this is the pattern `<scope>:*`.
    pub fn is_all_of(&self, scope: &str) -> bool {
        self.first.strip_suffix(':') == Some(scope)
            && matches!(&*self.rest, [end] if end.is_empty())
    }

    /// Returns whether this pattern matches the whole topic.
    ///
    /// Takes each piece at its leftmost place. That leaves the most room for the pieces after it,
    /// so no backtracking is needed, and a topic is read once.
    pub fn matches(&self, topic: &str) -> bool {
        let Some((last, middle)) = self.rest.split_last() else {
            return topic == &*self.first;
        };
        let Some(mut left) = topic.strip_prefix(&*self.first) else {
            return false;
        };
        for piece in middle {
            let Some(at) = left.find(&**piece) else {
                return false;
            };
            left = &left[at + piece.len()..];
        }
        left.ends_with(&**last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn allows(pattern: &str, topic: &str) -> bool {
        Patterns::compile(&json!([pattern])).allow(topic)
    }

    #[test]
    fn e202_patterns_match_as_the_table_of_12_6_says() {
        for (pattern, topic, expected) in [
            ("private:*", "private:123", true),
            ("private:*", "private:a:b", true),
            ("private:*", "private:", true),
            ("private:*", "private", false),
            ("private:*", "xprivate:1", false),
            ("private:*", "Private:1", false),
            ("private:*", "private:a\nb", false),
            ("private:*", "private:a\n", false),
            ("deploys:web", "deploys:web", true),
            ("deploys:web", "deploys:webx", false),
            ("deploys:web", "deploys:web\n", false),
            ("a:*:z", "a:1:2:z", true),
            ("a:*:z", "a::z", true),
            ("a:*:z", "a:z", false),
            ("a:*:*", "a:1", false),
            ("a:*:*", "a:1:", true),
            ("a:*:*", "a:1:2", true),
            ("private:*x", "private:abcx", true),
            ("private:*x", "private:x", true),
            ("private:*x", "private:abc", false),
            // The implementation from which the rule comes read these as regular expressions by accident.
            ("a.b:c", "a.b:c", true),
            ("a.b:c", "axb:c", false),
            ("a|private:b", "azzz", false),
            ("a|private:b", "zzprivate:b", false),
            ("pub*", "pub", false),
            ("pub*", "pubb", false),
            ("pub*", "publ", false),
            // Beyond the table.
            ("", "", true),
            ("", "a:b", false),
            (":*", "a:b", false),
            (":*", ":b", true),
            ("caf\u{e9}:*", "caf\u{e9}:\u{1f600}", true),
            ("a:*bc:*bcd", "a:bc:bcd", true),
            ("a:*bc:*bcd", "a:bcd", false),
        ] {
            assert_eq!(allows(pattern, topic), expected, "{pattern:?} on {topic:?}");
        }
    }

    #[test]
    fn e204_a_bare_star_and_what_was_no_regex_allow_nothing_more_than_themselves() {
        for (pattern, topic, expected) in [
            ("*", "private:123", false),
            ("*", "", false),
            ("*", "*", true),
            ("**", "private:123", false),
            ("a:**", "a:b", false),
            ("a:**", "a:b*", true),
            ("room:[", "room:1", false),
            ("room:[", "room:[", true),
            ("(", "private:1", false),
            ("\\", "private:1", false),
            (".*", "private:1", false),
        ] {
            assert_eq!(allows(pattern, topic), expected, "{pattern:?} on {topic:?}");
        }
    }

    #[test]
    fn a_claim_that_is_no_array_of_strings_allows_nothing() {
        for claim in [
            json!(null),
            json!(true),
            json!("private:*"),
            json!({"private:*": true}),
            json!([]),
            json!([1, null, ["private:*"], {"a": "private:*"}]),
        ] {
            assert!(!Patterns::compile(&claim).allow("private:1"), "{claim}");
        }
        let mixed = json!([1, "private:*", null]);
        assert!(Patterns::compile(&mixed).allow("private:1"), "strings among others count");
    }

    #[test]
    fn patterns_beyond_the_limit_allow_nothing() {
        let mut claim: Vec<_> = (1..Patterns::COUNT_MAX).map(|n| format!("x:{n}")).collect();
        claim.push("at:limit".into());
        claim.push("beyond:limit".into());
        let patterns = Patterns::compile(&json!(claim));
        assert!(patterns.allow("at:limit"));
        assert!(!patterns.allow("beyond:limit"));
    }

    #[test]
    fn many_stars_on_a_long_topic_take_no_time() {
        let pattern = format!("a{}x", ":*:".repeat(2_000));
        let topic = format!("a{}", ":".repeat(1_000_000));
        assert!(!allows(&pattern, &topic));
    }

    /// The rule implemented literally, without regard for speed.
    fn matches_naively(pattern: &str, topic: &str) -> bool {
        if let Some(pattern) = pattern.strip_prefix(":*") {
            let Some(topic) = topic.strip_prefix(':') else {
                return false;
            };
            return (0..=topic.len())
                .filter(|&at| topic.is_char_boundary(at))
                .any(|at| matches_naively(pattern, &topic[at..]));
        }
        let mut rest = pattern.chars();
        match rest.next() {
            None => topic.is_empty(),
            Some(c) => {
                topic.strip_prefix(c).is_some_and(|topic| matches_naively(rest.as_str(), topic))
            }
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_rule(pattern in "[ab:*\u{e9}]{0,12}", topic in "[ab:*\u{e9}]{0,12}") {
            prop_assert_eq!(allows(&pattern, &topic), matches_naively(&pattern, &topic));
        }

        #[test]
        fn a_pattern_matches_the_text_that_it_spells_out(pieces in prop::collection::vec("[a:*]{0,4}", 1..5), fill in "[a:b]{0,4}") {
            let pattern = pieces.join(":*");
            let topic = pieces.join(&format!(":{fill}"));
            prop_assert_eq!(allows(&pattern, &topic), matches_naively(&pattern, &topic));
        }
    }
}
