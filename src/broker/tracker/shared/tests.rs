//! Shared members while the log takes some changes and not others.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    super::super::{
        presence::{Meta, Persona},
        subscriber::Subscription,
        testing::{
            Broker, FORMAT, Probe, SUBSCRIPTION, channel, key, shown, until, until_up, whole,
        },
    },
    super::WhoIsThere,
    faulty_engine::{FaultyEngine, HeldAnswer, MemberChanges},
    *,
};
use crate::engine::{Engine, memory::MemoryCluster};

#[test]
fn members_of_one_node_are_listed_in_the_order_of_their_sessions() {
    let names = [1, 255, 256, 1 << 48].map(|session| member_name(SessionId(session)));
    assert!(names.is_sorted());
}

/// A node whose engine fails as the test wants, and another one that sees the outcome.
struct FaultyNode {
    shared: MemoryCluster,
    engine: Arc<FaultyEngine>,
    broker: Broker,
    other: Broker,
}

fn room() -> Place {
    channel(&key(1, "presence"), "room")
}

fn persona(name: &str) -> Persona {
    Persona { key: name.to_owned().into(), meta: Meta::default() }
}

impl FaultyNode {
    async fn start() -> Self {
        let shared = MemoryCluster::new(4);
        let (engine, other) = (Arc::new(FaultyEngine::new(shared.node())), shared.node());
        let broker = Broker::of_node(engine.clone(), |_| {});
        let other_broker = Broker::of_node(other.clone(), |_| {});
        until_up(&*engine).await;
        until_up(&*other).await;
        Self { shared, engine, broker, other: other_broker }
    }

    /// A session that keeps the scope of the room open on the node, so that its tracker stays.
    async fn keep_open(&self) -> Probe {
        let probe = self.session(99).await;
        self.broker.join(&probe, whole(&room().key)).await.expect("a place");
        probe
    }

    async fn session(&self, nth: u64) -> Probe {
        self.broker.session(self.engine.node().number(nth)).await
    }

    /// Enters the room on this node.
    async fn enter(&self, nth: u64, name: &str) -> Probe {
        let probe = self.session(nth).await;
        self.broker.enter(&probe, room(), persona(name)).await.expect("a place");
        probe
    }

    /// Enters the room on the other node.
    async fn enter_other(&self, nth: u64, name: &str) -> Probe {
        let probe = self.other.session(self.other.topics.node().number(nth)).await;
        self.other.enter(&probe, room(), persona(name)).await.expect("a place");
        probe
    }

    /// Has a session enter the room, without waiting for the answer.
    async fn begin_entering(&self, probe: &Probe, name: &str) {
        let (place, topic, persona) = (room(), "room".into(), Some(persona(name)));
        let (format, user, wanted) = (FORMAT, None, None);
        let subscription = Subscription { place, topic, format, persona, user, wanted };
        self.broker.begin_attach(SUBSCRIPTION, probe, subscription).await;
    }

    /// Waits until the log has these members of the room.
    async fn until_listed(&self, expected: &str) {
        let channel = room().channel.expect("a channel");
        until(&format!("the members are {expected}"), async || {
            let members = self.other.topics.members(&room().key, &channel).await;
            shown(&members.expect("an answer")) == expected
        })
        .await;
    }

    /// Lets a member leave while its removal is refused.
    async fn leave_refused(&self, probe: &Probe) {
        self.engine.refuse(true);
        let before = self.engine.changes().refused;
        self.broker.leave(probe, room()).await;
        until("the removal is refused", async || self.engine.changes().refused > before).await;
    }

    async fn until_reading(&self) {
        until("the members are being read", async || self.engine.holds_all()).await;
    }

    /// Lets ada enter, and leave while removals are refused. The channel then has no members on this node, so bob,
    /// who enters next, reads the list; the answer is held back. Returns the sessions of ada and bob, and the
    /// answer.
    async fn read_after_a_refused_removal(&self) -> ([Probe; 2], oneshot::Sender<HeldAnswer>) {
        let ada = self.enter(1, "ada").await;
        self.until_listed("[ada={}]").await;
        self.leave_refused(&ada).await;
        let bob = self.session(2).await;
        let reading = self.engine.hold_reading();
        self.begin_entering(&bob, "bob").await;
        self.until_reading().await;
        ([ada, bob], reading)
    }
}

