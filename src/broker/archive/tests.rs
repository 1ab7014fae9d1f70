//! Archives: read as they were written, and refused if anything was changed.

use proptest::prelude::*;

use super::{
    super::{
        Payload,
        position::Epochs,
        publication::Publication,
        testing::{key, publication},
    },
    *,
};

const BYTES_MAX: usize = 1_000_000;

fn written(items: &[Item]) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), 1_700_000_000_000).expect("memory");
    for item in items {
        let written = match item {
            Item::Stream(stream) => writer.stream(stream),
            Item::Channel { name, evicted } => writer.channel(name, *evicted),
            Item::Publication { offset, retained } => writer.publication(*offset, retained),
        };
        written.expect("memory");
    }
    writer.finish().expect("memory")
}

fn read(bytes: &[u8]) -> Result<Vec<Item>, ArchiveError> {
    let mut reader = Reader::begin(bytes, BYTES_MAX)?;
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

fn some_items() -> Vec<Item> {
    let name = |name: &str| ChannelName::parse(name).expect("a name");
    vec![
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
fn what_is_wrong_is_told() {
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
    let stray = written(&some_items()[1..]);
    let mut misplaced = stream(1, "public");
    misplaced.head.epoch = stream(2, "public").head.epoch;
    for (bytes, expected) in [
        (b"SQLite format 3\0".to_vec(), "it is not a history file"),
        (with(MAGIC.len(), 2), "it has version 2 of the format, and this Herald reads version 1"),
        (with(MAGIC.len() + 2, 7), "it is damaged: an unknown kind"),
        (with(bytes.len() - 1, 0), "it is damaged: its checksum"),
        (longer, "it is damaged: something behind its end"),
        (large, "it is damaged: a publication that is larger than what may be retained"),
        (stray, "it is damaged: an item outside a stream"),
        (written(&[Item::Stream(misplaced)]), "it is damaged: the epoch of another scope"),
    ] {
        assert_eq!(read(&bytes).expect_err("a refusal").to_string(), expected);
    }
}

#[test]
fn a_length_that_lies_takes_no_memory() {
    let mut bytes = written(&[Item::Stream(stream(1, "public"))]);
    bytes.truncate(bytes.len() - 13);
    bytes.push(PUBLICATION);
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend((1_u32 << 30).to_le_bytes());
    let mut reader = Reader::begin(&bytes[..], usize::MAX).expect("a preamble");
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
    proptest::collection::vec(item, 0..20).prop_map(|mut items| {
        items.insert(0, Item::Stream(stream(1, "public")));
        items
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
        let preamble = [&MAGIC[..], &[1, 0, SAVED], &[0; 8]].concat();
        prop_assert!(read(&bytes).is_err());
        prop_assert!(read(&[&preamble[..], &bytes].concat()).is_err());
    }
}
