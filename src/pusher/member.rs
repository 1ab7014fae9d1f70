//! The members of presence channels.
//!
//! They follow section 6 of the document of Pusher's protocol. A member's `user_id` is its key for
//! Phoenix's clients, and its `user_info` is their meta without the fields that Phoenix adds.

use std::collections::BTreeMap;

use bytestring::ByteString;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    app::visitor::Visitor,
    broker::{
        JsonText,
        presence::{Change, Member, Meta, Persona, Roster},
        subscriber::ChangeFrame,
    },
    strict_json::NotStrict,
};

use super::frame;

/// The most bytes that a member's `user_info` may have.
const INFO_BYTES_MAX: usize = 1_024;

/// The reason why a member is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MemberFault {
    /// The member's data is not a JSON object.
    #[error("channel_data must be a string that holds a JSON object with a user_id")]
    NotAnObject,
    /// The `user_id` is missing, or cannot be a key.
    #[error(
        "user_id must be a string or a number of 1 to {} bytes, and no name that every JavaScript object has",
        Visitor::KEY_BYTES_MAX
    )]
    UserId,
    /// The `user_info` is not an object.
    #[error("user_info must be an object")]
    UserInfo,
    /// The `user_info` has too many bytes.
    #[error("user_info must have at most {INFO_BYTES_MAX} bytes")]
    TooLarge,
    /// The `user_info` is JSON that the parsers of some clients reject.
    #[error("user_info {0}")]
    NotStrict(#[from] NotStrict),
}

/// The fields of `channel_data`.
#[derive(Deserialize)]
struct ChannelData<'a> {
    #[serde(borrow, default)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    user_info: Option<&'a RawValue>,
}

/// Reads the member that `channel_data` describes and that joins now.
///
/// # Errors
/// [`MemberFault`].
pub(super) fn read(channel_data: &str, now_s: f64) -> Result<Persona, MemberFault> {
    if !channel_data.trim_start().starts_with('{') {
        return Err(MemberFault::NotAnObject);
    }
    let ChannelData { user_id, user_info } =
        serde_json::from_str(channel_data).map_err(|_| MemberFault::NotAnObject)?;
    let id = user_id.and_then(text_of).ok_or(MemberFault::UserId)?;
    persona(id.into(), user_info, now_s)
}

/// A member with this id and `user_info` that joins now. Not every id of a user can be the key of a member.
///
/// # Errors
/// [`MemberFault`].
pub(super) fn persona(
    id: ByteString,
    user_info: Option<&RawValue>,
    now_s: f64,
) -> Result<Persona, MemberFault> {
    if !Visitor::is_key(&id) {
        return Err(MemberFault::UserId);
    }
    let info = user_info.filter(|info| info.get() != "null");
    match info.map(RawValue::get) {
        Some(info) if !info.starts_with('{') => return Err(MemberFault::UserInfo),
        Some(info) if info.len() > INFO_BYTES_MAX => return Err(MemberFault::TooLarge),
        _ => {}
    }
    Ok(Persona { key: id, meta: Meta::new((now_s * 1_000.0) as u64, info)? })
}

/// The text of a `user_id`, which is a string, or a number as it is spelled.
fn text_of(user_id: &RawValue) -> Option<String> {
    let json = user_id.get();
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str(json).ok(),
        b'-' | b'0'..=b'9' => Some(json.to_owned()),
        _ => None,
    }
}

/// Spells the members as a JSON object: each `user_id` with its `user_info`.
pub(super) fn spell_members(roster: &Roster) -> ByteString {
    let mut json = String::from("{");
    for (key, members) in roster.iter() {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(JsonText::of_text(key).as_str());
        json.push(':');
        json.push_str(&newest(members).map_or_else(|| "null".into(), user_info));
    }
    json.push('}');
    json.into()
}