#[actix_web::test]
async fn a_removal_that_was_refused_is_written_also_after_a_reading_that_failed() {
    let node = FaultyNode::start().await;
    let _open = node.keep_open().await;
    let ([_ada, bob], reading) = node.read_after_a_refused_removal().await;
    reading.send(HeldAnswer::Fails).expect("a reading");
    assert_eq!(bob.joined().await.err(), Some(SubscribeError::Unavailable));
    node.engine.refuse(false);
    node.until_listed("[]").await;
    node.broker.enter(&bob, room(), persona("bob")).await.expect("a place");
    node.until_listed("[bob={}]").await;
}

#[actix_web::test]
async fn a_join_that_failed_with_its_reading_leaves_nothing_in_the_log() {
    let node = FaultyNode::start().await;
    let _open = node.keep_open().await;
    let ada = node.session(1).await;
    let reading = node.engine.hold_reading();
    node.begin_entering(&ada, "ada").await;
    node.until_reading().await;
    reading.send(HeldAnswer::Fails).expect("a reading");
    assert_eq!(ada.joined().await.err(), Some(SubscribeError::Unavailable));
    node.enter(2, "bob").await;
    node.until_listed("[bob={}]").await;
    let MemberChanges { puts, removals, .. } = node.engine.changes();
    assert_eq!((puts, removals), (1, 0), "nothing was written for ada");
}

#[actix_web::test]
async fn a_member_in_the_log_that_comes_and_goes_during_a_reading_is_removed() {
    let node = FaultyNode::start().await;
    let _open = node.keep_open().await;
    let ([ada, bob], reading) = node.read_after_a_refused_removal().await;
    node.begin_entering(&ada, "ada").await;
    node.broker.leave(&ada, room()).await;
    reading.send(HeldAnswer::Members).expect("a reading");
    node.engine.refuse(false);
    bob.joined().await.expect("a place");
    node.until_listed("[bob={}]").await;
}

#[actix_web::test]
async fn members_of_an_interrupted_order_are_removed_although_the_next_reading_fails() {
    let node = FaultyNode::start().await;
    let _open = node.keep_open().await;
    let ada = node.enter(1, "ada").await;
    node.until_listed("[ada={}]").await;
    let tracker = node.broker.topics.tracker(&room().key).expect("a tracker");
    tracker.send(OrderInterrupted).await.expect("a tracker");
    let bob = node.session(2).await;
    let reading = node.engine.hold_reading();
    node.begin_entering(&bob, "bob").await;
    node.until_reading().await;
    reading.send(HeldAnswer::Fails).expect("a reading");
    assert_eq!(bob.joined().await.err(), Some(SubscribeError::Unavailable));
    // Now the session of ada learns that its join has ended.
    node.broker.leave(&ada, room()).await;
    node.until_listed("[]").await;
}

#[actix_web::test]
async fn the_answer_to_an_earlier_reading_is_not_taken_for_that_of_a_later_one() {
    let node = FaultyNode::start().await;
    let mut open = node.keep_open().await;
    let mut ada = node.session(1).await;
    let first = node.engine.hold_reading();
    node.begin_entering(&ada, "ada").await;
    node.until_reading().await;
    let _bob = node.enter_other(1, "bob").await;
    // This node has read the join of bob when it has read a later publication.
    node.other.publish(&room().key, "room", "barrier").await;
    assert_eq!(open.next().await, "* room:barrier");
    node.broker.leave(&ada, room()).await;
    let second = node.engine.hold_reading();
    node.begin_entering(&ada, "ada").await;
    node.until_reading().await;
    for reading in [first, second] {
        reading.send(HeldAnswer::Members).expect("a reading");
    }
    assert_eq!(ada.next().await, "[bob={}]");
}

#[actix_web::test]
async fn a_member_that_an_earlier_tracker_removes_is_written_again() {
    let node = FaultyNode::start().await;
    let mut bob = node.enter_other(1, "bob").await;
    let mut ada = node.enter(1, "ada").await;
    node.until_listed("[ada={} bob={}]").await;
    // The last session of the scope on this node leaves, and with it the stream.
    node.leave_refused(&ada).await;
    assert!(node.broker.head(&room().key).is_none());
    node.engine.refuse(false);
    node.broker.enter(&ada, room(), persona("ada")).await.expect("a place");
    until("the first tracker has removed ada", async || node.engine.changes().removals == 1).await;
    node.until_listed("[ada={} bob={}]").await;
    node.other.publish(&room().key, "room", "end").await;
    for probe in [&mut ada, &mut bob] {
        while probe.next().await != "room end" {}
    }
    node.until_listed("[ada={} bob={}]").await;
    let MemberChanges { puts, removals, .. } = node.engine.changes();
    assert_eq!((puts, removals), (3, 1), "once by each join, and once again");
}

