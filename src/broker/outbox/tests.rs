//! Tests of a single outbox, without a fan-out and without a session.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::Wake,
};

use bytes::Bytes;

use super::*;
use crate::{
    app::AppId,
    broker::subscriber::{ChangeFrame, FrameKind},
};

const ONE: SubscriptionId = SubscriptionId(1);
const TWO: SubscriptionId = SubscriptionId(2);

#[derive(Default)]
struct WakeCount(AtomicUsize);

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn outbox(frames: usize, bytes: usize) -> Arc<Outbox> {
    Outbox::new(SessionId(1), Load { frames, bytes })
}

fn joined(members: &str) -> Joined {
    Joined { members: Some(members.into()), ..Joined::default() }
}

fn frame(text: &str) -> Frame {
    Frame::Text(text.into())
}

/// A frame with a head of its own and a body that other frames may share.
fn split(head: &str, body: &Bytes) -> Frame {
    let (kind, head) = (FrameKind::Text, Bytes::copy_from_slice(head.as_bytes()));
    Frame::Split(Arc::new(Split { kind, head, body: body.clone() }))
}

/// Takes all waiting items, and describes them in words.
fn all(outbox: &Outbox) -> Vec<String> {
    all_of(outbox, usize::MAX)
}

/// Takes at most this number of waiting items, and describes them in words.
fn all_of(outbox: &Outbox, max: usize) -> Vec<String> {
    std::iter::from_fn(|| outbox.take())
        .take(max)
        .map(|arrival| match arrival {
            ToSession::Frame(Frame::Text(text), _) => text.to_string(),
            ToSession::Frame(Frame::Split(split), _) => {
                String::from_utf8_lossy(&[&split.head[..], &split.body].concat()).into_owned()
            }
            ToSession::News(News::Joined(SubscriptionId(id), Ok(joined))) => {
                format!("joined {id}: {}", joined.members.unwrap_or_default())
            }
            other => format!("{other:?}"),
        })
        .collect()
}

#[test]
fn an_outbox_holds_its_maximum_and_one_more_frame_ends_it_behind_all_that_waits() {
    for (case, outbox, excess) in
        [("frames", outbox(2, 100), Excess::Frames), ("bytes", outbox(100, 2), Excess::Bytes)]
    {
        assert!(outbox.deliver(&frame("a"), ONE, None), "{case}");
        outbox.answer(ONE, Ok(joined("b")));
        assert_eq!((outbox.load(), outbox.ended()), (Load { frames: 2, bytes: 2 }, None));
        assert!(!outbox.deliver(&frame("c"), ONE, None), "{case}");
        let ending = Ending::SlowConsumer(excess);
        assert_eq!(outbox.ended(), Some(ending), "{case}");
        outbox.end(Ending::Idle);
        assert!(!outbox.deliver(&frame("d"), ONE, None), "{case}: an ended session hears no more");
        let end = format!("News(End({ending:?}))");
        assert_eq!(all(&outbox), ["a", "joined 1: b", &end], "{case}");
    }
}

#[test]
fn taken_frames_make_room_and_frames_that_the_session_keeps_count() {
    let outbox = outbox(1, 100);
    for n in 0..3 {
        assert!(outbox.deliver(&frame("abc"), ONE, None), "{n}");
        assert_eq!(all(&outbox), ["abc"]);
    }
    outbox.keeps(Load { frames: 3, bytes: 9 });
    assert!(outbox.deliver(&frame("abc"), ONE, None));
    assert_eq!(outbox.load(), Load { frames: 4, bytes: 12 });
}

