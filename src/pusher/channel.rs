//! Channels under the names that Pusher's clients use, and their places among the broker's channels.
//!
//! It follows section 5.1 of the document of Pusher's protocol. The prefix of a name determines which
//! clients may subscribe, and the scope: `private-room` is the channel `room` of the scope `private`,
//! which Phoenix's clients can join, too.

use crate::{
    app::AppId,
    broker::{
        ChannelName, NameError, Scope, reserved,
        subscriber::{Place, ScopeKey},
    },
};

const PRIVATE: &str = "private-";
const ENCRYPTED: &str = "private-encrypted-";
const PRESENCE: &str = "presence-";
const USER: &str = "#server-to-user-";
/// The prefix of a user's id in the broker's name of the user's channel. Without it, the name for an id
/// that begins with `#` would not be valid.
const BROKER_USER: &str = "user-";

/// The clients that may subscribe to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Every client.
    Public,
    /// Clients for which the application signs.
    Private,
    /// Clients for which the application signs; it encrypts the payloads.
    Encrypted,
    /// Clients for which the application signs; every subscriber sees all others.
    Presence,
    /// Only the user to whom the channel belongs.
    User,
}

impl ChannelKind {
    /// Returns whether a subscriber needs the application's signature.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::Private | Self::Encrypted | Self::Presence)
    }
}

/// The reason why a text is not the name of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChannelFault {
    /// The text is empty, or ends after the prefix.
    #[error("a channel name must not be empty, nor end with its prefix")]
    Empty,
    /// The text has more bytes than a name may have.
    #[error("a channel name must have at most {bytes_max} bytes")]
    TooLong {
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The text has a character that names must not have.
    #[error("a channel name must consist of A-Z, a-z, 0-9, _, -, =, @, \",\", . and ;")]
    BadCharacter,
    /// The text names the channel of a user, but no user can have the id.
    #[error("the id of a user must not have control characters")]
    BadUserId,
    /// The text begins with `#` and does not name the channel of a user.
    #[error("a channel name must not begin with #")]
    Reserved,
}

impl From<NameError> for ChannelFault {
    fn from(error: NameError) -> Self {
        match error {
            NameError::Empty | NameError::Incomplete => Self::Empty,
            NameError::TooLong(_) | NameError::WholeTooLong => {
                Self::TooLong { bytes_max: Channel::BYTES_MAX }
            }
            NameError::BadCharacter => Self::BadCharacter,
            NameError::Reserved => Self::Reserved,
        }
    }
}

/// A channel as Pusher names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Channel {
    /// The clients that may subscribe.
    pub kind: ChannelKind,
    /// Whether its last event is kept for new subscribers.
    pub is_cache: bool,
    name: Box<str>,
    scope: Scope,
    channel: ChannelName,
}

impl Channel {
    /// The most bytes of a name.
    pub const BYTES_MAX: usize = 200;

    /// Parses a name of at most `bytes_max` bytes. That bound does not apply to the channels of users, so that every
    /// user that can sign in has a channel.
    ///
    /// # Errors
    /// [`ChannelFault`].
    pub fn parse_within(name: &str, bytes_max: usize) -> Result<Self, ChannelFault> {
        if name.len() > bytes_max && !name.starts_with(USER) {
            return Err(ChannelFault::TooLong { bytes_max });
        }
        Self::parse(name)
    }

    /// Parses a name.
    ///
    /// # Errors
    /// [`ChannelFault`].
    pub fn parse(name: &str) -> Result<Self, ChannelFault> {
        if name.len() > Self::BYTES_MAX {
            return Err(ChannelFault::TooLong { bytes_max: Self::BYTES_MAX });
        }
        if let Some(id) = name.strip_prefix(USER).filter(|id| !id.is_empty()) {
            let channel = ChannelName::parse(&format!("{BROKER_USER}{id}"));
            let channel = channel.map_err(|error| match error.into() {
                ChannelFault::BadCharacter => ChannelFault::BadUserId,
                fault => fault,
            })?;
            let (kind, scope, name) = (ChannelKind::User, Scope::user(), name.into());
            return Ok(Self { kind, is_cache: false, name, scope, channel });
        }
        if name.starts_with('#') {
            return Err(ChannelFault::Reserved);
        }
        if !name.chars().all(is_permitted) {
            return Err(ChannelFault::BadCharacter);
        }
        // An encrypted channel is in the scope `private`, and its name in the broker keeps `encrypted-`.
        let (kind, scope, rest) = if let Some(rest) = name.strip_prefix(PRIVATE) {
            let is_encrypted = name.starts_with(ENCRYPTED);
            let kind = if is_encrypted { ChannelKind::Encrypted } else { ChannelKind::Private };
            (kind, Scope::private(), rest)
        } else if let Some(rest) = name.strip_prefix(PRESENCE) {
            (ChannelKind::Presence, Scope::presence(), rest)
        } else {
            (ChannelKind::Public, Scope::public(), name)
        };
        let is_cache = reserved::is_cache(scope.as_str(), rest);
        let channel = ChannelName::parse(rest)?;
        Ok(Self { kind, is_cache, name: name.into(), scope, channel })
    }

    /// Pusher's name of a channel of the broker; `None` if Pusher has no name for it, and for the channels
    /// of users, which no list contains.
    pub fn named(scope: &Scope, channel: &ChannelName) -> Option<String> {
        let prefix = match scope.as_str() {
            "public" => "",
            "private" => PRIVATE,
            "presence" => PRESENCE,
            _ => return None,
        };
        let channel = channel.as_str();
        let is_ambiguous =
            prefix.is_empty() && [PRIVATE, PRESENCE].iter().any(|of| channel.starts_with(of));
        let is_named = !is_ambiguous
            && prefix.len() + channel.len() <= Self::BYTES_MAX
            && channel.chars().all(is_permitted);
        is_named.then(|| [prefix, channel].concat())
    }

