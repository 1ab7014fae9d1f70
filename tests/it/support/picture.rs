//! The members that are present, as clients of both kinds derive them from the messages that they are sent.
//!
//! This follows the code of phoenix.js: its functions up to 1.3, and its class from 1.4 on.

use std::collections::BTreeMap;

use serde_json::Value;

/// Keys with their metas, in the client's own order.
pub type Picture = BTreeMap<String, Vec<Value>>;

/// All references of a picture, in order.
pub fn references(picture: &Picture) -> Vec<String> {
    let mut references: Vec<_> =
        picture.values().flatten().map(reference).map(str::to_owned).collect();
    references.sort();
    references
}

/// Whether a client compares references before it adds metas, so that it has none of them twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adds {
    /// It does not compare them: up to 1.3.
    Blindly,
    /// It compares them: from 1.4 on.
    Once,
}

/// The picture as clients up to 1.3 keep it: they apply each message when it arrives.
#[derive(Debug, Default)]
pub struct Old(Picture);

impl Old {
    /// `Presence.syncState`.
    pub fn state(&mut self, state: &Value) {
        sync_state(&mut self.0, &picture(state), Adds::Blindly);
    }

    /// `Presence.syncDiff`.
    pub fn diff(&mut self, diff: &Value) {
        sync_diff(&mut self.0, picture(&diff["joins"]), &picture(&diff["leaves"]), Adds::Blindly);
    }

    /// The members that the client knows.
    pub fn picture(&self) -> &Picture {
        &self.0
    }
}

/// The picture as clients from 1.4 on keep it: changes wait for the state of the current join.
#[derive(Debug, Default)]
pub struct New {
    picture: Picture,
    /// The join whose state has arrived.
    synced: Option<u32>,
    pending: Vec<Value>,
}

impl New {
    /// `onState`, while the channel's join has this ref.
    pub fn state(&mut self, state: &Value, join_ref: u32) {
        self.synced = Some(join_ref);
        sync_state(&mut self.picture, &picture(state), Adds::Once);
        for diff in std::mem::take(&mut self.pending) {
            self.apply(&diff);
        }
    }

    /// `onDiff`, while the channel's join has this ref.
    pub fn diff(&mut self, diff: &Value, join_ref: u32) {
        match self.is_synced(join_ref) {
            true => self.apply(diff),
            false => self.pending.push(diff.clone()),
        }
    }

    /// Whether the state of this join has arrived.
    pub fn is_synced(&self, join_ref: u32) -> bool {
        self.synced == Some(join_ref)
    }

    /// The members that the client knows.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    fn apply(&mut self, diff: &Value) {
        let (joins, leaves) = (picture(&diff["joins"]), picture(&diff["leaves"]));
        sync_diff(&mut self.picture, joins, &leaves, Adds::Once);
    }
}

/// Reads members as they are on the wire. It panics where a client would throw.
fn picture(members: &Value) -> Picture {
    let members = members.as_object().expect("keys");
    let metas = |presence: &Value| presence["metas"].as_array().expect("metas").clone();
    members.iter().map(|(key, presence)| (key.clone(), metas(presence))).collect()
}

fn reference(meta: &Value) -> &str {
    meta["phx_ref"].as_str().expect("a reference")
}

fn has(metas: &[Value], meta: &Value) -> bool {
    metas.iter().any(|known| reference(known) == reference(meta))
}

fn sync_state(state: &mut Picture, told: &Picture, adds: Adds) {
    let without = |these: &Picture, those: &Picture| -> Picture {
        let rest = |(key, metas): (&String, &Vec<Value>)| {
            let known = those.get(key).map_or(&[][..], Vec::as_slice);
            let rest: Vec<_> = metas.iter().filter(|meta| !has(known, meta)).cloned().collect();
            (!rest.is_empty()).then(|| (key.clone(), rest))
        };
        these.iter().filter_map(rest).collect()
    };
    let (joins, leaves) = (without(told, state), without(state, told));
    sync_diff(state, joins, &leaves, adds);
}

fn sync_diff(state: &mut Picture, joins: Picture, leaves: &Picture, adds: Adds) {
    for (key, joined) in joins {
        let mut metas = state.remove(&key).unwrap_or_default();
        if adds == Adds::Once {
            metas.retain(|known| !has(&joined, known));
        }
        metas.extend(joined);
        state.insert(key, metas);
    }
    for (key, left) in leaves {
        let Some(metas) = state.get_mut(key) else { continue };
        metas.retain(|meta| !has(left, meta));
        if metas.is_empty() {
            state.remove(key);
        }
    }
}
