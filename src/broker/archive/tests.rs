//! An archive is read as it was written, and refused if anything in it was changed.

use proptest::prelude::*;

use super::{
    super::{
        Payload,
        idempotency::KeyOwner,
        position::Epochs,
        publication::Publication,
        testing::{key, publication},
    },
    *,
};

const BYTES_MAX: usize = 1_000_000;

fn written(items: &[Item]) -> Vec<u8> {
    let mut writer = ArchiveWriter::begin(Vec::new(), 1_700_000_000_000).expect("memory");
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

fn read(bytes: &[u8]) -> Result<Vec<Item>, ArchiveError> {
    let mut reader = ArchiveReader::begin(bytes, BYTES_MAX)?;
    let mut items = Vec::new();
    while let Some(item) = reader.next_item()? {
        items.push(item);
    }
    Ok(items)
}

fn stream(app: i32, scope: &str) -> StreamItem {
    let key = key(app, scope);
    let head = StreamPosition { epoch: Epochs::new().give(&key), offset: 12 };
    let evicted = Evicted { forgotten: 3, all: 7, general: 2 };
    StreamItem { key, created_us: -1, used_ms: 1_700_000_000_001, head, evicted }
}

fn retained(destination: &str, payload: Vec<u8>) -> Retained {
    let publication = publication(&key(1, "public"), destination, "msg");
    let payload = Payload::Bytes(payload.into());
    Retained::new(&Publication { payload, ..publication }, 1_700_000_000_002)
}

fn idempotency_key(app: i32, raw: &str, owner: KeyOwner<'_>, skipped: Skipped) -> KeyItem {
    let key = super::IdempotencyKey::parse(raw, owner).expect("a key");
    let content = ContentDigest::of(&[publication(&self::key(app, "public"), "room", raw)]);
    let position = stream(app, "public").head;
    let positions = (0..raw.len() as u64).map(|offset| StreamPosition { offset, ..position });
    KeyItem {
        app: AppId(app),
        created_us: -1,
        key,
        content,
        accepted_ms: 1_700_000_000_000,
        positions: positions.collect(),
        skipped,
    }
}

fn some_items() -> Vec<Item> {
    let name = |name: &str| ChannelName::parse(name).expect("a name");
    let visitor = KeyOwner::Anonymous(b"a token");
    vec![
        Item::Key(idempotency_key(1, "k", KeyOwner::Application, Skipped::Nobody)),
        Item::Key(idempotency_key(1, "bulk", KeyOwner::Application, Skipped::Unknown)),
        Item::Key(idempotency_key(-5, "v", visitor, Skipped::Counted(0))),
        Item::Key(idempotency_key(-5, "w", visitor, Skipped::Counted(300))),
        Item::Stream(stream(1, "public")),
        Item::Channel { name: name("caf\u{e9}"), evicted: 7 },
        Item::Channel { name: name("room"), evicted: 0 },
        Item::Publication { offset: 8, retained: retained("room", vec![0, 255]) },
        Item::Publication { offset: 12, retained: retained("#general", Vec::new()) },
        Item::Stream(stream(-5, "private")),
    ]
}

#[test]
fn an_archive_is_read_as_it_was_written() {
    for items in [Vec::new(), some_items()] {
        let bytes = written(&items);
        assert_eq!(read(&bytes).expect("an archive"), items);
        let at_ms = 1_700_000_000_000;
        assert_eq!(read_preamble(&mut &bytes[..]).expect("one"), Preamble::Saved { at_ms });
    }
    let run = 1 << 100;
    let bytes = in_use(run);
    assert_eq!(read_preamble(&mut &bytes[..]).expect("one"), Preamble::InUse(run));
    assert!(matches!(read(&bytes), Err(ArchiveError::Damaged("it holds nothing"))));
}

#[test]
fn every_truncation_is_recognised() {
    let bytes = written(&some_items());
    for length in 0..bytes.len() {
        let refused = read(&bytes[..length]).expect_err("a truncated archive");
        assert!(matches!(refused, ArchiveError::Truncated), "{length}: {refused}");
    }
}

#[test]
fn every_changed_byte_is_recognised() {
    let bytes = written(&some_items());
    for at in 0..bytes.len() {
        for change in [1, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            let refused = read(&changed).expect_err("a damaged archive");
            let is_foreign = matches!(refused, ArchiveError::Foreign);
            assert_eq!(is_foreign, at < MAGIC.len(), "{at}: {refused}");
        }
    }
}

#[test]
fn a_faulty_archive_is_refused_with_its_fault() {
    let bytes = written(&some_items());
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    let longer = [&bytes[..], &[0]].concat();
    let large = written(&[
        Item::Stream(stream(1, "public")),
        Item::Publication { offset: 1, retained: retained("room", vec![0; BYTES_MAX]) },
    ]);
    let stray = written(&some_items()[5..]);
    let late = written(&[Item::Stream(stream(1, "public")), some_items()[0].clone()]);
    let mut misplaced = stream(1, "public");
    misplaced.head.epoch = stream(2, "public").head.epoch;
    // The magic is followed by 11 bytes: version, kind and time. In the first item, 13 bytes precede the key: kind,
    // app and creation time.
    for (bytes, expected) in [
        (b"SQLite format 3\0".to_vec(), "it is not a history file"),
        (
            with(MAGIC.len(), 3),
            "it has version 3 of the format, and this Herald reads up to version 2",
        ),
        (
            with(MAGIC.len(), 0),
            "it has version 0 of the format, and this Herald reads up to version 2",
        ),
        (with(MAGIC.len() + 11 + 13, 2), "it is damaged: the owner of a key"),
        (with(MAGIC.len() + 2, 7), "it is damaged: an unknown kind"),
        (with(bytes.len() - 1, !bytes[bytes.len() - 1]), "it is damaged: its checksum"),
        (longer, "it is damaged: something behind its end"),
        (large, "it is damaged: a publication that is larger than what may be retained"),
        (stray, "it is damaged: an item outside a stream"),
        (late, "it is damaged: a key behind a stream"),
        (written(&[Item::Stream(misplaced)]), "it is damaged: the epoch of another scope"),
    ] {
        assert_eq!(read(&bytes).expect_err("a refusal").to_string(), expected);
    }
}

#[test]
fn the_previous_version_is_read() {
    // Version 1 had no keys, so the items begin with the first stream.
    let items = some_items().split_off(4);
    let mut bytes = written(&items);
    bytes[MAGIC.len()] = 1;
    let end = bytes.len() - 4;
    let sum = crc32fast::hash(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&sum);
    assert_eq!(read(&bytes).expect("an archive"), items);
}

#[test]
fn a_length_that_lies_takes_no_memory() {
    let mut bytes = written(&[Item::Stream(stream(1, "public"))]);
    // A publication of 1 GiB takes the place of the end, which has 13 bytes.
    bytes.truncate(bytes.len() - 13);
    bytes.push(PUBLICATION);
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend((1_u32 << 30).to_le_bytes());
    let mut reader = ArchiveReader::begin(&bytes[..], usize::MAX).expect("a preamble");
    assert!(matches!(reader.next_item(), Ok(Some(Item::Stream(_)))));
    assert!(matches!(reader.next_item(), Err(ArchiveError::Truncated)));
    assert!(reader.bytes.capacity() < 1 << 16, "{}", reader.bytes.capacity());
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let number = prop_oneof![0..100_u64, any::<u64>()];
    let name = "[a-zA-Z\u{e9}:-]{1,60}";
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    let item = prop_oneof![
        (any::<i32>(), any::<i64>(), "[a-zA-Z0-9_-]{1,32}", [number.clone(), number.clone()])
            .prop_map(|(app, created_us, scope, [offset, evicted])| {
                let mut item = StreamItem { created_us, ..stream(app, &scope) };
                item.head.offset = offset;
                item.evicted.all = evicted;
                Item::Stream(item)
            }),
        (name, number.clone()).prop_map(|(name, evicted)| {
            Item::Channel { name: ChannelName::parse(&name).expect("a name"), evicted }
        }),
        (number, name, bytes).prop_map(|(offset, name, payload)| {
            Item::Publication { offset, retained: retained(&name, payload) }
        }),
    ];
    let key = ("[a-z]{1,8}", any::<i32>(), any::<u64>(), any::<u64>()).prop_map(
        |(raw, app, accepted_ms, skipped)| {
            let owner = match skipped % 2 {
                0 => KeyOwner::Application,
                _ => KeyOwner::Anonymous(b"a token"),
            };
            let skipped = Skipped::from_number(skipped % 5);
            Item::Key(KeyItem { accepted_ms, ..idempotency_key(app, &raw, owner, skipped) })
        },
    );
    let keys = proptest::collection::vec(key, 0..5);
    (keys, proptest::collection::vec(item, 0..20)).prop_map(|(mut keys, items)| {
        keys.push(Item::Stream(stream(1, "public")));
        keys.extend(items);
        keys
    })
}

proptest! {
    #[test]
    fn any_archive_is_read_as_it_was_written_or_refused(
        items in items(),
        change in (any::<proptest::sample::Index>(), 1..=u8::MAX),
        cut in any::<proptest::sample::Index>(),
    ) {
        let bytes = written(&items);
        prop_assert_eq!(&read(&bytes).expect("an archive"), &items);
        prop_assert!(read(&bytes[..cut.index(bytes.len())]).is_err());
        let mut changed = bytes;
        let at = change.0.index(changed.len());
        changed[at] ^= change.1;
        prop_assert!(read(&changed).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let preamble = [&MAGIC[..], &[2, 0, SAVED], &[0; 8]].concat();
        prop_assert!(read(&bytes).is_err());
        prop_assert!(read(&[&preamble[..], &bytes].concat()).is_err());
    }
}