#[actix_web::test]
async fn a_member_whose_place_was_taken_while_its_node_was_taken_for_dead_is_told() {
    let node = FaultyNode::start().await;
    let mut ada = node.enter(1, "ada").await;
    node.engine.refuse(true);
    node.shared.lapse(node.engine.node());
    let mut others = Vec::new();
    for nth in 0..4 {
        others.push(node.enter_other(nth, &format!("m{nth}")).await);
    }
    let refused = node.engine.changes().refused;
    until("ada is written again", async || node.engine.changes().refused > refused).await;
    node.engine.refuse(false);
    while ada.next().await != "interrupted: room" {}
    node.broker.leave(&ada, room()).await;
    let again = node.broker.enter(&ada, room(), persona("ada")).await;
    assert_eq!(again, Err(SubscribeError::TooManyMembers));
}

#[actix_web::test]
async fn a_member_that_is_put_again_has_another_reference() {
    let node = FaultyNode::start().await;
    let _ada = node.enter(1, "ada").await;
    let reference = async || {
        let channel = room().channel.expect("a channel");
        let members = node.other.topics.members(&room().key, &channel).await;
        let members = members.expect("an answer");
        members.iter().flat_map(|(_, of_key)| of_key).map(|member| member.reference.clone()).next()
    };
    let before = reference().await;
    assert!(before.is_some());
    node.shared.lapse(node.engine.node());
    // Clients drop the meta with the reference that has left.
    let is_another = |now: Option<_>| now.is_some() && now != before;
    until("ada is back with another reference", async || is_another(reference().await)).await;
}

/// Sets the custom data of a member of the node.
async fn say(node: &FaultyNode, probe: &Probe, custom: &str) {
    let channel = room().channel.expect("a channel");
    let custom = JsonText::of_text(custom);
    let updated = node.broker.topics.update(&room().key, channel, probe.session, custom).await;
    updated.expect("a tracker");
}

#[actix_web::test]
async fn a_member_that_was_updated_while_its_lease_ran_out_leaves_with_the_next_one() {
    let node = FaultyNode::start().await;
    let mut bob = node.enter_other(1, "bob").await;
    let mut ada = node.enter(2, "ada").await;
    node.until_listed("[ada={} bob={}]").await;
    let update = node.engine.hold_change();
    say(&node, &ada, "busy").await;
    until("the update is being appended", async || node.engine.holds_all()).await;
    node.shared.lapse(node.engine.node());
    // The tracker of this node knows of the next lease when the node has read a later publication.
    node.other.publish(&room().key, "room", "barrier").await;
    while ada.next().await != "room barrier" {}
    let tracker = node.broker.topics.tracker(&room().key).expect("a tracker");
    let channel = room().channel.expect("a channel");
    tracker.send(WhoIsThere(channel)).await.expect("a tracker");
    update.send(()).expect("an update");
    until("ada is written again", async || node.engine.changes().puts == 3).await;
    while !bob.next().await.starts_with("room +[ada=\"busy\"]") {}
    node.shared.kill(node.engine.node());
    while !bob.next().await.starts_with("room +[] -[ada") {}
}

#[actix_web::test]
async fn a_member_that_is_put_once_more_after_it_has_left_is_removed() {
    let node = FaultyNode::start().await;
    let _open = node.keep_open().await;
    let ada = node.enter(1, "ada").await;
    node.broker.leave(&ada, room()).await;
    node.until_listed("[]").await;
    node.engine.repeat_first_put().await;
    node.until_listed("[]").await;
}

#[actix_web::test]
async fn a_member_whose_earlier_state_is_put_once_more_is_written_again() {
    let node = FaultyNode::start().await;
    let ada = node.enter(1, "ada").await;
    say(&node, &ada, "busy").await;
    node.until_listed("[ada=\"busy\"]").await;
    node.engine.repeat_first_put().await;
    node.until_listed("[ada=\"busy\"]").await;
    let MemberChanges { puts, removals, .. } = node.engine.changes();
    assert_eq!((puts, removals), (3, 0));
}
