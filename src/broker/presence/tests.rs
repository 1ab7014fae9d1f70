//! Presence step by step, then at random, against the pictures that clients make of it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const FIRST: WorkerId = WorkerId(1);
const SECOND: WorkerId = WorkerId(2);

fn persona(key: &str, meta: &str) -> Persona {
    let meta = Meta { custom: Some(meta_of(meta)), ..Meta::default() };
    Persona { key: key.into(), meta }
}

fn meta_of(text: &str) -> JsonText {
    JsonText::of_text(text)
}

/// `key:reference<previous`, all of them.
fn shown(roster: &Roster) -> String {
    let all = roster.iter().flat_map(|(_, members)| members);
    let all: Vec<_> = all
        .map(|member| {
            let previous = member.previous.as_ref().map(|p| format!("<{p}")).unwrap_or_default();
            format!("{}:{}{previous}", member.persona.key, member.reference)
        })
        .collect();
    all.join(" ")
}

/// Joins and leaves of the next announcement.
fn told(presence: &mut Presence) -> (String, String) {
    let Change { joins, leaves, .. } = presence.announce();
    (shown(&joins), shown(&leaves))
}

fn pair(joins: &str, leaves: &str) -> (String, String) {
    (joins.to_owned(), leaves.to_owned())
}

fn track(
    presence: &mut Presence,
    session: u64,
    key: &str,
    reference: &str,
) -> Result<(), ChannelFull> {
    presence.track(SessionId(session), FIRST, persona(key, "x"), reference.to_owned().into())
}

#[test]
fn e162_e163_each_arrival_and_departure_is_told_once() {
    let mut presence = Presence::new(10);
    track(&mut presence, 1, "ada", "a").expect("room");
    assert_eq!(shown(&presence.announced()), "", "a newcomer is told of nobody");
    assert_eq!(told(&mut presence), pair("ada:a", ""));
    track(&mut presence, 2, "bob", "b").expect("room");
    assert_eq!(shown(&presence.announced()), "ada:a");
    assert_eq!(told(&mut presence), pair("bob:b", ""));
    presence.untrack(SessionId(1));
    assert_eq!(shown(&presence.announced()), "ada:a bob:b");
    assert_eq!(told(&mut presence), pair("", "ada:a"));
    assert!(!presence.has_news() && !presence.is_deserted());
    presence.untrack(SessionId(2));
    assert_eq!(told(&mut presence), pair("", "bob:b"));
    assert!(presence.is_deserted());
}

#[test]
fn e165_an_update_is_the_new_state_and_the_old_one_in_one_announcement() {
    let mut presence = Presence::new(10);
    track(&mut presence, 1, "ada", "a").expect("room");
    presence.announce();
    presence.update(SessionId(1), meta_of("2"), "b".into());
    assert_eq!(told(&mut presence), pair("ada:b<a", "ada:a"));
    presence.update(SessionId(1), meta_of("3"), "c".into());
    presence.update(SessionId(1), meta_of("4"), "d".into());
    assert_eq!(told(&mut presence), pair("ada:d<b", "ada:b<a"), "two at a time are one");
    assert_eq!(shown(&presence.announced()), "ada:d<b");
}

#[test]
fn a_state_that_comes_once_more_is_no_change() {
    let mut presence = Presence::new(10);
    let again = |presence: &mut Presence, reference| {
        track(presence, 1, "ada", reference).expect("room");
        presence.update(SessionId(1), meta_of("x"), reference.to_owned().into());
    };
    track(&mut presence, 1, "ada", "a").expect("room");
    presence.announce();
    again(&mut presence, "a");
    assert!(!presence.has_news(), "clients would remove a reference that joins and leaves at once");
    presence.untrack(SessionId(1));
    again(&mut presence, "a");
    assert!(!presence.has_news(), "it has left and come in between");
    presence.update(SessionId(1), meta_of("2"), "b".into());
    again(&mut presence, "b");
    assert_eq!(told(&mut presence), pair("ada:b<a", "ada:a"));
    again(&mut presence, "b");
    assert!(!presence.has_news());
}

