//! Topic names: what a client joins.

use std::fmt;

use bytestring::ByteString;

use crate::app::Slug;

use super::{addressing::Addressing, publication::NameError};

/// Who may hear: `public` needs no token, every other scope does. 1–32 of `[A-Za-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(ByteString);

impl Scope {
    /// The most bytes a scope may have.
    pub const BYTES_MAX: usize = 32;

    /// Parses a scope.
    ///
    /// # Errors
    /// [`NameError`] if it breaks the rule above.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        Self::check(raw).map(|()| Self(raw.into()))
    }

    /// The same of a part of `whole`, whose memory it shares.
    fn within(whole: &ByteString, part: &str) -> Result<Self, NameError> {
        Self::check(part).map(|()| Self(whole.slice_ref(part)))
    }

    fn check(raw: &str) -> Result<(), NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        match raw.len() {
            0 => Err(NameError::Empty),
            1..=Self::BYTES_MAX if raw.bytes().all(allowed) => Ok(()),
            1..=Self::BYTES_MAX => Err(NameError::BadCharacter),
            _ => Err(NameError::TooLong),
        }
    }

    /// The scope that needs no token.
    pub fn public() -> Self {
        Self(ByteString::from_static("public"))
    }

    /// Whether this is the scope that needs no token.
    pub fn is_public(&self) -> bool {
        self.0 == "public"
    }

    /// Whether those who join a channel of this scope are tracked.
    pub fn is_presence(&self) -> bool {
        self.0 == "presence"
    }

    /// The scope as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A named stream inside one scope of an app: 1–200 bytes, no control characters, not beginning
/// with `#`. It may contain colons.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(ByteString);

impl ChannelName {
    /// The most bytes a channel may have.
    pub const BYTES_MAX: usize = 200;

    /// Parses a channel name.
    ///
    /// # Errors
    /// [`NameError`] if it breaks the rule above.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        NameError::check(raw, Self::BYTES_MAX)?;
        Ok(Self(raw.into()))
    }

    /// The same of a part of `whole`, whose memory it shares.
    fn within(whole: &ByteString, part: &str) -> Result<Self, NameError> {
        NameError::check(part, Self::BYTES_MAX)?;
        Ok(Self(whole.slice_ref(part)))
    }

    /// The same name in memory of its own: a part of a topic keeps the whole topic.
    pub(super) fn detached(&self) -> Self {
        Self(ByteString::from(&*self.0))
    }

    /// The channel as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A parsed topic: what a client joins.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicName {
    /// Who may hear.
    pub scope: Scope,
    /// Whose it is.
    pub app: Slug,
    /// One channel of the scope; `None` is the scope as a whole.
    pub channel: Option<ChannelName>,
    wire: ByteString,
}

impl TopicName {
    /// The most bytes a whole topic may have.
    pub const BYTES_MAX: usize = 255;

    /// Parses a topic as `addressing` spells it.
    ///
    /// # Errors
    /// [`NameError::TooLong`] beyond 255 bytes; else the fault of the first bad part. Whether the
    /// app exists is not asked here.
    pub fn parse(raw: &str, addressing: &Addressing) -> Result<Self, NameError> {
        if raw.len() > Self::BYTES_MAX {
            return Err(NameError::TooLong);
        }
        // Each subscriber keeps its topic, and the broker keeps its parts: all in one place.
        let wire = ByteString::from(raw);
        let (scope, rest) = wire.split_once(':').ok_or(NameError::Incomplete)?;
        let scope = Scope::within(&wire, scope)?;
        let (app, channel) = addressing.split(rest)?;
        let channel = channel.map(|channel| ChannelName::within(&wire, channel)).transpose()?;
        Ok(Self { scope, app, channel, wire })
    }

    /// Whether those who join it are tracked: on channels of the scope `presence`, not in the scope
    /// as a whole.
    pub fn is_tracked(&self) -> bool {
        self.scope.is_presence() && self.channel.is_some()
    }

    /// The topic as it is spelled on the wire.
    pub fn as_str(&self) -> &str {
        &self.wire
    }

    /// The topic as it is spelled on the wire, shared.
    pub fn wire(&self) -> &ByteString {
        &self.wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> Result<(String, String, Option<String>), NameError> {
        let addressing = &Addressing::ManyApps;
        let topic = TopicName::parse(raw, addressing)?;
        assert_eq!(topic.as_str(), raw);
        let spelled = addressing.spell(&topic.scope, &topic.app, topic.channel.as_ref());
        assert_eq!(spelled, raw, "a topic is spelled as it was parsed");
        let channel = topic.channel.map(|c| c.to_string());
        Ok((topic.scope.to_string(), topic.app.to_string(), channel))
    }

    #[test]
    fn topics_split_into_scope_app_and_channel() {
        for (raw, scope, app, channel) in [
            ("public:foo-app", "public", "foo-app", None),
            ("public:foo-app:foo-topic", "public", "foo-app", Some("foo-topic")),
            ("S_1-x:app:room:1", "S_1-x", "app", Some("room:1")),
            ("public:app:caf\u{e9}", "public", "app", Some("caf\u{e9}")),
            ("public:app: ", "public", "app", Some(" ")),
        ] {
            let expected = (scope.into(), app.into(), channel.map(String::from));
            assert_eq!(parse(raw), Ok(expected), "{raw:?}");
        }
    }

    #[test]
    fn what_is_no_topic_is_refused() {
        let long = format!("public:app:{}", "x".repeat(201));
        let whole = format!("{}:{}:{}", "s".repeat(32), "a".repeat(63), "x".repeat(170));
        for (raw, fault) in [
            ("", NameError::Incomplete),
            ("public", NameError::Incomplete),
            ("phoenix", NameError::Incomplete),
            (":app", NameError::Empty),
            ("pub lic:app", NameError::BadCharacter),
            ("public:", NameError::BadCharacter),
            ("public:App", NameError::BadCharacter),
            ("public:foo_app", NameError::BadCharacter),
            ("public:app:", NameError::Empty),
            ("public:app:#general", NameError::Reserved),
            ("public:app:a\nb", NameError::BadCharacter),
            ("public:app:a\u{0}b", NameError::BadCharacter),
            ("public:app:a\u{85}b", NameError::BadCharacter),
            (&long, NameError::TooLong),
            (&whole, NameError::TooLong),
        ] {
            assert_eq!(parse(raw), Err(fault), "{raw:?}");
        }
    }
}
