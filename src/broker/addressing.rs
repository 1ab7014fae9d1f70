//! Addressing: how this server spells its topics, and which topics a token's patterns cover.
//!
//! A server with many apps names the app in each topic. A server with a single app need not: there
//! `<scope>:<channel>` is enough, and `<scope>:<app slug>[:<channel>]` is understood as well, so
//! that clients written for many apps run unchanged. The longer spelling wins: a channel whose name
//! is the app's slug, or begins with the slug and a colon, has the longer spelling only
//! (`public:foo-app:foo-app`).

use crate::app::{Slug, permission::Patterns};

use super::{
    publication::NameError,
    topic_name::{ChannelName, Scope},
};

/// The spelling of topics on this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressing {
    /// `<scope>:<app slug>` or `<scope>:<app slug>:<channel>`.
    ManyApps,
    /// All topics are of one app: `<scope>:<channel>`, or as with many apps.
    SingleApp(Slug),
}

impl Addressing {
    /// Spells the topic of `channel`, or of the whole scope. Of several spellings it takes the
    /// shortest.
    pub fn spell(&self, scope: &Scope, app: &Slug, channel: Option<&ChannelName>) -> String {
        match (self, channel.map(ChannelName::as_str)) {
            (_, None) => [scope.as_str(), app.as_str()].join(":"),
            (Self::SingleApp(_), Some(channel)) if behind(app.as_str(), channel).is_none() => {
                [scope.as_str(), channel].join(":")
            }
            (_, Some(channel)) => [scope.as_str(), app.as_str(), channel].join(":"),
        }
    }

    /// Returns whether these patterns grant a right to exactly this topic: a channel, or a whole scope.
    ///
    /// With a single app a pattern is read in the spelling in which it is written. One that begins
    /// with `<scope>:<app slug>` is compared with the longer spelling of the topic. Any other is
    /// compared with `<scope>:<channel>`, so that its `:*` never stands for the app; of the patterns
    /// written like this `<scope>:*` alone covers the whole scope.
    pub fn allow(
        &self,
        patterns: &Patterns,
        scope: &Scope,
        app: &Slug,
        channel: Option<&ChannelName>,
    ) -> bool {
        let Self::SingleApp(_) = self else {
            return patterns.allow(&self.spell(scope, app, channel));
        };
        let whole = format!("{scope}:{app}");
        let topics =
            channel.map(|channel| (format!("{whole}:{channel}"), format!("{scope}:{channel}")));
        patterns.iter().any(|pattern| {
            let names_the_app = behind(&whole, pattern.head()).is_some();
            match (&topics, names_the_app) {
                (Some((long, _)), true) => pattern.matches(long),
                (Some((_, short)), false) => pattern.matches(short),
                (None, true) => pattern.matches(&whole),
                (None, false) => pattern.is_all_of(scope.as_str()),
            }
        })
    }

    /// Returns whether these patterns grant the right to publish to a channel, or to the whole scope. A
    /// right to the whole scope covers its channels.
    pub fn allow_publishing(
        &self,
        patterns: &Patterns,
        scope: &Scope,
        app: &Slug,
        channel: Option<&ChannelName>,
    ) -> bool {
        self.allow(patterns, scope, app, channel)
            || channel.is_some() && self.allow(patterns, scope, app, None)
    }

    /// Reads the part of a topic after the scope: the app, and the channel if there is one.
    pub(super) fn split<'a>(&self, rest: &'a str) -> Result<(Slug, Option<&'a str>), NameError> {
        match self {
            Self::SingleApp(app) => {
                Ok((app.clone(), behind(app.as_str(), rest).unwrap_or(Some(rest))))
            }
            Self::ManyApps => {
                let (slug, channel) = match rest.split_once(':') {
                    Some((slug, channel)) => (slug, Some(channel)),
                    None => (rest, None),
                };
                Ok((Slug::parse(slug).ok_or(NameError::BadCharacter)?, channel))
            }
        }
    }
}