    /// The channel's place in the broker.
    pub fn place(&self, app: AppId) -> Place {
        let key = ScopeKey { app, scope: self.scope.clone() };
        Place { key, channel: Some(self.channel.clone()) }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the user to whom the channel belongs; `None` for channels of other kinds.
    pub fn user(&self) -> Option<&str> {
        self.name.strip_prefix(USER)
    }
}

fn is_permitted(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-=@,.;".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> Result<(ChannelKind, bool, String, String), ChannelFault> {
        let channel = Channel::parse(name)?;
        assert_eq!(channel.name(), name);
        let place = channel.place(AppId(7));
        let inner = place.channel.expect("a channel").to_string();
        Ok((channel.kind, channel.is_cache, place.key.scope.to_string(), inner))
    }

    #[test]
    fn p103_a_name_has_a_kind_and_a_place() {
        for (name, kind, is_cache, scope, channel) in [
            ("room", ChannelKind::Public, false, "public", "room"),
            ("aZ0_-=@,.;", ChannelKind::Public, false, "public", "aZ0_-=@,.;"),
            ("cache-x", ChannelKind::Public, true, "public", "cache-x"),
            ("my-cache-x", ChannelKind::Public, false, "public", "my-cache-x"),
            ("private-room", ChannelKind::Private, false, "private", "room"),
            ("privateer", ChannelKind::Public, false, "public", "privateer"),
            ("private-cache-x", ChannelKind::Private, true, "private", "cache-x"),
            ("private-my-cache-x", ChannelKind::Private, false, "private", "my-cache-x"),
            ("private-encrypted-x", ChannelKind::Encrypted, false, "private", "encrypted-x"),
            (
                "private-encrypted-cache-x",
                ChannelKind::Encrypted,
                true,
                "private",
                "encrypted-cache-x",
            ),
            ("presence-room", ChannelKind::Presence, false, "presence", "room"),
            ("presence-cache-x", ChannelKind::Presence, true, "presence", "cache-x"),
            (
                "presence-encrypted-cache-x",
                ChannelKind::Presence,
                false,
                "presence",
                "encrypted-cache-x",
            ),
            ("#server-to-user-12345", ChannelKind::User, false, "#user", "user-12345"),
            ("#server-to-user-#a b:é", ChannelKind::User, false, "#user", "user-#a b:é"),
        ] {
            let expected = (kind, is_cache, scope.to_owned(), channel.to_owned());
            assert_eq!(parsed(name), Ok(expected), "{name}");
        }
        let user = Channel::parse("#server-to-user-a-b").expect("a channel");
        assert_eq!(user.user(), Some("a-b"));
        assert_eq!(Channel::parse("room").expect("a channel").user(), None);
    }

    #[test]
    fn an_invalid_channel_name_is_refused() {
        let (longest, too_long) = ("x".repeat(200), "x".repeat(201));
        for (name, expected) in [
            (longest.as_str(), None),
            (&too_long, Some(ChannelFault::TooLong { bytes_max: 200 })),
            ("", Some(ChannelFault::Empty)),
            ("private-", Some(ChannelFault::Empty)),
            ("presence-", Some(ChannelFault::Empty)),
            ("a b", Some(ChannelFault::BadCharacter)),
            ("a/b", Some(ChannelFault::BadCharacter)),
            ("a:b", Some(ChannelFault::BadCharacter)),
            ("é", Some(ChannelFault::BadCharacter)),
            ("a#b", Some(ChannelFault::BadCharacter)),
            ("a\n", Some(ChannelFault::BadCharacter)),
            ("#foo", Some(ChannelFault::Reserved)),
            ("#general", Some(ChannelFault::Reserved)),
            ("#server-to-user-", Some(ChannelFault::Reserved)),
            ("#server-to-user-a\nb", Some(ChannelFault::BadUserId)),
        ] {
            assert_eq!(parsed(name).err(), expected, "{name:?}");
        }
    }

    #[test]
    fn a_place_has_the_name_by_which_it_is_found() {
        let long = "x".repeat(193);
        for (scope, channel, expected) in [
            ("public", "room", Some("room")),
            ("public", "private-room", None),
            ("public", "presence-room", None),
            ("public", "privateer", Some("privateer")),
            ("private", "room", Some("private-room")),
            ("private", "encrypted-x", Some("private-encrypted-x")),
            ("private", "private-x", Some("private-private-x")),
            ("private", &long, None),
            ("presence", "room", Some("presence-room")),
            ("public", "a:b", None),
            ("public", "caf\u{e9}", None),
            ("deploys", "room", None),
        ] {
            let parsed = Scope::parse(scope).expect("a scope");
            let inner = ChannelName::parse(channel).expect("a channel");
            let name = Channel::named(&parsed, &inner);
            assert_eq!(name.as_deref(), expected, "{scope} {channel}");
            let Some(name) = name else { continue };
            let place = Channel::parse(&name).expect("a channel").place(AppId(1));
            assert_eq!((place.key.scope, place.channel), (parsed, Some(inner)), "{name}");
        }
        let user = Channel::parse("#server-to-user-1").expect("a channel").place(AppId(1));
        let inner = user.channel.expect("a channel");
        assert_eq!(Channel::named(&user.key.scope, &inner), None);
    }
}
