//! Keys by themselves, against a model, and behind the broker.

use std::collections::BTreeMap;

use futures_util::{FutureExt, poll};
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::{
    super::{
        JsonObject, OnceError, PublishError, Published,
        count::CountAll,
        testing::{Broker, DEADLINE, key as scope, publication, whole},
    },
    *,
};

const APP: AppId = AppId(1);

fn key(raw: &str) -> IdempotencyKey {
    IdempotencyKey::parse(raw, KeyOwner::Application).expect("a key")
}

fn subject(json: &str) -> Subject {
    let raw: &RawValue = serde_json::from_str(json).expect("JSON");
    Subject::of(raw).expect("a subject")
}

fn content(event: &str) -> ContentDigest {
    ContentDigest::of(&[publication(&scope(1, "public"), "room", event)])
}

/// The outcome of a claim, in words.
fn told(claim: &Claim<u32>) -> String {
    match claim {
        Claim::First(_) => "first".into(),
        Claim::UnderWay(_) => "under way".into(),
        Claim::Done(outcome) => format!("done: {outcome}"),
        Claim::OtherContent => "other content".into(),
    }
}

fn first(claim: Claim<u32>) -> Claimed<u32> {
    match claim {
        Claim::First(claimed) => claimed,
        other => panic!("{}", told(&other)),
    }
}

#[test]
fn a_key_is_any_text_of_1_to_128_bytes() {
    let (longest, too_long) = ("k".repeat(128), "\u{e9}".repeat(65));
    for (raw, expected) in [
        ("k", Ok(())),
        ("#\n\0", Ok(())),
        (longest.as_str(), Ok(())),
        ("", Err(NameError::Empty)),
        (&too_long, Err(NameError::TooLong(128))),
    ] {
        let parsed = IdempotencyKey::parse(raw, KeyOwner::Application);
        assert_eq!(parsed.map(|_| ()), expected, "{raw:?}");
    }
}

#[test]
fn keys_are_remembered_again_for_as_long_and_as_many_as_before() {
    let (start, visitor) = (Instant::now() + REMEMBERED, KeyOwner::Anonymous(b"a token"));
    let seconds = Duration::from_secs;
    let before = IdempotencyKeys::new(4);
    for (nth, raw) in ["a", "b", "c"].into_iter().enumerate() {
        let claimed = first(before.claim(APP, key(raw), content(raw), start));
        claimed.complete(nth as u32, start + seconds(100 * nth as u64));
    }
    let of_visitor = IdempotencyKey::parse("a", visitor).expect("a key");
    first(before.claim(APP, of_visitor, content("v"), start)).complete(9, start + seconds(200));
    let under_way = first(before.claim(APP, key("u"), content("u"), start + seconds(200)));
    let saved = before.remembered(start + seconds(310));
    drop(under_way);
    assert_eq!(saved.len(), 3, "one has expired, one is not done");
    assert!(
        saved
            .iter()
            .all(|saved| IdempotencyKey::from_bytes(saved.key.to_bytes()) == Some(saved.key))
    );

    // The clock of another process, which began elsewhere.
    let now = start + seconds(10_000);
    let after = IdempotencyKeys::new(4);
    assert_eq!(after.remember_again(saved.clone(), now), 3);
    let told_at =
        |keys: &IdempotencyKeys<u32>, raw, at| told(&keys.claim(APP, key(raw), content(raw), at));
    assert_eq!(told_at(&after, "a", now), "first");
    assert_eq!(told_at(&after, "u", now), "first");
    assert_eq!(told_at(&after, "b", now + seconds(89)), "done: 1");
    assert_eq!(told(&after.claim(APP, key("c"), content("b"), now)), "other content");
    assert_eq!(told(&after.claim(APP, of_visitor, content("v"), now)), "done: 9");
    assert_eq!(told_at(&after, "b", now + seconds(90)), "first");
    assert_eq!(told_at(&after, "c", now + seconds(189)), "done: 2");
    assert_eq!(told_at(&after, "c", now + seconds(190)), "first");
    // Of too many the oldest are forgotten.
    let small = IdempotencyKeys::new(1);
    assert_eq!(small.remember_again(saved, now), 2);
    assert_eq!(told_at(&small, "b", now), "first");
    assert_eq!(told_at(&small, "c", now), "done: 2");
}

