//! Saving and loading: the directory that loads an archive answers as the one that saved it, within
//! its own bounds.

use std::time::Duration;

use crate::{
    app::{AppDirectory, AppId, Apps},
    settings::HistorySettings,
};

use super::{
    super::{
        archive::Item,
        archive::Skipped,
        backlog::Backlog,
        history::{Evicted, Gap},
        idempotency::{ContentDigest, IdempotencyKey, KeyOwner},
        ledger::RetentionLedger,
        numbering::Numbering,
        position::{Epochs, StreamPosition},
        publication::{JsonText, Payload, Publication},
        retained::Retained,
        subscriber::ScopeKey,
        testing::{LAST_EVENTS, ROOMY, apps, key, publication, publish_in},
        topic_name::ChannelName,
    },
    *,
};

const NOW_MS: u64 = 1_700_000_000_000;

fn directory(apps: &AppDirectory, limits: HistorySettings) -> Directory {
    let ledger = RetentionLedger::new(apps.clone(), limits, LAST_EVENTS);
    Directory::new(4, Numbering::own(), Backlog::new(1 << 20), ledger)
}

fn publish(
    directory: &Directory,
    key: &ScopeKey,
    destination: &str,
    now_ms: u64,
) -> StreamPosition {
    publish_in(directory, publication(key, destination, "msg"), now_ms)
}

fn saved(directory: &Directory) -> (Vec<u8>, Totals) {
    let mut bytes = Vec::new();
    let totals = save(directory, Vec::new(), &mut bytes, NOW_MS).expect("memory");
    (bytes, totals)
}

fn load(directory: &Directory, bytes: &[u8], now_ms: u64) -> Result<Totals, ArchiveError> {
    super::load(directory, bytes, now_ms).map(|loaded| loaded.totals)
}

fn missed(
    directory: &Directory,
    key: &ScopeKey,
    channel: Option<&str>,
    since: StreamPosition,
) -> Option<Result<Vec<(u64, Retained)>, Gap>> {
    let channel = channel.map(|channel| ChannelName::parse(channel).expect("a channel"));
    let missed =
        |(history, _): (History, u64)| history.after(channel.as_ref(), since, u64::MAX, usize::MAX);
    directory.with(key, |stream| missed(stream.copy(NOW_MS)))
}

/// Two apps with some scopes, channels with and without retained publications, and forgotten ones.
fn filled(apps: &AppDirectory) -> (Directory, Vec<StreamPosition>) {
    let limits = HistorySettings { publications: 3, channels_max: 8, ..ROOMY };
    let directory = directory(apps, limits);
    let mut positions = Vec::new();
    for (app, scope) in [(1, "public"), (1, "private"), (2, "public")] {
        let key = key(app, scope);
        for (nth, age_s) in (0..30).zip((0..600).rev().step_by(20)) {
            let place = ["a", "b", "#general", "c", "a", &format!("d{nth}")][nth % 6].to_owned();
            positions.push(publish(&directory, &key, &place, NOW_MS - age_s * 1_000));
        }
    }
    (directory, positions)
}

#[test]
fn a_loaded_archive_answers_every_question_as_before() {
    let apps = apps();
    let (before, positions) = filled(&apps);
    let (bytes, totals) = saved(&before);
    assert!(totals.streams == 3 && totals.publications > 10, "{totals:?}");
    let after = directory(&apps, HistorySettings { publications: 3, channels_max: 8, ..ROOMY });
    assert_eq!(load(&after, &bytes[..], NOW_MS).expect("an archive"), totals);
    assert_eq!(after.retained().bytes, before.retained().bytes);
    let mut answers = 0;
    for key in [key(1, "public"), key(1, "private"), key(2, "public")] {
        for since in &positions {
            for channel in
                [None, Some("a"), Some("b"), Some("c"), Some("d5"), Some("d29"), Some("x")]
            {
                let expected = missed(&before, &key, channel, *since);
                answers += usize::from(matches!(expected, Some(Ok(_))));
                assert_eq!(missed(&after, &key, channel, *since), expected, "{channel:?}");
            }
        }
    }
    assert!(answers > 50, "{answers}");
    // The numbering goes on.
    let (last, key) = (positions[29], key(1, "public"));
    let next = publish(&after, &key, "a", NOW_MS);
    assert_eq!(next, StreamPosition { offset: last.offset + 1, ..last });
    let missed = missed(&after, &key, Some("a"), last).expect("a stream").expect("all");
    assert_eq!(missed.into_iter().map(|(offset, _)| offset).collect::<Vec<_>>(), [next.offset]);
}