/// The data of the message that a subscription to a presence channel has succeeded. `members` are the
/// earlier members, as [`spell_members`] spells them; the new member is added.
pub(super) fn roster(members: &str, own: &Persona) -> String {
    let mut all: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(members).unwrap_or_default();
    if let Ok(info) = RawValue::from_string(user_info_of(&own.meta)) {
        all.insert(own.key.to_string(), info);
    }
    let ids = serde_json::to_string(&all.keys().collect::<Vec<_>>()).unwrap_or_default();
    let hash = serde_json::to_string(&all).unwrap_or_default();
    format!(r#"{{"presence":{{"ids":{ids},"hash":{hash},"count":{}}}}}"#, all.len())
}

/// Spells a change: one message for each user whose first connection has joined or whose last one has
/// left. A user that has come is in the rosters of all its connections already.
pub(super) fn encode_change(topic: &str, change: &Change) -> Vec<ChangeFrame> {
    let arrived = change.arrived.iter().map(|arrival| {
        let key = JsonText::of_text(&arrival.member.persona.key);
        let (key, info) = (key.as_str(), user_info(&arrival.member));
        let data = format!(r#"{{"user_id":{key},"user_info":{info}}}"#);
        let frame = frame::event("pusher_internal:member_added", Some(topic), &data);
        ChangeFrame { frame, except: arrival.sessions.clone() }
    });
    let departed = change.departed.iter().map(|key| {
        let data = format!(r#"{{"user_id":{}}}"#, JsonText::of_text(key).as_str());
        let frame = frame::event("pusher_internal:member_removed", Some(topic), &data);
        ChangeFrame { frame, except: Vec::new() }
    });
    arrived.chain(departed).collect()
}

/// The member whose info represents a user with several connections: the one that joined last.
fn newest(members: &[std::sync::Arc<Member>]) -> Option<&Member> {
    members.iter().max_by_key(|member| member.persona.meta.since_ms).map(|member| &**member)
}

fn user_info(member: &Member) -> String {
    user_info_of(&member.persona.meta)
}

/// The information about a member together with its own custom data; `null` if there is neither.
fn user_info_of(meta: &Meta) -> String {
    let Some(custom) = &meta.custom else {
        return meta.info.as_ref().map_or_else(|| "null".into(), |info| info.as_str().to_owned());
    };
    let info = meta.info_text();
    let members = info.strip_suffix('}').unwrap_or(info).trim_end();
    let comma = if members == "{" { "" } else { "," };
    format!(r#"{members}{comma}"{}":{}}}"#, Meta::CUSTOM, custom.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_now(data: &str) -> Result<Persona, MemberFault> {
        read(data, 7.0)
    }

    #[test]
    fn p067_p072_p073_p074_p075_p076_p078_p079_p080_a_member_is_read_from_its_data() {
        let (longest, too_long) = ("i".repeat(128), "i".repeat(129));
        let info = |bytes: usize| format!(r#"{{"n":"{}"}}"#, "x".repeat(bytes - 8));
        let with_id = |id: &str| format!(r#"{{"user_id":{id}}}"#);
        let with_info = |info: &str| format!(r#"{{"user_id":"u","user_info":{info}}}"#);
        for (data, expected) in [
            (with_info(r#"{"name" : "A"}"#), Ok(("u", r#"{"name":"A"}"#))),
            (with_info("{}"), Ok(("u", "{}"))),
            (with_id(r#""u""#), Ok(("u", "null"))),
            (with_info("null"), Ok(("u", "null"))),
            (with_id("10"), Ok(("10", "null"))),
            (with_id("-1.50"), Ok(("-1.50", "null"))),
            (with_id(r#""\u00e91""#), Ok(("é1", "null"))),
            (with_id(&format!("{longest:?}")), Ok((&*longest, "null"))),
            (with_info(r#"{"custom":[1],"a":1}"#), Ok(("u", r#"{"a":1,"custom":[1]}"#))),
            (with_info(r#"{"custom":1}"#), Ok(("u", r#"{"custom":1}"#))),
            (with_info(r#"{"phx_ref":1,"online_at":2}"#), Ok(("u", "{}"))),
            (with_info(&info(1_024)), Ok(("u", &*info(1_024)))),
            (with_info(&info(1_025)), Err(MemberFault::TooLarge)),
            (with_id(&format!("{too_long:?}")), Err(MemberFault::UserId)),
            ("{}".into(), Err(MemberFault::UserId)),
            (with_id("null"), Err(MemberFault::UserId)),
            (with_id(r#""""#), Err(MemberFault::UserId)),
            (with_id("{}"), Err(MemberFault::UserId)),
            (with_id("[1]"), Err(MemberFault::UserId)),
            (with_id("true"), Err(MemberFault::UserId)),
            (with_id(r#""__proto__""#), Err(MemberFault::UserId)),
            (with_id(r#""constructor""#), Err(MemberFault::UserId)),
            (with_info(r#""A""#), Err(MemberFault::UserInfo)),
            (with_info("[]"), Err(MemberFault::UserInfo)),
            (with_info(r#"{"a":1,"a":2}"#), Err(MemberFault::NotStrict(NotStrict::RepeatedKey))),
            ("x".into(), Err(MemberFault::NotAnObject)),
            ("[1,2]".into(), Err(MemberFault::NotAnObject)),
            (r#"{"user_id":"a","user_id":"b"}"#.into(), Err(MemberFault::NotAnObject)),
        ] {
            let read = read_now(&data);
            let shown = read.as_ref().map(|read| (&*read.key, user_info_of(&read.meta)));
            let shown = shown.map(|(key, info)| (key.to_owned(), info)).map_err(|fault| *fault);
            let expected = expected.map(|(key, info)| (key.to_owned(), info.to_owned()));
            assert_eq!(shown, expected, "{data:.60}");
        }
    }

    #[test]
    fn p068_p069_p081_a_roster_has_each_user_once_with_its_newest_info_and_the_new_member() {
        let member = |data: &str, now_s: f64| {
            let persona = read(data, now_s).expect("a member");
            std::sync::Arc::new(Member { persona, reference: "r".into(), previous: None })
        };
        let members = [
            member(r#"{"user_id":"u1","user_info":{"n":2}}"#, 9.0),
            member(r#"{"user_id":"u1","user_info":{"n":1}}"#, 8.0),
            member(r#"{"user_id":"u2"}"#, 8.0),
        ];
        let members = spell_members(&members.iter().collect());
        assert_eq!(members, r#"{"u1":{"n":2},"u2":null}"#);
        let own = read_now(r#"{"user_id":"a\"b","user_info":{"n":3}}"#).expect("a member");
        let expected = r#"{"presence":{"ids":["a\"b","u1","u2"],"hash":{"a\"b":{"n":3},"u1":{"n":2},"u2":null},"count":3}}"#;
        assert_eq!(roster(&members, &own), expected);
        let again = read_now(r#"{"user_id":"u2","user_info":{}}"#).expect("a member");
        let expected =
            r#"{"presence":{"ids":["u1","u2"],"hash":{"u1":{"n":2},"u2":{}},"count":2}}"#;
        assert_eq!(roster(&members, &again), expected);
    }
}