#[test]
fn a_payload_that_frames_share_counts_once_while_any_of_them_waits() {
    let outbox = outbox(8, 30);
    let [one, other] = ["1234567890", "abcdefghij"].map(|body| Bytes::from_static(body.as_bytes()));
    let load = || (outbox.load().frames, outbox.load().bytes);
    let takes = || all_of(&outbox, 1);
    for (head, body, expected) in
        [("a", &one, (1, 11)), ("b", &one, (2, 12)), ("c", &other, (3, 23)), ("d", &one, (4, 24))]
    {
        assert!(outbox.deliver(&split(head, body), ONE, None), "{head}");
        assert_eq!(load(), expected, "{head}");
    }
    assert!(outbox.deliver(&split("e", &other), TWO, None));
    for (expected, left) in [("a1234567890", (4, 24)), ("b1234567890", (3, 23))] {
        assert_eq!((takes(), load()), (vec![expected.to_owned()], left));
    }
    outbox.leave(ONE);
    assert_eq!(load(), (1, 11), "frames of the other subscription still count");
    let third = Bytes::from_static(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ");
    assert!(!outbox.deliver(&split("", &third), TWO, None), "the body exceeds the limit");
    assert_eq!(outbox.ended(), Some(Ending::SlowConsumer(Excess::Bytes)));
    assert_eq!(all(&outbox)[0], "eabcdefghij");
    assert_eq!(load(), (0, 0));
}

#[test]
fn frames_are_taken_up_to_the_next_news() {
    let outbox = outbox(100, 100);
    let take = |max: usize| {
        let mut taken = String::new();
        let next = outbox.take_frames(Some(Waker::noop()), |frame, _| {
            let Frame::Text(text) = frame else { return false };
            taken.push_str(&text);
            taken.len() < max
        });
        (taken, next)
    };
    assert_eq!(take(9), (String::new(), NextItem::Nothing));
    for text in ["a", "b", "c"] {
        outbox.deliver(&frame(text), ONE, None);
    }
    outbox.tell(News::AppChanged(AppId(1)));
    outbox.deliver(&frame("d"), ONE, None);
    assert!(outbox.take_news().is_none(), "a frame comes first");
    assert_eq!(take(2), ("ab".to_owned(), NextItem::Frame));
    assert_eq!(take(9), ("c".to_owned(), NextItem::News));
    assert_eq!(take(9), (String::new(), NextItem::News));
    assert!(matches!(outbox.take_news(), Some(News::AppChanged(AppId(1)))));
    assert!(outbox.take_news().is_none(), "a frame comes next");
    assert_eq!(take(9), ("d".to_owned(), NextItem::Nothing));
}

#[test]
fn a_replay_comes_before_all_that_waits_and_takes_no_room_from_it() {
    let replayed = || vec![frame("r1"), frame("r2"), frame("r3")];
    let outbox = outbox(2, 100);
    outbox.deliver(&frame("a"), TWO, None);
    outbox.tell(News::AppChanged(AppId(1)));
    outbox.replay(ONE, replayed());
    assert_eq!(outbox.load(), Load { frames: 5, bytes: 7 });
    assert!(outbox.take_news().is_none(), "the replay comes first");
    assert_eq!(all_of(&outbox, 4), ["r1", "r2", "r3", "a"]);
    assert!(outbox.take_news().is_some());
    assert_eq!(outbox.ended(), None, "three frames and two items exceed the limit of two");

    outbox.replay(ONE, replayed());
    outbox.deliver(&frame("b"), TWO, None);
    outbox.leave(TWO);
    assert_eq!(all_of(&outbox, 1), ["r1"], "another subscription was left");
    outbox.leave(ONE);
    assert_eq!(all(&outbox), [""; 0], "its own was left");
}

#[test]
fn the_frames_of_an_announcement_count_as_one_with_all_their_bytes() {
    let change = |text: &str, except: &[u64]| ChangeFrame {
        frame: frame(text),
        except: except.iter().copied().map(SessionId).collect(),
    };
    let own = [1].as_slice();
    let frames = [("a", own), ("bb", &[]), ("ccc", &[2]), ("d", &[3, 1]), ("eeee", &[])];
    let frames = Arc::new(ChangeFrames::new(
        frames.into_iter().map(|(text, except)| change(text, except)).collect(),
    ));
    let pending = || PendingChanges::new(&frames, SessionId(1)).expect("some");
    let outbox = outbox(2, 18);
    assert!(outbox.deliver_changes(pending(), ONE, || ()));
    assert!(outbox.deliver_changes(pending(), TWO, || ()));
    assert_eq!((outbox.load(), outbox.ended()), (Load { frames: 2, bytes: 18 }, None));
    assert_eq!(all_of(&outbox, 1), ["bb"]);
    assert_eq!(outbox.load(), Load { frames: 2, bytes: 16 });
    assert_eq!(all_of(&outbox, 2), ["ccc", "eeee"]);
    assert_eq!(outbox.load(), Load { frames: 1, bytes: 9 });
    assert_eq!(all_of(&outbox, 1), ["bb"]);
    outbox.leave(TWO);
    assert_eq!((all(&outbox), outbox.load()), (vec![], Load::default()));

    assert!(outbox.deliver_changes(pending(), ONE, || ()));
    assert!(outbox.deliver_changes(pending(), ONE, || ()));
    assert!(!outbox.deliver_changes(pending(), ONE, || ()));
    assert_eq!(outbox.ended(), Some(Ending::SlowConsumer(Excess::Frames)));
    let only_own = Arc::new(ChangeFrames::new(vec![change("a", own)]));
    assert!(PendingChanges::new(&only_own, SessionId(1)).is_none());
}

#[test]
fn a_waiting_session_is_woken_once_for_all_frames_until_it_polls() {
    let (outbox, wakes) = (outbox(3, 100), Arc::new(WakeCount::default()));
    let waker = Waker::from(wakes.clone());
    let woken = || wakes.0.swap(0, SeqCst);
    let take = || outbox.take_frames(Some(&waker), |_, _| true);
    assert_eq!((take(), woken()), (NextItem::Nothing, 0));
    for _ in 0..3 {
        outbox.deliver(&frame("x"), ONE, None);
    }
    assert_eq!(woken(), 1);
    outbox.deliver(&frame("one too many"), ONE, None);
    assert_eq!(woken(), 1, "a session that is stuck in a write is woken for its end");
    assert_eq!(take(), NextItem::News);
    assert!(outbox.take_news().is_some());
    assert_eq!((take(), woken()), (NextItem::Nothing, 0));
}

#[test]
fn a_wake_up_without_a_frame_is_told_apart() {
    let (outbox, wakes) = (outbox(3, 100), Arc::new(WakeCount::default()));
    let waker = Waker::from(wakes.clone());
    let woken = || wakes.0.swap(0, SeqCst);
    let take = || outbox.take_frames(Some(&waker), |_, _| true);
    outbox.wake_session();
    assert_eq!((take(), woken()), (NextItem::News, 0), "it was woken before it polled");
    assert_eq!(take(), NextItem::Nothing);
    Waker::from(outbox.clone()).wake();
    outbox.deliver(&frame("x"), ONE, None);
    assert_eq!((take(), woken()), (NextItem::News, 2), "the frame is taken first");
    assert_eq!(take(), NextItem::Nothing);
    outbox.close();
    outbox.wake_session();
    assert_eq!((take(), woken()), (NextItem::Closed, 1), "it is woken even when closed");
}

#[test]
fn the_answer_to_a_join_has_its_place_among_the_frames() {
    let outbox = outbox(5, 100);
    outbox.deliver(&frame("earlier"), ONE, None);
    outbox.answer(ONE, Ok(joined("m")));
    outbox.deliver(&frame("later"), ONE, None);
    outbox.deliver(&frame("other"), TWO, None);
    outbox.answer(TWO, Err(SubscribeError::TooManyScopes));
    assert_eq!(outbox.load(), Load { frames: 5, bytes: 18 });
    let refused = "News(Joined(SubscriptionId(2), Err(TooManyScopes)))";
    assert_eq!(all(&outbox), ["earlier", "joined 1: m", "later", "other", refused]);
}

#[test]
fn a_subscription_that_was_left_hears_nothing_whatever_was_on_its_way() {
    let outbox = outbox(4, 100);
    outbox.deliver(&frame("a"), ONE, None);
    outbox.deliver(&frame("b"), TWO, None);
    outbox.answer(ONE, Ok(joined("c")));
    outbox.deliver(&frame("d"), ONE, None);
    outbox.leave(ONE);
    assert_eq!(outbox.load(), Load { frames: 2, bytes: 2 });
    assert!(outbox.deliver(&frame("e"), ONE, None), "a dropped frame does not end the session");
    assert!(outbox.deliver(&frame("f"), TWO, None));
    assert_eq!(all(&outbox), ["b", "joined 1: c", "f"], "the session still waits for the answer");
    outbox.detached(ONE);
    assert!(outbox.state.lock().aside.is_none(), "no more frames of it can arrive");
}

#[test]
fn a_closed_outbox_accepts_nothing_and_keeps_only_its_ending() {
    let outbox = outbox(4, 100);
    outbox.deliver(&frame("a"), ONE, None);
    outbox.end(Ending::Idle);
    outbox.close();
    assert!(!outbox.deliver(&frame("b"), ONE, None));
    outbox.tell(News::AppChanged(AppId(1)));
    assert_eq!(all(&outbox), [""; 0]);
    assert_eq!(outbox.load(), Load::default());
    assert_eq!(outbox.ended(), Some(Ending::Idle));
}

#[test]
fn a_delivery_touches_few_cache_lines() {
    const LINE_BYTES: usize = 64;
    assert!(size_of::<OutboxEntry>() <= LINE_BYTES);
    // An `Arc` has two counters in addition to its value.
    assert!(2 * size_of::<usize>() + size_of::<Outbox>() <= 2 * LINE_BYTES);
}

#[test]
fn a_burst_leaves_no_room_behind() {
    let outbox = outbox(1_000, 1_000);
    for _ in 0..1_000 {
        outbox.deliver(&frame("x"), ONE, None);
    }
    assert_eq!(all(&outbox).len(), 1_000);
    outbox.deliver(&frame("x"), ONE, None);
    assert!(outbox.state.lock().queue.capacity() <= SLOTS_KEPT);
}