#[test]
fn streams_that_retain_nothing_are_saved() {
    let apps = apps();
    let (directory, key) = (directory(&apps, ROOMY), key(1, "public"));
    let last = publish(&directory, &key, "a", NOW_MS - 301_000);
    let (bytes, totals) = saved(&directory);
    assert_eq!((totals.streams, totals.publications), (1, 0));
    let after = self::directory(&apps, ROOMY);
    load(&after, &bytes[..], NOW_MS).expect("an archive");
    assert_eq!(missed(&after, &key, Some("a"), last), Some(Ok(Vec::new())));
    let before = StreamPosition { offset: 0, ..last };
    assert_eq!(missed(&after, &key, Some("a"), before), Some(Err(Gap::Expired)));
}

#[test]
fn keys_are_saved_with_the_answers_to_their_publishers() {
    let apps = apps();
    let (before, scope) = (directory(&apps, ROOMY), key(1, "public"));
    let position = publish(&before, &scope, "a", NOW_MS);
    let content = |event| ContentDigest::of(&[publication(&scope, "a", event)]);
    let remembered = |app, raw, skipped, age_s| RememberedKey {
        app: AppId(app),
        key: IdempotencyKey::parse(raw, KeyOwner::Application).expect("a key"),
        content: content(raw),
        outcome: Receipt::known(vec![position], skipped),
        age: Duration::from_secs(age_s),
    };
    let keys = vec![
        remembered(1, "first", Skipped::Nobody, 40),
        remembered(1, "second", Skipped::Counted(3), 20),
        remembered(2, "third", Skipped::Unknown, 0),
        // There is no such app.
        remembered(9, "fourth", Skipped::Nobody, 0),
    ];
    let mut bytes = Vec::new();
    let totals = save(&before, keys, &mut bytes, NOW_MS).expect("memory");
    assert_eq!((totals.streams, totals.keys), (1, 3));
    let told = |apps: &AppDirectory| {
        let loaded = super::load(&directory(apps, ROOMY), &bytes[..], NOW_MS + 5_000);
        let told = |key: RememberedKey<Receipt>| {
            assert_eq!(key.outcome.positions(), [position]);
            (key.app.0, key.key, key.content, key.outcome.known_skipped(), key.age.as_secs())
        };
        loaded.expect("an archive").keys.into_iter().map(told).collect::<Vec<_>>()
    };
    let expected = [
        (1, "first", Skipped::Nobody, 45),
        (1, "second", Skipped::Counted(3), 25),
        (2, "third", Skipped::Unknown, 5),
    ];
    let expected = expected.map(|(app, raw, skipped, age_s)| {
        let RememberedKey { key, content, .. } = remembered(app, raw, skipped, 0);
        (app, key, content, skipped, age_s)
    });
    assert_eq!(told(&apps), expected);
    // Another app has the id of the second one.
    let mut second = (**apps.load().by_id(AppId(2)).expect("an app")).clone();
    second.inserted_at += Duration::from_micros(1);
    let first = (**apps.load().by_id(AppId(1)).expect("an app")).clone();
    let changed = AppDirectory::default();
    changed.replace([first, second].into_iter().collect::<Apps>());
    assert_eq!(told(&changed), expected[..2]);
}

#[test]
fn publications_that_expired_meanwhile_are_reported_as_missing() {
    let apps = apps();
    let (before, key) = (directory(&apps, ROOMY), key(1, "public"));
    let first = publish(&before, &key, "a", NOW_MS - 200_000);
    let second = publish(&before, &key, "a", NOW_MS);
    let (bytes, _) = saved(&before);
    let after = directory(&apps, ROOMY);
    let totals = load(&after, &bytes[..], NOW_MS + 100_000).expect("an archive");
    assert_eq!(totals.publications, 1);
    let none = StreamPosition { offset: 0, ..first };
    assert_eq!(missed(&after, &key, Some("a"), none), Some(Err(Gap::Expired)));
    let missed = missed(&after, &key, Some("a"), first).expect("a stream").expect("the second");
    assert_eq!(missed[0].0, second.offset);
    let refused = load(&directory(&apps, ROOMY), &bytes[..], NOW_MS + 3_600_001);
    assert!(matches!(refused, Err(ArchiveError::Old)));
}