#[test]
fn a_state_that_was_never_announced_is_nobodys_previous_state() {
    let mut presence = Presence::new(10);
    track(&mut presence, 1, "ada", "a").expect("room");
    presence.update(SessionId(1), meta_of("2"), "b".into());
    assert_eq!(told(&mut presence), pair("ada:b", ""));
    track(&mut presence, 1, "ada", "c").expect("room");
    presence.update(SessionId(1), meta_of("3"), "d".into());
    assert_eq!(told(&mut presence), pair("ada:d", "ada:b"), "a rejoin begins anew");
}

#[test]
fn e166_e168_sessions_of_one_key_are_members_of_their_own_and_a_rejoin_replaces_its_own() {
    let mut presence = Presence::new(10);
    for (session, reference) in [(1, "a"), (2, "b")] {
        track(&mut presence, session, "ada", reference).expect("room");
    }
    assert_eq!(told(&mut presence), pair("ada:a ada:b", ""));
    track(&mut presence, 1, "eve", "c").expect("room");
    assert_eq!(told(&mut presence), pair("eve:c", "ada:a"), "under another name");
    presence.untrack(SessionId(2));
    assert_eq!(told(&mut presence), pair("", "ada:b"));
}

#[test]
fn a_key_arrives_with_its_first_member_and_departs_with_its_last() {
    let mut presence = Presence::new(10);
    let keys = |presence: &mut Presence| {
        let Change { arrived, departed, .. } = presence.announce();
        let arrived: Vec<_> = arrived
            .into_iter()
            .map(|Arrival { member, sessions }| {
                let sessions: Vec<_> = sessions.iter().map(|session| session.0).collect();
                format!("{}:{} {sessions:?}", member.persona.key, member.reference)
            })
            .collect();
        (arrived.join(","), departed.join(","))
    };
    for (session, reference) in [(1, "a"), (2, "b")] {
        track(&mut presence, session, "ada", reference).expect("room");
    }
    assert_eq!(keys(&mut presence), pair("ada:a [1, 2]", ""), "two members, one key");
    track(&mut presence, 3, "ada", "c").expect("room");
    presence.untrack(SessionId(1));
    assert_eq!(keys(&mut presence), pair("", ""), "another is there still");
    presence.update(SessionId(2), meta_of("2"), "d".into());
    assert_eq!(keys(&mut presence), pair("", ""), "an update is no arrival");
    presence.untrack(SessionId(2));
    presence.untrack(SessionId(3));
    track(&mut presence, 4, "ada", "e").expect("room");
    assert_eq!(keys(&mut presence), pair("", ""), "one takes the place of all");
    track(&mut presence, 4, "eve", "f").expect("room");
    assert_eq!(keys(&mut presence), pair("eve:f [4]", "ada"), "a session under another key");
    presence.untrack(SessionId(4));
    assert_eq!(keys(&mut presence), pair("", "eve"));
}

#[test]
fn changes_that_cancel_out_between_two_announcements_are_never_announced() {
    let mut presence = Presence::new(10);
    track(&mut presence, 1, "ada", "a").expect("room");
    presence.untrack(SessionId(1));
    assert!(!presence.has_news() && presence.is_deserted());
    track(&mut presence, 1, "ada", "b").expect("room");
    presence.announce();
    presence.update(SessionId(1), meta_of("2"), "c".into());
    presence.untrack(SessionId(1));
    assert_eq!(told(&mut presence), pair("", "ada:b"));
}

#[test]
fn e171_an_update_or_a_leave_of_an_absent_session_has_no_effect() {
    let mut presence = Presence::new(10);
    track(&mut presence, 1, "ada", "a").expect("room");
    presence.announce();
    presence.untrack(SessionId(1));
    presence.untrack(SessionId(1));
    presence.update(SessionId(1), meta_of("2"), "b".into());
    assert_eq!(told(&mut presence), pair("", "ada:a"), "one leave");
    presence.untrack(SessionId(1));
    presence.update(SessionId(2), meta_of("2"), "c".into());
    presence.untrack_home(FIRST);
    assert!(!presence.has_news() && presence.is_deserted());
}

