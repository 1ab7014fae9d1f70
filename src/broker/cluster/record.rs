//! The records of the log: publications, changes of members and disconnects, as nodes write them for each other.
//!
//! ```text
//! 0         1      2               4
//! ┌─────────┬──────┬───────────────┬────────────────────────────────┬─────────┐
//! │ version │ kind │ length of the │ fields, each                   │ content │
//! │ 1       │      │ fields u16 LE │ tag u8, length u16 LE, value   │         │
//! └─────────┴──────┴───────────────┴────────────────────────────────┴─────────┘
//! ```
//!
//! The content of a publication is a [`Retained`], that of the others is JSON. A reader skips
//! kinds, fields and members of the JSON that it does not know. The version changes only when an older
//! node could not read the records, and a newer node also reads the previous version.

use bytes::{BufMut, Bytes, BytesMut};
use bytestring::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::broker::{
    ChannelName, Destination, EventName, JsonObject, JsonText, Payload, Publication,
    PublicationOrigin, Scope,
    presence::{Meta, Persona},
    publication::Sender,
    retained::{self, Retained, RetainedPayload},
    subscriber::{Disconnect, ScopeKey, SessionId},
};

/// The version that this node writes, and the only one so far.
const VERSION: u8 = 1;

/// The bytes before the fields.
const HEAD_BYTES: usize = 4;

/// A publication.
const PUBLICATION: u8 = 1;

/// A change of members.
const MEMBERS: u8 = 2;

/// A disconnect.
const DISCONNECT: u8 = 3;

/// The session that is not sent the publication, as u64 LE.
const EXCEPT: u8 = 1;

/// The number by which the publisher's node finds the permit of the publication, as u64 LE.
const TICKET: u8 = 2;

/// The time at which the app was created, in Unix microseconds, as i64 LE. It distinguishes the app from one to which
/// another database has given the same id. The version before this one neither writes nor reads it.
const CREATED: u8 = 3;

/// A record that this node can read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A publication.
    Publication(PublicationEntry),
    /// A change of members, which is decoded only on nodes that track the channel.
    Members(MembersEntry),
    /// A disconnect.
    Disconnect(DisconnectRecord),
}

/// A publication whose content has not been decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PublicationEntry {
    pub(super) ticket: Option<u64>,
    except: Option<SessionId>,
    created_us: Option<i64>,
    content: Bytes,
}

/// A change of members that has not been decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::broker) struct MembersEntry(Bytes);

/// A change of the members of a channel.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::broker) struct MemberRecord {
    pub(in crate::broker) channel: String,
    pub(in crate::broker) session: u64,
    pub(in crate::broker) incarnation: u64,
    /// The part of the member that others see from now on; `None` if it has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::broker) member: Option<MemberValue>,
}

/// Joins that an app has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DisconnectRecord {
    /// The random number of the disconnect, which is the same in all partitions.
    pub(super) id: u64,
    pub(super) joins: Disconnect,
}

/// The part of a member that others see.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::broker) struct MemberValue {
    key: String,
    since_ms: u64,
    info: Box<RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    custom: Option<Box<RawValue>>,
    /// A text that differs for every other state of the member.
    pub(in crate::broker) reference: String,
    /// Whether an existing member has changed its data, and no new member has joined.
    #[serde(default)]
    pub(in crate::broker) is_update: bool,
}

/// Encodes a publication that was accepted at `at_ms`, in Unix milliseconds, of an app that was created at
/// `created_us`, in Unix microseconds.
pub(super) fn write_publication(
    publication: &Publication,
    ticket: u64,
    at_ms: u64,
    created_us: Option<i64>,
) -> Bytes {
    let retained = Retained::new(publication, at_ms);
    let except = publication.except.map(|session| (EXCEPT, session.0));
    let created = created_us.map(|created_us| (CREATED, created_us.cast_unsigned()));
    let fields = [Some((TICKET, ticket)), except, created];
    let fields_bytes = 11 * fields.iter().flatten().count();
    let bytes = HEAD_BYTES + fields_bytes + retained.as_bytes().len();
    let mut body = BytesMut::with_capacity(bytes);
    body.put_slice(&[VERSION, PUBLICATION]);
    body.put_u16_le(fields_bytes as u16);
    for (tag, number) in fields.into_iter().flatten() {
        body.put_u8(tag);
        body.put_u16_le(8);
        body.put_u64_le(number);
    }
    body.put_slice(retained.as_bytes());
    body.freeze()
}

