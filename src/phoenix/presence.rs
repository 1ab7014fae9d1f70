//! Presence as in Phoenix: the events `presence_state` and `presence_diff`, and their contents.
//!
//! Section 10 of the protocol document. The broker knows the members; this file makes a visitor's
//! meta and spells members.

use std::collections::BTreeMap;

use bytestring::ByteString;
use serde_json::value::RawValue;

use crate::{
    app::visitor::Visitor,
    broker::{
        JsonObject, PayloadError,
        presence::{Change, Member, Persona, Roster},
        subscriber::Frame,
    },
    strict_json::{self, NotStrict},
};

use super::message::{Label, Outgoing, Ref, Version, push_json_string};

/// Tells one client the present members; the client's picture begins with it.
pub(super) const STATE: &str = "presence_state";

/// Tells all subscribers the changes; it always has both sides.
const DIFF: &str = "presence_diff";

/// The event with which a client changes its own meta.
pub(super) const METADATA: &str = "presence_metadata";

/// The member of a meta that the client may set.
const CUSTOM: &str = "custom";

/// Members of a meta that no claim may set.
const OURS: [&str; 3] = ["online_at", "phx_ref", "phx_ref_prev"];

/// The most bytes that a meta may have, as JSON and without its references.
const META_BYTES_MAX: usize = 1_024;

/// Why a meta is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaFault {
    /// It has more than 1 KB.
    TooLarge,
    /// It is nested deeper than payloads may be.
    TooDeep,
    /// Some subscribers could not read it, or would read it differently.
    NotStrict,
}

impl MetaFault {
    /// The reason on the wire.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "presence metadata too large",
            Self::TooDeep => "presence metadata is nested too deeply",
            Self::NotStrict => "invalid payload",
        }
    }
}

impl From<NotStrict> for MetaFault {
    fn from(fault: NotStrict) -> Self {
        match fault {
            NotStrict::TooDeep => Self::TooDeep,
            NotStrict::LoneSurrogate | NotStrict::NumberTooLarge | NotStrict::RepeatedKey => {
                Self::NotStrict
            }
        }
    }
}

/// The part of a visitor's meta that stays the same while its join lasts; `custom` is not part of
/// it.
#[derive(Debug)]
pub(super) struct Profile {
    /// The members of a JSON object, without its braces.
    lasting: Box<str>,
}

impl Profile {
    /// Makes the profile of a visitor that joins now, and the key under which it is tracked.
    pub(super) fn of(visitor: Visitor, now_s: f64) -> Result<(Self, Persona), MetaFault> {
        let mut claimed = visitor.claim.as_deref().map(members).transpose()?.unwrap_or_default();
        let custom = claimed.remove(CUSTOM);
        let mut lasting = format!(r#""online_at":{}"#, (now_s * 1_000.0) as u64);
        for (name, value) in claimed.iter().filter(|(name, _)| !OURS.contains(&name.as_str())) {
            push_member(&mut lasting, name, value);
        }
        let profile = Self { lasting: lasting.into() };
        let meta = profile.meta(custom)?;
        Ok((profile, Persona { key: visitor.key.into(), meta }))
    }

    /// The meta with this `custom`.
    pub(super) fn meta(&self, custom: Option<&RawValue>) -> Result<JsonObject, MetaFault> {
        let mut json = format!("{{{}", self.lasting);
        if let Some(custom) = custom {
            push_member(&mut json, CUSTOM, custom);
        }
        json.push('}');
        if json.len() > META_BYTES_MAX {
            return Err(MetaFault::TooLarge);
        }
        JsonObject::parse(&json).map_err(|error| match error {
            PayloadError::NotStrict(fault) => fault.into(),
            PayloadError::NotJson | PayloadError::NotAnObject => MetaFault::NotStrict,
        })
    }
}

/// The `custom` of a client's payload; `None` if there is none.
pub(super) fn custom(payload: &RawValue) -> Result<Option<&RawValue>, MetaFault> {
    Ok(members(payload)?.remove(CUSTOM))
}

/// The members of a JSON object; empty for any other value.
fn members(object: &RawValue) -> Result<BTreeMap<String, &RawValue>, MetaFault> {
    strict_json::check(object)?;
    Ok(serde_json::from_str(object.get()).unwrap_or_default())
}

fn push_member(json: &mut String, name: &str, value: &RawValue) {
    json.push(',');
    push_json_string(json, name);
    json.push(':');
    json.push_str(value.get());
}

/// Spells the present members: `{"<key>":{"metas":[{…}]}}`.
pub fn spell_members(roster: &Roster) -> ByteString {
    let mut json = String::new();
    push_roster(&mut json, roster);
    json.into()
}

/// Spells a change for all subscribers of `topic` that use `version`.
pub(super) fn encode_change(version: Version, topic: &str, change: &Change) -> Frame {
    let mut payload = String::from("{\"joins\":");
    push_roster(&mut payload, &change.joins);
    payload.push_str(",\"leaves\":");
    push_roster(&mut payload, &change.leaves);
    payload.push('}');
    let (null, topic) = (&Ref::null(), &Label::from(topic));
    let (join_ref, reference, payload) = (null, null, payload.as_str());
    version.encode(&Outgoing { join_ref, reference, topic, event: DIFF, payload })
}

fn push_roster(json: &mut String, roster: &Roster) {
    json.push('{');
    for (nth, (key, members)) in roster.iter().enumerate() {
        if nth > 0 {
            json.push(',');
        }
        push_json_string(json, key);
        json.push_str(":{\"metas\":[");
        for (nth, member) in members.iter().enumerate() {
            if nth > 0 {
                json.push(',');
            }
            push_meta(json, member);
        }
        json.push_str("]}");
    }
    json.push('}');
}

/// Appends a meta with its references, which need no escaping.
fn push_meta(json: &mut String, member: &Member) {
    let meta = member.persona.meta.as_str().trim_end();
    let open = meta.strip_suffix('}').unwrap_or(meta).trim_end();
    json.push_str(open);
    if open != "{" {
        json.push(',');
    }
    json.push_str("\"phx_ref\":\"");
    json.push_str(&member.reference);
    if let Some(previous) = &member.previous {
        json.push_str("\",\"phx_ref_prev\":\"");
        json.push_str(previous);
    }
    json.push_str("\"}");
}

#[cfg(test)]
mod tests;