#[test]
fn a_thread_takes_all_its_sessions_along_and_no_others() {
    let mut presence = Presence::new(10);
    for (session, worker) in [(1, FIRST), (2, SECOND), (3, FIRST)] {
        let reference = session.to_string().into();
        let tracked = presence.track(SessionId(session), worker, persona("k", "x"), reference);
        tracked.expect("room");
    }
    presence.announce();
    presence.untrack_home(FIRST);
    assert_eq!(told(&mut presence), pair("", "k:1 k:3"));
}

#[test]
fn a_channel_admits_up_to_its_limit_and_a_member_may_rejoin() {
    let mut presence = Presence::new(2);
    for session in [1, 2] {
        track(&mut presence, session, "k", "r").expect("room");
    }
    assert_eq!(track(&mut presence, 3, "k", "r"), Err(ChannelFull));
    assert_eq!(track(&mut presence, 2, "other", "s"), Ok(()));
    presence.announce();
    assert_eq!(track(&mut presence, 3, "k", "r"), Err(ChannelFull));
    presence.untrack(SessionId(1));
    assert_eq!(track(&mut presence, 3, "k", "r"), Ok(()), "a leave makes room at once");
    assert_eq!(track(&mut presence, 1, "k", "r"), Err(ChannelFull));
}

/// The state that a client keeps: keys with references, in its own order.
type Picture = BTreeMap<String, Vec<String>>;

fn picture(roster: &Roster) -> Picture {
    let refs = |members: &[Arc<Member>]| members.iter().map(|m| m.reference.to_string()).collect();
    roster.iter().map(|(key, members)| (key.to_owned(), refs(members))).collect()
}

/// `syncDiff` of phoenix.js: from 1.4 on it knows members again by their references, before it
/// takes what it is told for new.
fn sync_diff(state: &mut Picture, joins: Picture, leaves: &Picture, knows_again: bool) {
    for (key, mut joined) in joins {
        if let Some(mut kept) = state.remove(&key) {
            if knows_again {
                kept.retain(|reference| !joined.contains(reference));
            }
            kept.append(&mut joined);
            joined = kept;
        }
        state.insert(key, joined);
    }
    for (key, left) in leaves {
        let Some(current) = state.get_mut(key) else { continue };
        current.retain(|reference| !left.contains(reference));
        if current.is_empty() {
            state.remove(key);
        }
    }
}

/// `syncState` of phoenix.js, all versions.
fn sync_state(state: &mut Picture, new: &Picture, knows_again: bool) {
    let but = |these: &Picture, those: &Picture| -> Picture {
        let without = |(key, refs): (&String, &Vec<String>)| {
            let known = those.get(key).cloned().unwrap_or_default();
            let rest: Vec<_> = refs.iter().filter(|r| !known.contains(r)).cloned().collect();
            (!rest.is_empty()).then(|| (key.clone(), rest))
        };
        these.iter().filter_map(without).collect()
    };
    let (joins, leaves) = (but(new, state), but(state, new));
    sync_diff(state, joins, &leaves, knows_again);
}