#[test]
fn apps_that_are_gone_or_others_or_retain_nothing_are_left_out() {
    let apps = apps();
    let (before, _) = filled(&apps);
    let (bytes, _) = saved(&before);
    let changed = |change: &dyn Fn(&mut crate::app::App)| {
        let app = |id| {
            let mut app = (**apps.load().by_id(AppId(id)).expect("an app")).clone();
            if id == 1 {
                change(&mut app);
            }
            app
        };
        let changed = AppDirectory::default();
        changed.replace([1, 2].map(app).into_iter().collect::<Apps>());
        changed
    };
    for (case, apps, streams) in [
        ("as before", apps.clone(), 3),
        ("gone", changed(&|app| app.id = AppId(3)), 1),
        ("another app with its id", changed(&|app| app.inserted_at += Duration::from_micros(1)), 1),
        ("inactive", changed(&|app| app.settings.active = false), 1),
        (
            "without history",
            changed(&|app| app.settings.history_publications = crate::app::settings::UpTo::new(0)),
            1,
        ),
    ] {
        let after = directory(&apps, ROOMY);
        let totals = load(&after, &bytes[..], NOW_MS).expect("an archive");
        assert_eq!(totals.streams, streams, "{case}");
        assert_eq!(after.with(&key(1, "public"), |_| ()).is_some(), streams == 3, "{case}");
    }
    let after = directory(&apps, HistorySettings { publications: 0, publications_max: 0, ..ROOMY });
    assert_eq!(load(&after, &bytes[..], NOW_MS).expect("an archive"), Totals::default());
}

#[test]
fn smaller_bounds_hold_and_what_is_missing_is_known() {
    let apps = apps();
    let before = directory(&apps, ROOMY);
    let (small, large) = (key(1, "public"), key(2, "public"));
    let mut positions = Vec::new();
    for nth in 0..80 {
        let channel = format!("c{}", nth % 40);
        positions.push(publish(&before, &large, &channel, NOW_MS));
        publish(&before, &small, &channel, NOW_MS);
    }
    let (bytes, _) = saved(&before);
    for limits in [
        HistorySettings { app_bytes_max: 6_000, ..ROOMY },
        HistorySettings { app_bytes_max: 9_000, bytes_max: 9_000, ..ROOMY },
        HistorySettings { publications: 1, ..ROOMY },
        HistorySettings { channels_max: 7, ..ROOMY },
        HistorySettings { channels_max: 1, publications: 1, app_bytes_max: 1_024, ..ROOMY },
    ] {
        let after = directory(&apps, limits.clone());
        load(&after, &bytes[..], NOW_MS).expect("an archive");
        assert!(after.retained().bytes <= limits.bytes_max.min(2 * limits.app_bytes_max));
        let mut complete = 0;
        for since in &positions {
            for channel in (0..40).map(|nth| format!("c{nth}")) {
                let whole = missed(&before, &large, Some(&channel), *since).expect("a stream");
                let found = missed(&after, &large, Some(&channel), *since).expect("a stream");
                if let Ok(found) = found {
                    assert_eq!(Ok(found), whole, "{limits:?} {channel}");
                    complete += 1;
                }
            }
        }
        assert!((40..80 * 40).contains(&complete), "{limits:?} {complete}");
    }
    let ledger = RetentionLedger::new(apps.clone(), ROOMY, LAST_EVENTS);
    let one_scope = Directory::new(1, Numbering::own(), Backlog::new(1), ledger);
    let (before, _) = filled(&apps);
    let (bytes, _) = saved(&before);
    assert_eq!(load(&one_scope, &bytes[..], NOW_MS).expect("an archive").streams, 2);
}