/// The rest of a text after `front` and a colon. `Some(None)` if the text is `front`, and `None` if it
/// neither is `front` nor begins with `front` and a colon.
fn behind<'a>(front: &str, text: &'a str) -> Option<Option<&'a str>> {
    match text.strip_prefix(front)? {
        "" => Some(None),
        rest => rest.strip_prefix(':').map(Some),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::topic_name::TopicName, *};

    fn single() -> Addressing {
        Addressing::SingleApp(slug())
    }

    fn slug() -> Slug {
        Slug::parse("foo-app").expect("a slug")
    }

    fn private() -> Scope {
        Scope::parse("private").expect("a scope")
    }

    fn channel(name: Option<&str>) -> Option<ChannelName> {
        name.map(|name| ChannelName::parse(name).expect("a channel"))
    }

    #[test]
    fn with_a_single_app_a_topic_names_the_app_or_does_not() {
        let rows = [
            // As it is sent, its channel, and as it is spelled by the server.
            ("private:web", Some("web"), "private:web"),
            ("private:123:456", Some("123:456"), "private:123:456"),
            ("private:foo-app", None, "private:foo-app"),
            ("private:foo-app:web", Some("web"), "private:web"),
            ("private:foo-app:123:456", Some("123:456"), "private:123:456"),
            ("private:foo-app:foo-app", Some("foo-app"), "private:foo-app:foo-app"),
            ("private:foo-app:foo-app:web", Some("foo-app:web"), "private:foo-app:foo-app:web"),
            ("private:foo-apple", Some("foo-apple"), "private:foo-apple"),
            ("private:foo-app ", Some("foo-app "), "private:foo-app "),
            ("private:web:foo-app", Some("web:foo-app"), "private:web:foo-app"),
            ("private:bar-app:web", Some("bar-app:web"), "private:bar-app:web"),
        ];
        for (raw, expected, spelled) in rows {
            let topic = TopicName::parse(raw, &single()).expect("a topic");
            let read = topic.channel.as_ref().map(ChannelName::as_str);
            assert_eq!((topic.as_str(), topic.app.as_str(), read), (raw, "foo-app", expected));
            let told = single().spell(&topic.scope, &topic.app, topic.channel.as_ref());
            assert_eq!(told, spelled, "{raw}");
            let again = TopicName::parse(&told, &single()).expect("a topic");
            assert_eq!(again.channel, topic.channel, "{raw}");
        }
        for (raw, fault) in [
            ("private", NameError::Incomplete),
            ("private:", NameError::Empty),
            ("private:foo-app:", NameError::Empty),
            ("private:foo-app:#general", NameError::Reserved),
        ] {
            assert_eq!(TopicName::parse(raw, &single()), Err(fault), "{raw}");
        }
    }

    /// The topics to which a right may be required: the whole scope, and channels.
    const PLACES: [Option<&str>; 6] =
        [None, Some("web"), Some("7:web"), Some("foo-app"), Some("foo-app:web"), Some("foo-apple")];

    #[test]
    fn with_a_single_app_a_pattern_covers_the_same_topics_in_either_spelling() {
        for (pattern, covered) in [
            ("private:*", &PLACES[..]),
            ("private:foo-app:*", &PLACES[1..]),
            ("private:foo-app", &[None]),
            ("private:web", &[Some("web")]),
            ("private:foo-app:web", &[Some("web")]),
            ("private:7:web", &[Some("7:web")]),
            ("private:foo-app:7:web", &[Some("7:web")]),
            ("private:7:*", &[Some("7:web")]),
            ("private:foo-app:7:*", &[Some("7:web")]),
            // `:*` stands for a part of a channel's name, never for the app.
            ("private:*:web", &[Some("7:web"), Some("foo-app:web")]),
            ("private:*:*", &[Some("7:web"), Some("foo-app:web")]),
            ("private:foo-app:*:web", &[Some("7:web"), Some("foo-app:web")]),
            ("private:*-app", &[Some("foo-app")]),
            ("private:foo-app:*-app", &[Some("foo-app")]),
            ("private:*foo-app", &[Some("foo-app")]),
            ("private:foo-app:foo-app", &[Some("foo-app")]),
            ("private:foo-app:foo-app:web", &[Some("foo-app:web")]),
            ("private:foo-app:foo-app:*", &[Some("foo-app:web")]),
            ("private:foo-apple", &[Some("foo-apple")]),
            ("private:foo-app:foo-apple", &[Some("foo-apple")]),
            // These patterns cover no topic.
            ("private:bar-app:*", &[]),
            ("private:foo-app*", &[]),
            ("private:foo-app:", &[]),
            ("private:#general", &[]),
            ("private:*l", &[]),
            ("private:", &[]),
            ("private", &[]),
            ("public:*", &[]),
            ("*:*", &[]),
            ("*", &[]),
        ] {
            let patterns = Patterns::compile(&json!([pattern]));
            for place in PLACES {
                let channel = channel(place);
                let allowed = single().allow(&patterns, &private(), &slug(), channel.as_ref());
                assert_eq!(allowed, covered.contains(&place), "{pattern} on {place:?}");
            }
        }
    }

    #[test]
    fn with_many_apps_a_pattern_covers_the_topics_that_it_matches_as_text() {
        for (pattern, covered) in [
            ("private:*", &PLACES[..]),
            ("private:foo-app:*", &PLACES[1..]),
            ("private:foo-app", &[None]),
            ("private:*:web", &[Some("web"), Some("7:web"), Some("foo-app:web")]),
            ("private:*-app", &[None, Some("foo-app")]),
            ("private:foo-app:web", &[Some("web")]),
            ("private:web", &[]),
        ] {
            let patterns = Patterns::compile(&json!([pattern]));
            for place in PLACES {
                let channel = channel(place);
                let allowed =
                    Addressing::ManyApps.allow(&patterns, &private(), &slug(), channel.as_ref());
                assert_eq!(allowed, covered.contains(&place), "{pattern} on {place:?}");
            }
        }
    }

    #[test]
    fn a_right_to_publish_to_the_whole_scope_covers_its_channels() {
        for addressing in [single(), Addressing::ManyApps] {
            for (pattern, covered) in [
                ("private:foo-app", &PLACES[..]),
                ("private:*", &PLACES[..]),
                ("private:foo-app:*", &PLACES[1..]),
                ("private:foo-app:web", &[Some("web")]),
            ] {
                let patterns = Patterns::compile(&json!([pattern]));
                for place in PLACES {
                    let channel = channel(place);
                    let (patterns, channel) = (&patterns, channel.as_ref());
                    let allowed =
                        addressing.allow_publishing(patterns, &private(), &slug(), channel);
                    assert_eq!(allowed, covered.contains(&place), "{pattern} on {place:?}");
                }
            }
        }
    }
}