/// A client that listens: both ways to keep a picture.
#[derive(Default)]
struct Client {
    old: Picture,
    new: Picture,
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Join(u64, u8),
    Leave(u64),
    Update(u64),
    LoseThread(u64),
    Announce,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = 0_u64..8;
    let step = prop_oneof![
        4 => (session.clone(), 0_u8..4).prop_map(|(session, key)| Step::Join(session, key)),
        2 => session.clone().prop_map(Step::Leave),
        3 => session.prop_map(Step::Update),
        1 => (0_u64..2).prop_map(Step::LoseThread),
        4 => Just(Step::Announce),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn e169_every_picture_equals_the_announced_state_at_any_moment(steps in steps()) {
        let mut presence = Presence::new(6);
        let mut clients: BTreeMap<u64, Client> = BTreeMap::new();
        let mut here: BTreeMap<u64, String> = BTreeMap::new();
        let mut keys_there: BTreeSet<ByteString> = BTreeSet::new();
        for (nth, step) in steps.into_iter().chain([Step::Announce]).enumerate() {
            let reference = ByteString::from(nth.to_string());
            match step {
                Step::Join(session, key) => {
                    let (key, worker) = (format!("k{key}"), WorkerId(session % 2));
                    let who = persona(&key, "x");
                    let joined = presence.track(SessionId(session), worker, who, reference);
                    let is_full = here.len() >= 6 && !here.contains_key(&session);
                    prop_assert_eq!(joined.is_err(), is_full);
                    if joined.is_ok() {
                        here.insert(session, key);
                        // Its state comes before the next announcement; a rejoin keeps its picture.
                        let client = clients.entry(session).or_default();
                        let told = picture(&presence.announced());
                        sync_state(&mut client.old, &told, false);
                        sync_state(&mut client.new, &told, true);
                    }
                }
                Step::Leave(session) => {
                    presence.untrack(SessionId(session));
                    here.remove(&session);
                    clients.remove(&session);
                }
                Step::Update(session) => {
                    presence.update(SessionId(session), meta_of("u"), reference);
                }
                Step::LoseThread(worker) => {
                    presence.untrack_home(WorkerId(worker));
                    here.retain(|session, _| session % 2 != worker);
                    clients.retain(|session, _| session % 2 != worker);
                }
                Step::Announce => {
                    let Change { joins, leaves, arrived, departed } = presence.announce();
                    for Arrival { member, sessions } in arrived {
                        let key = &member.persona.key;
                        prop_assert!(keys_there.insert(key.clone()), "{} was there", key);
                        let of_key = here.iter().filter(|(_, other)| ***other == **key);
                        let of_key: Vec<_> = of_key.map(|(id, _)| SessionId(*id)).collect();
                        prop_assert_eq!(sessions, of_key);
                    }
                    for key in departed {
                        prop_assert!(keys_there.remove(&key), "{} was not there", key);
                    }
                    let keys: BTreeSet<_> =
                        presence.announced().iter().map(|(key, _)| key.into()).collect();
                    prop_assert_eq!(&keys, &keys_there);
                    let (joins, leaves) = (picture(&joins), picture(&leaves));
                    for client in clients.values_mut() {
                        sync_diff(&mut client.old, joins.clone(), &leaves, false);
                        sync_diff(&mut client.new, joins.clone(), &leaves, true);
                    }
                    prop_assert_eq!(presence.announced(), presence.current());
                }
            }
            let announced = sorted(&picture(&presence.announced()));
            for (session, client) in &clients {
                prop_assert_eq!(&sorted(&client.old), &announced, "session {} before 1.4", session);
                prop_assert_eq!(&sorted(&client.new), &announced, "session {} since 1.4", session);
            }
        }
        let expected: Vec<_> = sort(here.into_values().collect());
        let current = picture(&presence.current());
        let keys = current.iter().flat_map(|(key, refs)| refs.iter().map(move |_| key.clone()));
        prop_assert_eq!(sort(keys.collect()), expected);
    }
}

fn sort(mut all: Vec<String>) -> Vec<String> {
    all.sort();
    all
}

/// The order of one key's members is each client's own; that none is there twice is seen here.
fn sorted(picture: &Picture) -> BTreeMap<String, Vec<String>> {
    picture
        .iter()
        .map(|(key, refs)| {
            assert_eq!(
                refs.iter().collect::<BTreeSet<_>>().len(),
                refs.len(),
                "twice: {picture:?}"
            );
            (key.clone(), sort(refs.clone()))
        })
        .collect()
}