#[test]
fn a_publication_that_is_larger_than_what_an_app_may_now_retain_is_evicted_and_nothing_else_is_lost()
 {
    let apps = apps();
    let before = directory(&apps, ROOMY);
    let (of_one, of_other) = (key(1, "public"), key(2, "public"));
    let start = publish(&before, &of_one, "a", NOW_MS);
    let payload = JsonText::of_text(&"x".repeat(10_000));
    let large = Publication { payload: Payload::Json(payload), ..publication(&of_one, "a", "msg") };
    let large = publish_in(&before, large, NOW_MS);
    let other = publish(&before, &of_other, "a", NOW_MS);
    publish(&before, &of_other, "a", NOW_MS);
    let (bytes, _) = saved(&before);
    let after = directory(&apps, HistorySettings { app_bytes_max: 5_000, ..ROOMY });
    assert_eq!(load(&after, &bytes[..], NOW_MS).expect("an archive").streams, 2);
    let missed = |key, since| missed(&after, key, Some("a"), since).expect("a stream");
    assert_eq!(missed(&of_one, start), Err(Gap::Expired));
    assert_eq!(missed(&of_one, large), Ok(Vec::new()));
    assert_eq!(missed(&of_other, other).expect("what is small").len(), 1);
}

/// An archive of these items, whose checksum is right.
fn archive(items: &[Item]) -> Vec<u8> {
    let mut writer = ArchiveWriter::begin(Vec::new(), NOW_MS).expect("memory");
    for item in items {
        let written = match item {
            Item::Key(key) => writer.key(key),
            Item::Stream(stream) => writer.stream(stream),
            Item::Channel { name, evicted } => writer.channel(name, *evicted),
            Item::Publication { offset, retained } => writer.publication(*offset, retained),
        };
        written.expect("memory");
    }
    writer.finish().expect("memory")
}

#[test]
fn an_archive_that_contradicts_itself_is_refused_as_a_whole() {
    let apps = apps();
    let key = key(1, "public");
    let stream = |offset: u64, [forgotten, all, general]: [u64; 3]| {
        let head = StreamPosition { epoch: Epochs::new().give(&key), offset };
        let evicted = Evicted { forgotten, all, general };
        Item::Stream(StreamItem { key: key.clone(), created_us: 0, used_ms: 0, head, evicted })
    };
    let channel =
        |evicted| Item::Channel { name: ChannelName::parse("a").expect("a channel"), evicted };
    let publication = |offset, place| {
        let retained = Retained::new(&publication(&key, place, "msg"), NOW_MS);
        Item::Publication { offset, retained }
    };
    let good =
        || [stream(9, [1, 3, 2]), channel(3), publication(5, "a"), publication(9, "#general")];
    let totals = load(&directory(&apps, ROOMY), &archive(&good())[..], NOW_MS).expect("an archive");
    assert_eq!(totals.publications, 2);
    for (case, bad) in [
        ("more evicted than published", vec![stream(9, [1, 10, 2])]),
        ("more forgotten than evicted", vec![stream(9, [4, 3, 2])]),
        ("more evicted of #general than of all", vec![stream(9, [1, 3, 4])]),
        ("nearly the last offset", vec![stream(u64::MAX, [1, 3, 2])]),
        ("more evicted of a channel than of all", vec![stream(9, [1, 3, 2]), channel(4)]),
        ("a channel twice", vec![stream(9, [1, 3, 2]), channel(3), channel(3)]),
        ("the offset zero", vec![stream(9, [0, 0, 0]), publication(0, "#general")]),
        ("behind the head", vec![stream(9, [0, 0, 0]), publication(10, "#general")]),
        ("evicted", vec![stream(9, [1, 3, 2]), publication(2, "#general")]),
        ("evicted of a channel", vec![stream(9, [1, 3, 2]), channel(3), publication(3, "a")]),
        (
            "out of order",
            vec![stream(9, [0, 0, 0]), publication(4, "#general"), publication(4, "#general")],
        ),
        ("the scope twice", vec![stream(9, [1, 3, 2])]),
    ] {
        let after = directory(&apps, ROOMY);
        let items: Vec<_> = match case {
            "the scope twice" => good().into_iter().chain(bad).collect(),
            _ => bad,
        };
        let refused = load(&after, &archive(&items)[..], NOW_MS).expect_err(case);
        let expected = "it is damaged: its offsets contradict each other";
        assert_eq!(refused.to_string(), expected, "{case}");
        assert_eq!(after.retained().bytes, 0, "{case}");
        assert!(after.with(&key, |_| ()).is_none(), "{case}");
    }
    // The first of two streams is whole, the second one is not.
    let (bytes, _) = saved(&filled(&apps).0);
    let after = directory(&apps, ROOMY);
    load(&after, &bytes[..bytes.len() - 1], NOW_MS).expect_err("a truncated archive");
    assert_eq!((after.retained().bytes, after.retaining().len()), (0, 0));
}
