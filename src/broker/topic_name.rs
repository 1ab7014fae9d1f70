//! Topic names: the names that clients join.

use std::fmt;

use bytestring::ByteString;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::app::Slug;

use super::{addressing::Addressing, publication::NameError};

/// A scope decides who may join: `public` needs no token, every other scope does. Its name is
/// 1–32 characters of `[A-Za-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(ByteString);

impl Scope {
    /// The most bytes that a scope may have.
    pub const BYTES_MAX: usize = 32;

    /// Parses a scope.
    ///
    /// # Errors
    /// [`NameError`] if it breaks the rule above.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        Self::check(raw).map(|()| Self(raw.into()))
    }

    /// Parses a part of `whole`, and shares its memory.
    fn within(whole: &ByteString, part: &str) -> Result<Self, NameError> {
        Self::check(part).map(|()| Self(whole.slice_ref(part)))
    }

    fn check(raw: &str) -> Result<(), NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        match raw.len() {
            0 => Err(NameError::Empty),
            1..=Self::BYTES_MAX if raw.bytes().all(allowed) => Ok(()),
            1..=Self::BYTES_MAX => Err(NameError::BadCharacter),
            _ => Err(NameError::TooLong(Self::BYTES_MAX)),
        }
    }

    /// The only scope of the reserved app, as text.
    pub const CONSOLE: &str = "console";

    /// The scope of publications to single users, as text. No topic can name it.
    const USER: &str = "#user";

    /// The scope that needs no token.
    pub fn public() -> Self {
        Self(ByteString::from_static("public"))
    }

    /// The scope `private`.
    pub fn private() -> Self {
        Self(ByteString::from_static("private"))
    }

    /// The scope whose channels have members.
    pub fn presence() -> Self {
        Self(ByteString::from_static("presence"))
    }

    /// The scope of publications to single users.
    pub fn user() -> Self {
        Self(ByteString::from_static(Self::USER))
    }

    /// Returns whether this is the scope of publications to single users.
    pub fn is_user(&self) -> bool {
        self.0 == Self::USER
    }

    /// Parses a saved scope: one that topics can name, or that of single users.
    ///
    /// # Errors
    /// Those of [`parse`](Self::parse).
    pub(super) fn restore(raw: &str) -> Result<Self, NameError> {
        if raw == Self::USER { Ok(Self::user()) } else { Self::parse(raw) }
    }

    /// Returns whether this is the scope that needs no token.
    pub fn is_public(&self) -> bool {
        self.0 == "public"
    }

    /// Returns whether sessions that join a channel of this scope are tracked.
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
    /// The most bytes that a channel may have.
    pub const BYTES_MAX: usize = 200;

    /// Parses a channel name.
    ///
    /// # Errors
    /// [`NameError`] if it breaks the rule above.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        NameError::check(raw, Self::BYTES_MAX)?;
        Ok(Self(raw.into()))
    }

    /// Parses a part of `whole`, and shares its memory.
    fn within(whole: &ByteString, part: &str) -> Result<Self, NameError> {
        NameError::check(part, Self::BYTES_MAX)?;
        Ok(Self(whole.slice_ref(part)))
    }

    /// A copy in its own memory: a slice of a topic keeps the whole topic in memory.
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

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::restore(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for ChannelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ChannelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A parsed topic, which a client can join.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TopicName {
    /// The scope.
    pub scope: Scope,
    /// The app.
    pub app: Slug,
    /// The channel; `None` is the whole scope.
    pub channel: Option<ChannelName>,
    wire: ByteString,
}

impl TopicName {
    /// The most bytes that a whole topic may have.
    pub const BYTES_MAX: usize = 255;

    /// Parses a topic as `addressing` spells it.
    ///
    /// # Errors
    /// [`NameError::WholeTooLong`] beyond 255 bytes; else the fault of the first bad part. This does not
    /// check whether the app exists.
    pub fn parse(raw: &str, addressing: &Addressing) -> Result<Self, NameError> {
        if raw.len() > Self::BYTES_MAX {
            return Err(NameError::WholeTooLong);
        }
        // Each subscriber keeps its topic, and the broker keeps its parts: all of them share one
        // allocation.
        let wire = ByteString::from(raw);
        let (scope, rest) = wire.split_once(':').ok_or(NameError::Incomplete)?;
        let scope = Scope::within(&wire, scope)?;
        let (app, channel) = match rest.strip_prefix(Slug::CONSOLE) {
            Some(channel) if scope.as_str() == Scope::CONSOLE => {
                (Slug::console(), console_channel(channel)?)
            }
            _ => addressing.split(rest)?,
        };
        let channel = channel.map(|channel| ChannelName::within(&wire, channel)).transpose()?;
        Ok(Self { scope, app, channel, wire })
    }

    /// Returns whether sessions that join the topic are tracked: on channels of the scope `presence`, but not
    /// in the whole scope.
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

/// The channel of a topic of the reserved app. `rest` is the part of the topic after the slug.
fn console_channel(rest: &str) -> Result<Option<&str>, NameError> {
    match rest {
        "" => Ok(None),
        _ => rest.strip_prefix(':').map(Some).ok_or(NameError::BadCharacter),
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
            ("console:app:room", "console", "app", Some("room")),
            ("console:_console", "console", "_console", None),
            ("console:_console:app", "console", "_console", Some("app")),
        ] {
            let expected = (scope.into(), app.into(), channel.map(String::from));
            assert_eq!(parse(raw), Ok(expected), "{raw:?}");
        }
    }

    #[test]
    fn an_invalid_topic_is_refused() {
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
            ("public:_console:app", NameError::BadCharacter),
            ("presence:_console:app", NameError::BadCharacter),
            ("console:_console2", NameError::BadCharacter),
            ("console:_console:", NameError::Empty),
            ("public:app:#general", NameError::Reserved),
            ("public:app:a\nb", NameError::BadCharacter),
            ("public:app:a\u{0}b", NameError::BadCharacter),
            ("public:app:a\u{85}b", NameError::BadCharacter),
            (&long, NameError::TooLong(200)),
            (&whole, NameError::WholeTooLong),
        ] {
            assert_eq!(parse(raw), Err(fault), "{raw:?}");
        }
    }
}
