use std::{
    hint,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
};

use super::{
    super::{
        position::Epochs,
        publication::JsonObject,
        subscriber::ScopeKey,
        testing::{Broker, key},
    },
    *,
};

const LIMITS: LastEventLimits = LastEventLimits {
    ttl: Duration::from_secs(10),
    app_bytes_max: 4 * (ENTRY_BYTES + 100),
    bytes_max: 6 * (ENTRY_BYTES + 100),
};

fn event(scope: &ScopeKey, channel: &str, payload: &str) -> Publication {
    Publication {
        app: scope.app,
        scope: scope.scope.clone(),
        destination: Destination::parse(channel).expect("a destination"),
        event: EventName::parse("msg").expect("an event"),
        payload: JsonObject::parse(payload).expect("an object").into(),
        origin: PublicationOrigin::Trigger,
        except: None,
    }
}

fn at(offset: u64) -> StreamPosition {
    StreamPosition { epoch: Default::default(), offset }
}

fn place(scope: &ScopeKey, channel: &str) -> Place {
    let channel = ChannelName::parse(channel).expect("a channel");
    Place { key: scope.clone(), channel: Some(channel) }
}

fn payload_of(kept: &LastEvents, scope: &ScopeKey, channel: &str, now_ms: u64) -> Option<String> {
    kept.of(&place(scope, channel), now_ms).map(|last| last.payload.as_str().to_owned())
}

#[test]
fn only_what_the_application_triggers_on_a_cache_channel_is_kept() {
    let (public, private) = (key(1, "public"), key(1, "private"));
    let triggered = event(&public, "cache-x", "{}");
    let by_session = PublicationOrigin::Session { user: None };
    let named = |name: &str| EventName::parse(name).expect("an event");
    for (case, publication, is_kept) in [
        ("a cache channel", triggered.clone(), true),
        ("a private one", event(&private, "cache-x", "{}"), true),
        ("an encrypted one", event(&private, "encrypted-cache-x", "{}"), true),
        ("a public channel with that name", event(&public, "encrypted-cache-x", "{}"), false),
        ("another channel", event(&public, "my-cache-x", "{}"), false),
        ("a scope that Pusher does not know", event(&key(1, "deploys"), "cache-x", "{}"), false),
        ("everyone", event(&public, "#general", "{}"), false),
        ("a client's", Publication { origin: by_session, ..triggered.clone() }, false),
        ("bytes", Publication { payload: Payload::Bytes("x".into()), ..triggered.clone() }, false),
        (
            "a name of Pusher's own",
            Publication { event: named("pusher:x"), ..triggered.clone() },
            false,
        ),
    ] {
        assert_eq!(cache_channel(&publication).is_some(), is_kept, "{case}");
        let kept = LastEvents::new(LIMITS);
        assert_eq!(kept.note(&publication, at(1), 0), None, "{case}");
        let (app, scope) = (publication.app, publication.scope.clone());
        let Destination::Channel(channel) = publication.destination else { continue };
        let place = Place { key: ScopeKey { app, scope }, channel: Some(channel) };
        assert_eq!(kept.of(&place, 0).is_some(), is_kept, "{case}");
    }
}