/// Returns whether a record has a version that this node cannot read.
pub(super) fn is_of_another_version(body: &Bytes) -> bool {
    body.first().is_some_and(|version| *version != VERSION)
}

/// Decodes a record; `None` if its kind or version is unknown to this node, or if it is invalid.
pub(super) fn read(body: &Bytes) -> Option<Entry> {
    let (&[version, kind, low, high], _) = body.split_first_chunk::<HEAD_BYTES>()?;
    let content_at = HEAD_BYTES + usize::from(u16::from_le_bytes([low, high]));
    if version != VERSION || content_at > body.len() {
        return None;
    }
    let content = body.slice(content_at..);
    match kind {
        PUBLICATION => {
            let (mut ticket, mut except, mut created_us) = (None, None, None);
            let mut fields = &body[HEAD_BYTES..content_at];
            while let Some((&[tag, low, high], rest)) = fields.split_first_chunk::<3>() {
                let length = usize::from(u16::from_le_bytes([low, high]));
                let (value, rest) = rest.split_at_checked(length)?;
                let number = || value.try_into().ok().map(u64::from_le_bytes);
                match tag {
                    EXCEPT => except = Some(SessionId(number()?)),
                    TICKET => ticket = Some(number()?),
                    CREATED => created_us = Some(number()?.cast_signed()),
                    _ => {}
                }
                fields = rest;
            }
            let entry = PublicationEntry { ticket, except, created_us, content };
            Some(Entry::Publication(entry))
        }
        MEMBERS => Some(Entry::Members(MembersEntry(content))),
        DISCONNECT => serde_json::from_slice(&content).ok().map(Entry::Disconnect),
        _ => None,
    }
}

impl PublicationEntry {
    /// Returns whether the publication belongs to another app than the one with its id, which was created at
    /// `created_us`, in Unix microseconds.
    pub(super) fn is_foreign(&self, created_us: Option<i64>) -> bool {
        matches!((self.created_us, created_us), (Some(other), Some(own)) if other != own)
    }

    /// Returns whether the publication may be for a cache channel, by the beginning of the channel's name.
    pub(super) fn may_be_cached(&self) -> bool {
        let names = self.content.get(retained::HEAD_BYTES..).unwrap_or_default();
        names.starts_with(b"cache-") || names.starts_with(b"encrypted-cache-")
    }

    /// The time at which the publication was accepted, in Unix milliseconds.
    pub(super) fn at_ms(&self) -> u64 {
        self.content.first_chunk().copied().map_or(0, u64::from_le_bytes)
    }

    /// Decodes the publication, which belongs to this scope; `None` if it is invalid.
    pub(super) fn read(&self, key: &ScopeKey) -> Option<Publication> {
        let retained = Retained::parse(&self.content)?;
        let destination = match retained.channel() {
            None => Destination::General,
            Some(channel) => Destination::Channel(ChannelName::parse(channel).ok()?),
        };
        // The payload is a slice of the record, and is not copied.
        let payload_at = self.content.len().checked_sub(retained.payload_bytes())?;
        let payload = self.content.slice(payload_at..);
        let payload = match retained.payload() {
            RetainedPayload::Json(_) => {
                Payload::Json(JsonText::of_json(ByteString::try_from(payload).ok()?))
            }
            RetainedPayload::Bytes(_) => Payload::Bytes(payload),
        };
        let origin = match retained.sender() {
            Sender::Trigger => PublicationOrigin::Trigger,
            Sender::Session(user) => {
                PublicationOrigin::Session { user: user.map(ByteString::from) }
            }
        };
        let (app, scope) = (key.app, Scope::clone(&key.scope));
        let (event, except) = (EventName::parse_any(retained.event()).ok()?, self.except);
        Some(Publication { app, scope, destination, event, payload, origin, except })
    }
}

