//! Eviction over the scopes of one app.

use crate::settings::HistorySettings;

use super::{
    super::{
        history::History,
        testing::{LAST_EVENTS, ROOMY, apps, key, publication, publish_in},
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
