//! Presence as in Phoenix: the events `presence_state` and `presence_diff`, and their contents.
//!
//! They follow section 10 of the protocol document. The broker tracks the members; this file makes a visitor's
//! meta and encodes members.

use bytestring::ByteString;
use serde_json::value::RawValue;

use crate::{
    app::visitor::Visitor,
    broker::{
        JsonText,
        presence::{Change, Member, Meta, Persona, Roster},
        subscriber::ChangeFrame,
    },
    strict_json::{self, NotStrict},
};

use super::message::{Label, Outgoing, Ref, Version, push_json_string};

/// The event with the present members, which a client is sent after its join.
pub(super) const STATE: &str = "presence_state";

/// The event with the changes among the members. Its payload always has both `joins` and `leaves`, either of
/// which may be empty.
const DIFF: &str = "presence_diff";

/// The event with which a client changes its own meta.
pub(super) const METADATA: &str = "presence_metadata";

/// The bytes of `,"custom":`.
const CUSTOM_BYTES: usize = 10;

/// The most bytes that a meta may have, as JSON and without its references.
const META_BYTES_MAX: usize = 1_024;

/// The reason why a meta is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaFault {
    /// The meta has more than 1 KB.
    TooLarge,
    /// The meta is nested deeper than payloads may be.
    TooDeep,
    /// Some subscribers could not read the meta, or would read it differently.
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

/// The data about its member that a join keeps.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    /// The member's key.
    pub(super) key: ByteString,
    /// The bytes of the part of the meta that never changes.
    lasting_bytes: usize,
}

impl Profile {
    /// Makes the profile of a visitor that joins now, and the persona as which it is tracked.
    pub(super) fn of(visitor: Visitor, now_s: f64) -> Result<(Self, Persona), MetaFault> {
        let meta = Meta::new((now_s * 1_000.0) as u64, visitor.claim.as_deref())?;
        let key = ByteString::from(visitor.key);
        let profile = Self { key: key.clone(), lasting_bytes: lasting(&meta).len() };
        profile.check(meta.custom.as_ref())?;
        Ok((profile, Persona { key, meta }))
    }

    /// Checks that the meta with this `custom` is not too large.
    pub(super) fn check(&self, custom: Option<&JsonText>) -> Result<(), MetaFault> {
        let custom_bytes = custom.map_or(0, |custom| CUSTOM_BYTES + custom.as_str().len());
        // The last byte is the closing brace.
        match self.lasting_bytes + custom_bytes < META_BYTES_MAX {
            true => Ok(()),
            false => Err(MetaFault::TooLarge),
        }
    }
}

/// The `custom` of a client's payload; `None` if there is none.
pub(super) fn custom(payload: &RawValue) -> Result<Option<JsonText>, MetaFault> {
    let custom = strict_json::members(payload)?.remove(Meta::CUSTOM);
    Ok(custom.map(JsonText::from_raw).transpose()?)
}

/// The part of a meta that stays the same while its join lasts, without the closing brace.
pub(super) fn lasting(meta: &Meta) -> String {
    let mut json = format!(r#"{{"online_at":{}"#, meta.since_ms);
    let members = meta.info_text().trim_start_matches('{').trim_start();
    if let Some(members) = members.strip_suffix('}').filter(|members| !members.is_empty()) {
        json.push(',');
        json.push_str(members);
    }
    json
}

/// Encodes the present members: `{"<key>":{"metas":[{…}]}}`.
pub fn spell_members(roster: &Roster) -> ByteString {
    let mut json = String::new();
    push_roster(&mut json, roster);
    json.into()
}

/// Encodes a change for all subscribers of `topic` that use `version`.
pub(super) fn encode_change(version: Version, topic: &str, change: &Change) -> Vec<ChangeFrame> {
    let mut payload = String::from("{\"joins\":");
    push_roster(&mut payload, &change.joins);
    payload.push_str(",\"leaves\":");
    push_roster(&mut payload, &change.leaves);
    payload.push('}');
    let (null, topic) = (&Ref::null(), &Label::from(topic));
    let (join_ref, reference, payload) = (null, null, payload.as_str());
    let frame = version.encode(&Outgoing { join_ref, reference, topic, event: DIFF, payload });
    vec![ChangeFrame { frame, except: Vec::new() }]
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
    let meta = &member.persona.meta;
    json.push_str(&lasting(meta));
    if let Some(custom) = &meta.custom {
        json.push_str(",\"custom\":");
        json.push_str(custom.as_str());
    }
    json.push_str(",\"phx_ref\":\"");
    json.push_str(&member.reference);
    if let Some(previous) = &member.previous {
        json.push_str("\",\"phx_ref_prev\":\"");
        json.push_str(previous);
    }
    json.push_str("\"}");
}

#[cfg(test)]
mod tests;