impl MembersEntry {
    /// Decodes the change; `None` if it is invalid.
    pub(in crate::broker) fn read(&self) -> Option<MemberRecord> {
        serde_json::from_slice(&self.0).ok()
    }
}

impl MemberRecord {
    /// Encodes the record.
    pub(in crate::broker) fn write(&self) -> Bytes {
        write_json(MEMBERS, self)
    }
}

impl DisconnectRecord {
    /// Encodes the record.
    pub(super) fn write(&self) -> Bytes {
        write_json(DISCONNECT, self)
    }
}

fn write_json(kind: u8, content: &impl Serialize) -> Bytes {
    let content = serde_json::to_vec(content).unwrap_or_default();
    [&[VERSION, kind, 0, 0][..], &content].concat().into()
}

impl MemberValue {
    /// The part of this persona that others see.
    pub(in crate::broker) fn of(persona: &Persona, reference: &str) -> Option<Self> {
        let Persona { key, meta: Meta { since_ms, info, custom } } = persona;
        let raw = |json: &str| RawValue::from_string(json.to_owned()).ok();
        Some(Self {
            key: key.to_string(),
            since_ms: *since_ms,
            info: raw(info.as_ref().map_or("null", JsonObject::as_str))?,
            custom: custom.as_ref().and_then(|custom| raw(custom.as_str())),
            reference: reference.to_owned(),
            is_update: false,
        })
    }

    /// Replaces the data that the member itself has set.
    pub(in crate::broker) fn say(&mut self, custom: &JsonText, reference: &str) {
        self.custom = RawValue::from_string(custom.as_str().to_owned()).ok();
        reference.clone_into(&mut self.reference);
    }

    /// The persona; `None` if the value is invalid.
    pub(in crate::broker) fn persona(&self) -> Option<Persona> {
        let custom = self.custom.as_deref().map(JsonText::from_raw).transpose().ok()?;
        let info = match self.info.get() {
            "null" => None,
            _ => Some(JsonObject::from_raw(&self.info).ok()?),
        };
        let meta = Meta { since_ms: self.since_ms, info, custom };
        Some(Persona { key: self.key.as_str().into(), meta })
    }

