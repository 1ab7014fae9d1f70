//! Eviction over the scopes of one app.

use crate::settings::HistorySettings;

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
