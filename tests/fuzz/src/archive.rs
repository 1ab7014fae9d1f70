//! The file in which a stop saves what is retained: a whole archive, or the items of one.

use std::time::Duration;

use herald::{
    app::{App, AppDirectory, AppId, Slug, settings::AppSettings},
    broker::{
        Topics,
        archive::{ArchiveReader, ArchiveWriter, Item, MAGIC},
        last_events::LastEventLimits,
        topics::TopicLimits,
    },
    metrics::Metrics,
    settings::{HistoryFile, HistorySettings},
};

/// No publication may be longer, in bytes.
const PUBLICATION_BYTES_MAX: usize = 1 << 16;

/// The bytes before the items of an archive that was saved at the beginning of 1970.
fn preamble() -> Vec<u8> {
    [&MAGIC[..], &[2, 0, 1], &[0; 8]].concat()
}

/// The bytes are an archive, or the items of one, without preamble and end.
pub fn check(data: &[u8]) {
    read(data);
    let mut whole = [&preamble(), data].concat();
    let items = count(&whole);
    whole.push(4);
    whole.extend(items.to_le_bytes());
    whole.extend(crc32fast::hash(&whole).to_le_bytes());
    read(&whole);
    take_up(&whole);
}

/// Items that the reader accepts are written again as the same bytes.
fn read(bytes: &[u8]) {
    let Ok(mut reader) = ArchiveReader::begin(bytes, PUBLICATION_BYTES_MAX) else { return };
    let mut writer = ArchiveWriter::begin(Vec::new(), reader.at_ms()).expect("memory");
    while let Ok(item) = reader.next_item() {
        let written = match item {
            Some(Item::Key(key)) => writer.key(&key),
            Some(Item::Stream(stream)) => writer.stream(&stream),
            Some(Item::Channel { name, evicted }) => writer.channel(&name, evicted),
            Some(Item::Publication { offset, retained }) => writer.publication(offset, &retained),
            None => {
                let written = writer.finish().expect("memory");
                if bytes[MAGIC.len()] == written[MAGIC.len()] {
                    assert_eq!(written, bytes, "another spelling was read");
                }
                return;
            }
        };
        written.expect("memory");
    }
}

/// How many items can be read.
fn count(bytes: &[u8]) -> u64 {
    let mut reader = ArchiveReader::begin(bytes, PUBLICATION_BYTES_MAX).expect("a preamble");
    let mut items = 0;
    while let Ok(Some(_)) = reader.next_item() {
        items += 1;
    }
    items
}

/// A server that loads an archive stays within its bounds, and the next server loads the same from the
/// archive that this one writes.
fn take_up(bytes: &[u8]) {
    let first = topics();
    let Ok(totals) = first.load(bytes) else {
        assert_eq!(first.retained_bytes(), 0, "half of it was taken up");
        return;
    };
    assert!(first.retained_bytes() <= HISTORY.bytes_max, "more than the bound");
    let mut saved = Vec::new();
    assert_eq!(first.save(&mut saved).expect("memory"), totals);
    let second = topics();
    assert_eq!(second.load(&saved[..]).expect("an archive"), totals);
}

const HISTORY: HistorySettings = HistorySettings {
    publications: 4,
    publications_max: 4,
    // Nothing expires, however the clock runs.
    age: Duration::MAX,
    age_max: Duration::MAX,
    app_bytes_max: 2_048,
    bytes_max: 2_048,
    channels_max: 3,
    replay_max: 4,
    replay_bytes_max: 1_024,
    file: HistoryFile::Off,
};

/// A broker with the app 1.
fn topics() -> Topics {
    let app = App {
        id: AppId(1),
        name: "App 1".to_owned(),
        slug: Slug::parse("app-1").expect("a slug"),
        key: "key".to_owned(),
        secret: "secret".into(),
        last_use: Default::default(),
        previous: None,
        digests: Default::default(),
        settings: AppSettings::default(),
        inserted_at: chrono::DateTime::UNIX_EPOCH,
        updated_at: chrono::DateTime::UNIX_EPOCH,
    };
    let apps = AppDirectory::default();
    apps.replace([app].into_iter().collect());
    let limits = TopicLimits {
        publications_in_flight_max: 1,
        scopes_per_app_max: 2,
        outboxes_bytes_max: 1,
        presence_members_max: 1,
        presence_interval: Duration::ZERO,
        online_interval: Duration::ZERO,
        idempotency_keys_max: 1,
        wait_max: Duration::ZERO,
        history: HISTORY,
        last_events: LastEventLimits { ttl: Duration::ZERO, app_bytes_max: 0, bytes_max: 0 },
    };
    Topics::new(limits, apps, Metrics::new(0))
}