#[test]
fn a_newer_event_takes_the_place_of_the_older_one_until_its_time_is_over() {
    let kept = LastEvents::new(LIMITS);
    let scope = key(1, "public");
    kept.note(&event(&scope, "cache-x", r#"{"n":1}"#), at(1), 1_000);
    kept.note(&event(&scope, "cache-x", r#"{"n":2}"#), at(2), 4_000);
    let last = kept.of(&place(&scope, "cache-x"), 5_000).expect("an event");
    assert_eq!((last.event.as_str(), last.payload.as_str()), ("msg", r#"{"n":2}"#));
    assert_eq!((last.position, last.left), (at(2), Duration::from_secs(9)));
    assert_eq!(payload_of(&kept, &key(2, "public"), "cache-x", 5_000), None, "another app");
    assert_eq!(payload_of(&kept, &key(1, "private"), "cache-x", 5_000), None, "another scope");
    assert!(payload_of(&kept, &scope, "cache-x", 13_999).is_some());
    assert_eq!(payload_of(&kept, &scope, "cache-x", 14_000), None);
    kept.sweep(13_999, |_| true);
    assert_eq!(kept.kept.lock().apps.len(), 1);
    kept.sweep(14_000, |_| true);
    let empty = kept.kept.lock();
    assert_eq!((empty.apps.len(), empty.bytes), (0, 0));
}

#[test]
fn an_app_that_is_gone_keeps_nothing() {
    let kept = LastEvents::new(LIMITS);
    let (one, other) = (key(1, "public"), key(2, "public"));
    kept.note(&event(&one, "cache-x", "{}"), at(1), 0);
    kept.note(&event(&other, "cache-x", "{}"), at(1), 0);
    kept.sweep(0, |app| app == other.app);
    assert_eq!(payload_of(&kept, &one, "cache-x", 0), None);
    assert!(payload_of(&kept, &other, "cache-x", 0).is_some());
}

#[test]
fn the_oldest_events_give_way() {
    let kept = LastEvents::new(LIMITS);
    let (one, other) = (key(1, "public"), key(2, "public"));
    let large = |n: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(60 + n % 2));
    let there = |scope: &ScopeKey| -> Vec<usize> {
        let is_there = |n: &usize| payload_of(&kept, scope, &format!("cache-{n}"), 0).is_some();
        (0..10).filter(is_there).collect()
    };
    for n in 0..4 {
        assert_eq!(kept.note(&event(&one, &format!("cache-{n}"), &large(n)), at(1), 0), None);
    }
    // Renewed, so that it is not the oldest any more.
    kept.note(&event(&one, "cache-0", &large(0)), at(2), 0);
    let exceeded = kept.note(&event(&one, "cache-4", &large(4)), at(1), 0);
    assert_eq!((exceeded, there(&one)), (Some(Limit::CacheAppBytes), vec![0, 2, 3, 4]));
    for n in 0..2 {
        assert_eq!(kept.note(&event(&other, &format!("cache-{n}"), &large(n)), at(1), 0), None);
    }
    let exceeded = kept.note(&event(&other, "cache-2", &large(2)), at(1), 0);
    assert_eq!(exceeded, Some(Limit::CacheBytes));
    assert_eq!((there(&one), there(&other)), (vec![0, 3, 4], vec![0, 1, 2]), "the fullest app");
    let kept = kept.kept.lock();
    let bytes: usize = kept.apps.values().map(|of_app| of_app.bytes).sum();
    assert_eq!(kept.bytes, bytes);
}

#[test]
fn a_node_is_told_all_events_page_by_page_and_keeps_the_newer_ones() {
    let (there, here) = (LastEvents::new(LIMITS), LastEvents::new(LIMITS));
    let scopes = [key(1, "public"), key(1, "private"), key(2, "public")];
    let names = ["cache-b", "cache-a"];
    for (nth, (scope, name)) in
        scopes.iter().flat_map(|scope| names.map(|name| (scope, name))).enumerate()
    {
        let payload = format!(r#"{{"n":{nth}}}"#);
        assert_eq!(there.note(&event(scope, name, &payload), at(1), 1_000), None);
    }
    // Two channels have moved on here since, one in another numbering.
    assert_eq!(here.note(&event(&scopes[0], "cache-a", "{}"), at(2), 900), None);
    let epoch = Epochs::new().give(&scopes[2]);
    let renumbered = StreamPosition { epoch, offset: 1 };
    assert_eq!(here.note(&event(&scopes[2], "cache-a", "{}"), renumbered, 2_000), None);
    for bytes_max in [1, 700, 1 << 20] {
        let (mut after, mut told) = (None, 0);
        loop {
            let page = there.page(after.as_ref(), bytes_max);
            let Some(last) = page.last() else { break };
            assert!(bytes_max > 1 || page.len() == 1);
            after = Some(last.key.clone());
            told += page.len();
            // As it is on its way.
            let page = serde_json::to_string(&page).expect("JSON");
            let page: Vec<ToldEvent> = serde_json::from_str(&page).expect("events");
            assert!(page.into_iter().all(|told| here.adopt(told).is_none()));
        }
        assert_eq!(told, 6, "pages of {bytes_max} bytes");
    }
    let kept = |nth: usize, name| payload_of(&here, &scopes[nth], name, 2_000);
    let n = |n| Some(format!(r#"{{"n":{n}}}"#));
    let newer = Some("{}".to_owned());
    assert_eq!([kept(0, "cache-b"), kept(0, "cache-a")], [n(0), newer.clone()]);
    assert_eq!([kept(1, "cache-b"), kept(1, "cache-a")], [n(2), n(3)]);
    assert_eq!([kept(2, "cache-b"), kept(2, "cache-a")], [n(4), newer]);
}

#[test]
fn events_of_another_node_expire_by_their_time_and_not_in_the_order_in_which_they_came() {
    let (there, here) = (LastEvents::new(LIMITS), LastEvents::new(LIMITS));
    let scope = key(1, "public");
    for (channel, at_ms) in [("cache-b", 1_000), ("cache-a", 5_000)] {
        assert_eq!(there.note(&event(&scope, channel, "{}"), at(1), at_ms), None);
    }
    let page = there.page(None, usize::MAX);
    assert!(page.into_iter().all(|told| here.adopt(told).is_none()));
    here.sort_by_time();
    here.sweep(1_000 + 10_000, |_| true);
    assert!(payload_of(&here, &scope, "cache-a", 11_000).is_some());
    assert_eq!(here.page(None, usize::MAX).len(), 1, "the other one is dropped");
}

/// The events of one channel, as another node sends them.
fn told(publication: &Publication, position: StreamPosition, at_ms: u64) -> ToldEvent {
    let there = LastEvents::new(LIMITS);
    there.note(publication, position, at_ms);
    there.page(None, usize::MAX).pop().expect("an event")
}

#[test]
fn an_event_whose_name_only_phoenix_reserves_is_adopted() {
    let scope = key(1, "public");
    for name in ["phx_reply", "presence_diff"] {
        assert!(EventName::parse(name).is_err(), "{name} is reserved in Phoenix's protocol");
        let name = EventName::parse_any(name).expect("a name");
        let publication = Publication { event: name.clone(), ..event(&scope, "cache-x", "{}") };
        let here = LastEvents::new(LIMITS);
        assert_eq!(here.adopt(told(&publication, at(1), 0)), None);
        let last = here.of(&place(&scope, "cache-x"), 0).expect("an event");
        assert_eq!(last.event, name);
    }
}

#[test]
fn an_older_event_of_another_node_never_replaces_one_that_is_noted_at_the_same_time() {
    const LAST: u64 = 200_000;
    let (scope, here) = (key(1, "public"), LastEvents::new(LIMITS));
    let publication = event(&scope, "cache-x", "{}");
    let sent = told(&publication, at(1), 0);
    let noted = AtomicU64::new(0);
    thread::scope(|threads| {
        threads.spawn(|| {
            for offset in (0..=LAST).step_by(2) {
                here.note(&publication, at(offset), 0);
                noted.store(offset, SeqCst);
                (0..100).for_each(|_| hint::spin_loop());
            }
        });
        while noted.load(SeqCst) < LAST {
            // It is newer than the event that is kept now, and older than the next one.
            let position = at(noted.load(SeqCst) + 1).to_string();
            here.adopt(ToldEvent { position, ..sent.clone() });
            let newest = noted.load(SeqCst);
            let kept = here.of(&place(&scope, "cache-x"), 0);
            let kept = kept.map_or(0, |kept| kept.position.offset);
            assert!(kept >= newest, "{newest} was noted, and {kept} is kept");
        }
    });
}

#[test]
fn forgotten_scopes_keep_nothing_and_the_others_everything() {
    let kept = LastEvents::new(LIMITS);
    let scopes = [key(1, "public"), key(1, "private"), key(2, "public")];
    for scope in &scopes {
        for channel in ["cache-a", "cache-b"] {
            kept.note(&event(scope, channel, "{}"), at(1), 0);
        }
    }
    kept.forget(|scope| *scope == scopes[0] || *scope == scopes[2]);
    let there = scopes.each_ref().map(|scope| payload_of(&kept, scope, "cache-a", 0).is_some());
    assert_eq!(there, [false, true, false]);
    let kept = kept.kept.lock();
    let bytes: usize = kept.apps.values().map(|of_app| of_app.bytes).sum();
    assert_eq!((kept.apps.len(), kept.bytes), (1, bytes));
    assert!(bytes > 0);
}

#[actix_web::test]
async fn a_review_of_an_app_looks_at_the_events_of_no_other_app() {
    let broker = Broker::start_with(|limits| limits.last_events.ttl = Duration::ZERO);
    let kept = broker.topics.directory().ledger().last_events();
    for app in [1, 2] {
        kept.note(&event(&key(app, "public"), "cache-x", "{}"), at(1), 0);
    }
    let apps = || kept.page(None, usize::MAX).iter().map(|told| told.key.app).collect::<Vec<_>>();
    broker.topics.review(AppId(1));
    assert_eq!(apps(), [2], "both events have expired");
    broker.topics.review(AppId(2));
    assert!(apps().is_empty());
}

#[test]
fn an_event_that_exceeds_the_bound_of_all_apps_makes_room_for_further_ones() {
    const APPS: i32 = 400;
    let bytes_max = APPS as usize * (ENTRY_BYTES + 100);
    let kept = LastEvents::new(LastEventLimits { bytes_max, app_bytes_max: bytes_max, ..LIMITS });
    let mut exceeded = 0;
    for (nth, app) in (0..APPS).cycle().take(10 * APPS as usize).enumerate() {
        let of_app = key(app, "public");
        let limit = kept.note(&event(&of_app, &format!("cache-{nth}"), "{}"), at(1), 0);
        exceeded += usize::from(limit.is_some());
    }
    // All apps are looked at each time that the bound is exceeded.
    assert!((1..10 * APPS as usize / 4).contains(&exceeded), "{exceeded}");
    assert!(kept.kept.lock().bytes > bytes_max - bytes_max / 16, "it drops little more");
}
