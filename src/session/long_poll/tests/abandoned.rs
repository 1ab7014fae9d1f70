//! Frames with which a session has answered a fetch, and which have not reached the client.

use futures_util::FutureExt;

use super::*;
use crate::session::long_poll::{elsewhere::read_frames, unfetched::Unfetched};

fn texts_of(polled: Option<Vec<Frame>>) -> Polled {
    Polled::Frames(polled.expect("a session"))
}

#[actix_web::test]
async fn frames_that_are_put_back_come_first_at_the_next_fetch_however_many_they_are() {
    let polls = Polls::new(SessionLimits { outbox_frames_max: 3, ..limits() }, times(DEADLINE));
    let id = polls.open_and_fetch().await;
    assert_eq!(polls.post(id, &["late"]).await, Posted::Done);
    let texts = ["a", "b", "c", "d", "e", "f"];
    let frames_back = texts.iter().map(|&text| Frame::Text(text.into())).collect();
    polls.all.find(id).expect("the session").do_send(actor::PutBack(frames_back));
    let all = [&texts[..], &["late"]].concat();
    assert_eq!(polls.all.poll(id).await, frames(&all));
}

#[actix_web::test]
async fn frames_handed_over_at_the_last_moment_are_delivered_or_kept() {
    let polls = Polls::roomy();
    let session = polls.all.find(polls.open()).expect("the session");
    let (send, receive) = oneshot::channel();
    let mut fetch = Unfetched::new(session.clone().recipient(), receive);
    send.send(vec![Frame::Text("a".into())]).expect("somebody waits");
    assert_eq!(Polled::Frames(fetch.take_late()), frames(&["a"]), "before the end");
    let (send, receive) = oneshot::channel();
    let mut fetch = Unfetched::new(session.recipient(), receive);
    assert_eq!(fetch.take_late(), []);
    assert_eq!(
        send.send(vec![Frame::Text("a".into())]),
        Err(vec![Frame::Text("a".into())]),
        "after it"
    );
}

#[actix_web::test]
async fn frames_of_a_fetch_that_is_dropped_come_with_the_next_one() {
    let polls = Polls::roomy();
    let id = polls.open();
    let mut fetch = Box::pin(polls.all.poll(id));
    assert_eq!((&mut fetch).now_or_never(), None);
    assert_eq!(polls.post(id, &["a", "b"]).await, Posted::Done);
    // The session has answered. The fetch is dropped before it has seen that.
    drop(fetch);
    assert_eq!(polls.post(id, &["c"]).await, Posted::Done);
    assert_eq!(polls.all.poll(id).await, frames(&["a", "b", "c"]));
}

#[actix_web::test]
async fn a_recall_that_overtakes_the_answer_puts_its_frames_back() {
    let polls = Polls::roomy();
    let (id, number) = (polls.open(), Uuid::new_v4());
    let mut fetch = Box::pin(polls.all.fetched_by(id, number));
    assert_eq!((&mut fetch).now_or_never(), None);
    assert_eq!(polls.post(id, &["a", "b"]).await, Posted::Done);
    polls.all.recalled(id, number);
    assert_eq!(texts_of(read_frames(fetch.await)), frames(&[]));
    assert_eq!(polls.post(id, &["c"]).await, Posted::Done);
    assert_eq!(polls.all.poll(id).await, frames(&["a", "b", "c"]));
}

#[actix_web::test]
async fn a_fetch_that_overtakes_the_answer_to_an_earlier_one_gets_all_frames_in_order() {
    let polls = Polls::roomy();
    let id = polls.open();
    let mut first = Box::pin(polls.all.fetched_by(id, Uuid::new_v4()));
    assert_eq!((&mut first).now_or_never(), None);
    assert_eq!(polls.post(id, &["a", "b"]).await, Posted::Done);
    let mut second = Box::pin(polls.all.fetched_by(id, Uuid::new_v4()));
    assert_eq!((&mut second).now_or_never(), None);
    assert_eq!(polls.post(id, &["c"]).await, Posted::Done);
    let both = async { tokio::join!(second, first) };
    let (second, first) = timeout(DEADLINE, both).await.expect("answers in time");
    assert_eq!(texts_of(read_frames(first)), frames(&[]));
    assert_eq!(texts_of(read_frames(second)), frames(&["a", "b", "c"]));
}

#[actix_web::test]
async fn nothing_is_kept_of_a_recall_for_a_session_that_has_ended() {
    let polls = Polls::roomy();
    polls.all.recalled(Uuid::new_v4(), Uuid::new_v4());
    assert!(polls.all.passed.lock().is_empty());
    polls.all.recalled(polls.open(), Uuid::new_v4());
    assert!(!polls.all.passed.lock().is_empty(), "the fetch may still arrive");
}