#[tokio::test]
async fn keys_are_settled_once_no_publisher_is_under_way() {
    let (keys, now) = (IdempotencyKeys::new(4), Instant::now());
    let (one, other) =
        ["a", "b"].map(|raw| first(keys.claim(APP, key(raw), content(raw), now))).into();
    let mut settled = Box::pin(keys.settled());
    assert!(poll!(&mut settled).is_pending());
    one.complete(1, now);
    assert!(poll!(&mut settled).is_pending());
    drop(other);
    settled.await;
    assert_eq!(keys.remembered(now).len(), 1);
}

#[test]
fn each_owner_has_keys_of_its_own() {
    let (ada, bob) = (subject(r#"{"id":1}"#), subject(r#"{"id":2}"#));
    let owners = [
        KeyOwner::Application,
        KeyOwner::TriggerToken(None),
        KeyOwner::TriggerToken(Some(&ada)),
        KeyOwner::Visitor(&ada),
        KeyOwner::Visitor(&bob),
        KeyOwner::Anonymous(b"a token"),
        KeyOwner::Anonymous(b"another"),
    ];
    let keys = owners.map(|owner| IdempotencyKey::parse("k", owner).expect("a key"));
    for (nth, key) in keys.iter().enumerate() {
        assert_eq!(places_of(key, &keys), [nth]);
    }
    // The order of an object's members is not part of a subject.
    let [one, same] = [r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#].map(subject);
    let [one, same] = [&one, &same].map(|s| IdempotencyKey::parse("k", KeyOwner::Visitor(s)));
    assert_eq!(one, same);
}

/// The positions of a value in a list.
fn places_of<T: PartialEq>(sought: &T, all: &[T]) -> Vec<usize> {
    (0..all.len()).filter(|nth| all[*nth] == *sought).collect()
}

#[test]
fn every_part_of_every_publication_is_content() {
    let object = |text: &str| Payload::from(JsonObject::parse(text).expect("an object"));
    let of = |scope_name: &str, destination: &str, event: &str, payload: Payload| Publication {
        payload,
        ..publication(&scope(1, scope_name), destination, event)
    };
    let base = || of("public", "room", "msg", object("{}"));
    let bytes = |bytes: &'static [u8]| Payload::Bytes(bytes.into());
    let all = [
        vec![base()],
        vec![of("private", "room", "msg", object("{}"))],
        vec![of("public", "rooms", "msg", object("{}"))],
        vec![of("public", "#general", "msg", object("{}"))],
        vec![of("public", "room", "msgs", object("{}"))],
        vec![of("public", "roo", "mmsg", object("{}"))],
        vec![of("public", "room", "msg", object(r#"{"a":1}"#))],
        vec![of("public", "room", "msg", object(r#"{"a": 1}"#))],
        vec![of("public", "room", "msg", bytes(b"{}"))],
        vec![of("public", "room", "msg", bytes(b""))],
        vec![base(), base()],
        vec![base(), of("public", "room", "other", object("{}"))],
        vec![of("public", "room", "other", object("{}")), base()],
        vec![],
    ];
    let contents: Vec<_> = all.iter().map(|publications| ContentDigest::of(publications)).collect();
    for (nth, content) in contents.iter().enumerate() {
        assert_eq!(places_of(content, &contents), [nth], "{:?}", all[nth]);
    }
    assert_eq!(ContentDigest::of(&[base()]), contents[0]);
}

#[test]
fn a_key_answers_for_five_minutes_and_is_free_then() {
    let (keys, begun) = (IdempotencyKeys::new(10), Instant::now());
    let claim = |app, raw, event, after_s| {
        let now = begun + Duration::from_secs(after_s);
        keys.claim(app, key(raw), content(event), now)
    };
    let one = first(claim(APP, "k", "msg", 0));
    assert_eq!(told(&claim(APP, "k", "msg", 0)), "under way");
    assert_eq!(told(&claim(APP, "k", "other", 0)), "other content");
    assert!(!one.complete(7, begun));
    assert_eq!(told(&claim(APP, "k", "msg", 299)), "done: 7");
    assert_eq!(told(&claim(APP, "k", "other", 299)), "other content");
    assert_eq!(told(&claim(APP, "another", "msg", 299)), "first");
    assert_eq!(told(&claim(AppId(2), "k", "other", 299)), "first");
    assert_eq!(told(&claim(APP, "k", "other", 300)), "first");
}

#[test]
fn a_claim_that_is_dropped_leaves_the_key_free() {
    let (keys, now) = (IdempotencyKeys::new(10), Instant::now());
    let claim = |event| keys.claim(APP, key("k"), content(event), now);
    let dropped = first(claim("msg"));
    let Claim::UnderWay(other) = claim("msg") else { panic!("it is under way") };
    let mut ended = Box::pin(other.ended());
    assert!(ended.as_mut().now_or_never().is_none());
    drop(dropped);
    assert!(ended.now_or_never().is_some());
    let again = first(claim("other"));
    let Claim::UnderWay(other) = claim("other") else { panic!("it is under way") };
    again.complete(1, now);
    assert!(other.ended().now_or_never().is_some());
    assert_eq!(told(&claim("other")), "done: 1");
}

#[test]
fn the_oldest_key_gives_way_and_never_one_of_the_application_to_a_visitors() {
    let (keys, now) = (IdempotencyKeys::new(2), Instant::now());
    let ada = subject("1");
    let owned = |nth: u32, owner| IdempotencyKey::parse(&nth.to_string(), owner).expect("a key");
    let [own, visitors] = [KeyOwner::Application, KeyOwner::Visitor(&ada)];
    let publish = |nth, owner| {
        let claimed = first(keys.claim(APP, owned(nth, owner), content("msg"), now));
        claimed.complete(nth, now)
    };
    assert_eq!([publish(1, own), publish(2, own)], [false, false]);
    assert_eq!([1, 2, 3, 4].map(|nth| publish(nth, visitors)), [false, false, true, true]);
    // A key under way is not counted, nor forgotten.
    let under_way = first(keys.claim(APP, owned(9, own), content("msg"), now));
    assert!(publish(3, own));
    for (nth, owner, expected) in [
        (1, own, "first"),
        (2, own, "done: 2"),
        (3, own, "done: 3"),
        (9, own, "under way"),
        (2, visitors, "first"),
        (3, visitors, "done: 3"),
    ] {
        let claim = keys.claim(APP, owned(nth, owner), content("msg"), now);
        assert_eq!(told(&claim), expected, "{nth} {owner:?}");
    }
    drop(under_way);
}

#[test]
fn nothing_is_kept_of_an_app_that_is_gone_or_has_been_silent() {
    let (keys, now) = (IdempotencyKeys::new(10), Instant::now());
    let books = |keys: &IdempotencyKeys<u32>| keys.0.state.lock().books.len();
    let claim = |app, now| keys.claim(AppId(app), key("k"), content("msg"), now);
    for app in 1..=3 {
        first(claim(app, now)).complete(1, now);
    }
    let under_way = first(keys.claim(APP, key("slow"), content("msg"), now));
    keys.forget_app(APP);
    assert_eq!(books(&keys), 2);
    // A publisher with a forgotten key does not disturb the next one.
    let next = first(keys.claim(APP, key("slow"), content("msg"), now));
    assert!(!under_way.complete(1, now));
    assert_eq!(told(&keys.claim(APP, key("slow"), content("msg"), now)), "under way");
    next.complete(2, now);
    assert_eq!(told(&keys.claim(APP, key("slow"), content("msg"), now)), "done: 2");

    keys.expire(now + REMEMBERED);
    assert_eq!(books(&keys), 0);
    // Claims under way are not forgotten, and what they leave is.
    let dropped = first(claim(2, now));
    keys.expire(now + REMEMBERED);
    assert_eq!(told(&claim(2, now)), "under way");
    drop(dropped);
    keys.expire(now);
    assert_eq!(books(&keys), 0);
}

#[derive(Debug, Clone)]
enum Step {
    /// An app uses a key with some content.
    Claim(i32, u8, u8),
    /// One of those under way ends: published or not.
    End(usize, bool),
    Pass(u64),
    ForgetApp(i32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..3, 0_u8..5, 0_u8..2).prop_map(|(app, key, content)| Step::Claim(app, key, content)),
        8 => (0_usize..8, any::<bool>()).prop_map(|(nth, is_done)| Step::End(nth, is_done)),
        3 => (1_u64..200).prop_map(Step::Pass),
        1 => (0..3).prop_map(Step::ForgetApp),
    ];
    proptest::collection::vec(step, 1..200)
}

/// The expected state of each key: its content and, once it is done, the time and the outcome.
type Model = BTreeMap<(i32, u8), (u8, Option<(Instant, u32)>)>;

/// Forgets what is over, and all but the newest keys of each app.
fn forget(model: &mut Model, keys_max: usize, now: Instant) {
    model.retain(|_, (_, done)| done.is_none_or(|(at, _)| now - at < REMEMBERED));
    for app in 0..3 {
        let of_app = model.iter().filter(|((owner, _), _)| *owner == app);
        let mut done: Vec<_> =
            of_app.filter_map(|(key, (_, done))| Some((done.as_ref()?.1, *key))).collect();
        done.sort_unstable();
        for (_, key) in done.iter().rev().skip(keys_max) {
            model.remove(key);
        }
    }
}

proptest! {
    #[test]
    fn keys_answer_like_a_model(keys_max in 1_usize..5, steps in steps()) {
        let keys = IdempotencyKeys::new(keys_max);
        let mut now = Instant::now();
        let mut model = Model::new();
        let mut under_way = Vec::new();
        let mut outcomes = 0;
        for step in steps {
            match step {
                Step::Claim(app, name, content) => {
                    let expected = match model.get(&(app, name)) {
                        None => "first".into(),
                        Some((other, _)) if *other != content => "other content".into(),
                        Some((_, None)) => "under way".into(),
                        Some((_, Some((_, outcome)))) => format!("done: {outcome}"),
                    };
                    let content_of = |content: u8| self::content(&content.to_string());
                    let claim =
                        keys.claim(AppId(app), key(&name.to_string()), content_of(content), now);
                    prop_assert_eq!(told(&claim), expected);
                    if let Claim::First(claimed) = claim {
                        model.insert((app, name), (content, None));
                        under_way.push(((app, name), true, claimed));
                    }
                }
                Step::End(nth, is_done) if nth < under_way.len() => {
                    let (key, is_known, claimed) = under_way.swap_remove(nth);
                    outcomes += 1;
                    if is_done {
                        claimed.complete(outcomes, now);
                    } else {
                        drop(claimed);
                    }
                    if is_known && is_done {
                        let content = model[&key].0;
                        model.insert(key, (content, Some((now, outcomes))));
                    } else if is_known {
                        model.remove(&key);
                    }
                }
                Step::End(..) => {}
                Step::Pass(seconds) => now += Duration::from_secs(seconds),
                Step::ForgetApp(app) => {
                    keys.forget_app(AppId(app));
                    model.retain(|(owner, _), _| *owner != app);
                    let of_app = under_way.iter_mut().filter(|((owner, _), ..)| *owner == app);
                    of_app.for_each(|(_, is_known, _)| *is_known = false);
                }
            }
            forget(&mut model, keys_max, now);
        }
    }
}

#[actix_web::test]
async fn a_repetition_waits_for_the_first_and_answers_like_it() {
    let (broker, scope) = (Broker::start(), scope(1, "public"));
    let mut probe = broker.session(1).await;
    broker.join(&probe, whole(&scope)).await.expect("a place");
    let once = |event| {
        let publications = vec![publication(&scope, "room", event); 2];
        Box::pin(broker.topics.publish_once(key("k"), publications))
    };
    let held = broker.topics.permits().take(scope.app, 8).await.expect("all permits");
    let (mut one, mut two) = (once("msg"), once("msg"));
    assert!(poll!(&mut one).is_pending() && poll!(&mut two).is_pending());
    assert_eq!(once("other").await.expect_err("other content"), OnceError::OtherContent);
    drop(held);
    let Published::Now(first) = one.await.expect("room") else { panic!("it is the first") };
    for repetition in [two, once("msg")] {
        let published = repetition.await.expect("an answer");
        let Published::Before(again) = published else { panic!("it is a repetition") };
        assert_eq!(again.positions(), first.positions());
    }
    assert_eq!(once("other").await.expect_err("other content"), OnceError::OtherContent);
    broker.topics.fanouts().ask(CountAll, DEADLINE).await;
    assert_eq!([probe.next().await, probe.next().await], ["* room:msg"; 2]);
    assert!(probe.has_heard_nothing());
}

#[actix_web::test]
async fn a_first_that_gives_up_or_is_refused_leaves_its_place_to_a_repetition() {
    let wait_max = Duration::from_millis(50);
    let (broker, scope) =
        (Broker::start_with(|limits| limits.wait_max = wait_max), scope(1, "public"));
    let once = |raw: &str| {
        let publications = vec![publication(&scope, "room", "msg")];
        Box::pin(broker.topics.publish_once(key(raw), publications))
    };
    let hold = || broker.topics.permits().take(scope.app, 8);
    let is_now = |published| matches!(published, Ok(Published::Now(_)));

    let held = hold().await.expect("all permits");
    let (mut one, mut two) = (once("dropped"), once("dropped"));
    assert!(poll!(&mut one).is_pending() && poll!(&mut two).is_pending());
    drop(one);
    drop(held);
    assert!(is_now(two.await));

    let held = hold().await.expect("all permits");
    let (mut one, mut two) = (once("refused"), once("refused"));
    assert!(poll!(&mut one).is_pending() && poll!(&mut two).is_pending());
    assert_eq!(one.await.expect_err("no room"), OnceError::Refused(PublishError::Busy));
    drop(held);
    assert!(is_now(two.await));

    // No longer than the limit.
    let _held = hold().await.expect("all permits");
    let (mut one, two) = (once("slow"), once("slow"));
    assert!(poll!(&mut one).is_pending());
    assert_eq!(two.await.expect_err("no answer"), OnceError::Refused(PublishError::Busy));
}

#[actix_web::test]
async fn how_many_were_skipped_is_answered_again() {
    let (broker, scope) = (Broker::start(), scope(1, "public"));
    let probe = broker.session(1).await;
    broker.join(&probe, whole(&scope)).await.expect("a place");
    let once = || {
        let payload = Payload::Bytes(b"\0".as_slice().into());
        let bytes = Publication { payload, ..publication(&scope, "room", "msg") };
        broker.topics.publish_once(key("k"), vec![bytes])
    };
    // The first does not ask.
    let Published::Now(first) = once().await.expect("room") else { panic!("it is the first") };
    assert!(first.may_skip());
    drop(first);
    for _ in 0..2 {
        let published = once().await.expect("an answer");
        let Published::Before(again) = published else { panic!("it is a repetition") };
        assert!(again.may_skip());
        assert_eq!(again.skipped().await, Some(1));
    }
}

#[actix_web::test]
async fn keys_outlive_a_change_of_their_app_and_not_the_app() {
    let broker = Broker::start();
    // There is no app 3.
    for (app, is_remembered) in [(1, true), (3, false)] {
        let once = || {
            let publications = vec![publication(&scope(app, "public"), "room", "msg")];
            broker.topics.publish_once(key("k"), publications)
        };
        assert!(matches!(once().await, Ok(Published::Now(_))));
        broker.topics.review(AppId(app));
        let again = once().await.expect("an answer");
        assert_eq!(matches!(again, Published::Before(_)), is_remembered, "{app}");
    }
}