    /// Encodes the value as the engine keeps it with the member.
    pub(in crate::broker) fn write(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// Decodes a value that the engine keeps with a member; `None` if it is invalid.
    pub(in crate::broker) fn read(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{key, publication};
    use super::*;
    use crate::app::AppId;

    #[test]
    fn a_publication_is_read_as_it_was_written() {
        let scope = key(1, "public");
        let plain = publication(&scope, "room", "msg");
        let json = |text: &str| Payload::Json(JsonText::of_text(text));
        let user =
            |user: Option<&str>| PublicationOrigin::Session { user: user.map(ByteString::from) };
        for publication in [
            plain.clone(),
            publication(&scope, "#general", "msg"),
            Publication { payload: json("caf\u{e9}"), ..plain.clone() },
            Publication { payload: Payload::Bytes(Bytes::from_static(b"\xff\0")), ..plain.clone() },
            Publication { payload: Payload::Bytes(Bytes::new()), ..plain.clone() },
            Publication { origin: user(None), ..plain.clone() },
            Publication { origin: user(Some("ada")), ..plain.clone() },
            Publication { except: Some(SessionId(u64::MAX)), ..plain.clone() },
        ] {
            let body = write_publication(&publication, 7, 1_234, Some(-5));
            let Some(Entry::Publication(entry)) = read(&body) else { panic!("{publication:?}") };
            assert_eq!((entry.ticket, entry.at_ms()), (Some(7), 1_234));
            let is_foreign = [Some(-5), Some(5), None].map(|own| entry.is_foreign(own));
            assert_eq!(is_foreign, [false, true, false]);
            assert_eq!(entry.read(&scope).as_ref(), Some(&publication));
        }
    }

    /// A record of the first version, byte for byte: what a node of the previous version wrote.
    const FIRST: &[u8] = b"\x01\x01\x16\0\x02\x08\0\x07\0\0\0\0\0\0\0\x01\x08\0\x09\0\0\0\0\0\0\0\
        \xd2\x04\0\0\0\0\0\0\0\x04\x03roommsg{}";

    #[test]
    fn the_first_version_can_be_written_and_read_for_ever() {
        let scope = key(1, "public");
        let except = Some(SessionId(9));
        let expected = Publication { except, ..publication(&scope, "room", "msg") };
        assert_eq!(write_publication(&expected, 7, 1_234, None), FIRST);
        let Some(Entry::Publication(entry)) = read(&Bytes::from_static(FIRST)) else {
            panic!("a publication");
        };
        assert_eq!(entry.read(&scope), Some(expected));
        assert!(!entry.is_foreign(Some(1)), "it does not say when its app was created");
    }

    #[test]
    fn fields_of_a_newer_node_are_skipped() {
        let mut body = FIRST.to_vec();
        // A field that this version does not know, ahead of the others.
        body.splice(2..4, [0x16 + 5, 0]);
        body.splice(4..4, [200, 2, 0, 1, 2]);
        let Some(Entry::Publication(entry)) = read(&Bytes::from(body)) else { panic!("as before") };
        assert_eq!(entry.ticket, Some(7));
        assert_eq!(read(&Bytes::from_static(b"\x01\xc8\0\0whatever")), None, "another kind");
        assert_eq!(read(&Bytes::from_static(b"\x02\x01\0\0whatever")), None, "another version");
        let record = br#"{"channel":"c","session":1,"incarnation":2,"new":[],"member":
            {"key":"k","since_ms":3,"info":{},"reference":"r","new":1}}"#;
        let record = MembersEntry(Bytes::from_static(record)).read().expect("a record");
        let member = record.member.expect("a member");
        assert_eq!((record.session, &*member.reference, member.is_update), (1, "r", false));
    }

    #[test]
    fn broken_records_are_not_read() {
        for length in 0..FIRST.len() - 2 {
            let body = Bytes::from_static(FIRST).slice(..length);
            let publication = match read(&body) {
                Some(Entry::Publication(entry)) => entry.read(&key(1, "public")),
                _ => None,
            };
            assert_eq!(publication, None, "{length} bytes");
        }
        assert!(MembersEntry(Bytes::from_static(b"{}")).read().is_none());
        assert!(MemberValue::read(b"[]").is_none());
    }

    #[test]
    fn a_disconnect_is_read_as_it_was_written() {
        let record = DisconnectRecord { id: u64::MAX, joins: Disconnect::App(AppId(1)) };
        assert_eq!(read(&record.write()), Some(Entry::Disconnect(record)));
    }

    #[test]
    fn a_member_is_read_as_it_was_written() {
        let meta = Meta {
            since_ms: 5,
            info: Some(JsonObject::parse(r#"{"a" : 1.0}"#).expect("an object")),
            custom: Some(JsonText::of_text("x")),
        };
        let persona = Persona { key: "ada".into(), meta };
        let value = MemberValue::of(&persona, "ref").expect("a value");
        let read = MemberValue::read(&value.write()).expect("a value");
        assert_eq!((read.persona(), &*read.reference), (Some(persona), "ref"));
        let (channel, member) = ("room".to_owned(), Some(value));
        let record = MemberRecord { channel, session: 1, incarnation: 2, member };
        let Some(Entry::Members(entry)) = super::read(&record.write()) else { panic!("members") };
        let read = entry.read().expect("a record");
        assert_eq!((&*read.channel, read.session, read.incarnation), ("room", 1, 2));
        assert!(read.member.is_some());
    }
}
