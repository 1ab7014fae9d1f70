//! Eviction over the scopes of one app.

use crate::{
    app::{App, AppDirectory, Slug, testing::app},
    settings::HistorySettings,
};

use super::{
    super::{
        history::History,
        testing::{Broker, LAST_EVENTS, ROOMY, apps, key, publication, publish_in},
        topic_name::ChannelName,
    },
    *,
};

const NOW_MS: u64 = 1_700_000_000_000;

/// The bytes that an app may retain. An app that exceeds them gives up a 16th of them, and the private scope of this
/// test retains less than that.
const APP_BYTES_MAX: usize = 64 * 1024;

#[test]
fn a_scope_that_has_lost_its_publications_to_a_busy_one_still_knows_its_idle_channels() {
    let limits = HistorySettings { app_bytes_max: APP_BYTES_MAX, publications: 1_000, ..ROOMY };
    let ledger = RetentionLedger::new(apps(), limits, LAST_EVENTS);
    let directory = Directory::new(4, Numbering::own(), Backlog::new(1 << 20), ledger);
    let (calm, busy) = (key(1, "private"), key(1, "public"));
    let at_first = publish_in(&directory, publication(&calm, "x", "msg"), NOW_MS);
    for nth in 1..5 {
        publish_in(&directory, publication(&calm, "x", "msg"), NOW_MS + nth);
    }
    let read = |key, read: &dyn Fn(&History) -> bool| {
        directory.with(key, |stream| stream.look(read)).expect("a stream")
    };
    let mut published = 0;
    while !read(&calm, &|history| history.is_empty()) {
        published += 1;
        assert!(published < 10_000, "nothing was evicted");
        publish_in(&directory, publication(&busy, "x", "msg"), NOW_MS + 10 + published);
    }
    assert!(!read(&busy, &|history| history.is_empty()));
    let [idle, evicted] = ["y", "x"].map(|name| ChannelName::parse(name).expect("a channel"));
    let is_whole = |channel: &ChannelName| {
        read(&calm, &|history| history.is_whole_after(Some(channel), at_first.offset))
    };
    assert!(is_whole(&idle), "nothing was ever published there");
    assert!(!is_whole(&evicted));
}

#[actix_web::test]
async fn of_the_scopes_without_subscribers_the_one_that_was_used_last_stays() {
    let Broker { worker, fanout, .. } = Broker::start();
    let [first, second, third] = ["a", "b", "c"].map(|scope| key(1, scope));
    let publish = |directory: &Directory, key: &ScopeKey, after_ms| {
        publish_in(directory, publication(key, "x", "msg"), NOW_MS + after_ms);
    };
    type Use<'a> = &'a dyn Fn(&Directory);
    let uses: [(&str, Use<'_>); 2] = [
        ("published in", &|directory| {
            for (after_ms, key) in [(1, &first), (2, &second), (3, &first)] {
                publish(directory, key, after_ms);
            }
        }),
        ("left", &|directory| {
            for (after_ms, key) in [(1, &first), (2, &second)] {
                let fanout = FanoutAddr::uncounted(worker, fanout.clone());
                let opened = directory.open(key, fanout, NOW_MS + after_ms);
                opened.expect("room for two scopes");
            }
            for (after_ms, key) in [(3, &second), (4, &first)] {
                directory.close(key, worker, NOW_MS + after_ms);
            }
        }),
    ];
    for (case, uses) in uses {
        let ledger = RetentionLedger::new(apps(), ROOMY, LAST_EVENTS);
        let directory = Directory::new(2, Numbering::own(), Backlog::new(1 << 20), ledger);
        uses(&directory);
        publish(&directory, &third, 5);
        let are_there = [&first, &second, &third].map(|key| directory.find(key).is_some());
        assert_eq!(are_there, [true, false, true], "{case}");
    }
}

#[test]
fn a_publication_that_exceeds_the_servers_bound_makes_room_for_further_ones_of_all_apps() {
    const APPS: i32 = 200;
    const BYTES_MAX: usize = 512 * 1024;
    let limits = HistorySettings { bytes_max: BYTES_MAX, app_bytes_max: BYTES_MAX, ..ROOMY };
    let of_id = |id: i32| App {
        id: AppId(id),
        slug: Slug::parse(&format!("app-{id}")).expect("a slug"),
        ..app(&format!("key-{id}"), &format!("secret-{id}"))
    };
    let all = AppDirectory::default();
    all.replace((1..=APPS).map(of_id).collect());
    let ledger = RetentionLedger::new(all, limits, LAST_EVENTS);
    let directory = Directory::new(4, Numbering::own(), Backlog::new(1 << 20), ledger.clone());
    let (mut full_since, mut evictions) = (None, 0);
    for (nth, id) in (1..=APPS).cycle().take(40 * APPS as usize).enumerate() {
        let before = ledger.bytes();
        publish_in(&directory, publication(&key(id, "public"), "x", "msg"), NOW_MS + nth as u64);
        if ledger.bytes() <= before {
            full_since.get_or_insert(nth);
            evictions += 1;
        }
    }
    let published = 40 * APPS as usize - full_since.expect("the bound is reached");
    // All apps are looked at each time.
    assert!(evictions * 8 < published, "{evictions} times for {published} publications");
    assert!(ledger.bytes() > BYTES_MAX - BYTES_MAX / 16, "little more than needed is evicted");
}
