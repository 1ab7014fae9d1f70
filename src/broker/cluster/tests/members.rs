//! Members of all nodes in one picture.

use super::*;

/// Enters a presence channel under a key.
async fn enter(
    broker: &Broker,
    nth: u64,
    room: &Place,
    who: &str,
) -> (Probe, Result<(), SubscribeError>) {
    let probe = broker.session(broker.topics.node().number(nth)).await;
    let persona = Persona { key: who.to_owned().into(), meta: Meta::default() };
    let entered = broker.enter(&probe, room.clone(), persona).await;
    (probe, entered)
}

/// The members that the nodes list for a channel, as keys.
async fn listed(broker: &Broker, scope: &ScopeKey) -> String {
    let room = channel(scope, "room").channel.expect("a channel");
    shown(&broker.topics.members(scope, &room).await.expect("an answer"))
}

#[actix_web::test]
async fn members_of_all_nodes_are_in_one_picture() {
    let nodes = Nodes::start().await;
    let scope = key(1, "presence");
    let room = channel(&scope, "room");
    let [one, other] = &nodes.brokers;
    let (mut ada, entered) = enter(one, 1, &room, "ada").await;
    entered.expect("a place");
    assert_eq!([ada.next().await, ada.next().await], ["[]", "room +[ada={}] -[]"]);
    let (mut bob, entered) = enter(other, 1, &room, "bob").await;
    entered.expect("a place");
    assert_eq!([bob.next().await, bob.next().await], ["[ada={}]", "room +[bob={}] -[]"]);
    assert_eq!(ada.next().await, "room +[bob={}] -[]");
    for broker in &nodes.brokers {
        assert_eq!(listed(broker, &scope).await, "[ada={} bob={}]");
    }
    let custom = crate::broker::JsonText::of_text("busy");
    let channel = room.channel.clone().expect("a channel");
    other.topics.update(&scope, channel, bob.session, custom).await.expect("a tracker");
    for probe in [&mut ada, &mut bob] {
        assert_eq!(probe.next().await, "room +[bob=\"busy\"] -[bob={}]");
    }
    other.leave(&bob, room.clone()).await;
    assert_eq!(ada.next().await, "room +[] -[bob=\"busy\"]");
    one.leave(&ada, room.clone()).await;
    until("nobody is listed", async || listed(other, &scope).await == "[]").await;
}

#[actix_web::test]
async fn members_of_a_node_that_dies_leave_once_and_those_of_one_that_was_taken_for_dead_come_back()
{
    let nodes = Nodes::start().await;
    let scope = key(1, "presence");
    let room = channel(&scope, "room");
    let [one, other] = &nodes.brokers;
    let (mut ada, _) = enter(one, 1, &room, "ada").await;
    assert_eq!([ada.next().await, ada.next().await], ["[]", "room +[ada={}] -[]"]);
    let (mut bob, _) = enter(other, 1, &room, "bob").await;
    assert_eq!(ada.next().await, "room +[bob={}] -[]");
    assert_eq!([bob.next().await, bob.next().await], ["[ada={}]", "room +[bob={}] -[]"]);

    nodes.shared.lapse(nodes.engines[1].node());
    // It leaves and comes back; both may be told at once.
    let mut told = Vec::new();
    until("bob is back", async || {
        told.push(ada.next().await);
        told.last().is_some_and(|last| last.starts_with("room +[bob={}]"))
    })
    .await;
    assert!(told.len() <= 2, "{told:?}");
    until("both are listed", async || listed(one, &scope).await == "[ada={} bob={}]").await;

    nodes.shared.kill(nodes.engines[1].node());
    assert_eq!(ada.next().await, "room +[] -[bob={}]");
    until("bob is gone", async || listed(one, &scope).await == "[ada={}]").await;
    publish(one, publication(&scope, "room", "msg")).await;
    assert_eq!(ada.next().await, "room msg", "nobody leaves twice");
}

#[actix_web::test]
async fn the_limit_of_members_holds_for_all_nodes_together() {
    let nodes = Nodes::start().await;
    let scope = key(1, "presence");
    let room = channel(&scope, "room");
    let mut there = Vec::new();
    for nth in 0..4 {
        let broker = &nodes.brokers[nth % 2];
        let (probe, entered) = enter(broker, nth as u64, &room, &format!("m{nth}")).await;
        assert_eq!(entered, Ok(()), "{nth}");
        there.push(probe);
    }
    for broker in &nodes.brokers {
        let (_, entered) = enter(broker, 9, &room, "late").await;
        assert_eq!(entered, Err(SubscribeError::TooManyMembers));
    }
    nodes.brokers[0].leave(&there[0], room.clone()).await;
    until("there is room", async || {
        listed(&nodes.brokers[1], &scope).await.matches('=').count() == 3
    })
    .await;
    let (_, entered) = enter(&nodes.brokers[1], 10, &room, "next").await;
    assert_eq!(entered, Ok(()));
}

#[actix_web::test]
async fn nobody_enters_while_the_log_is_away_and_members_that_left_are_gone_when_it_is_back() {
    let nodes = Nodes::start_with(|limits| {
        limits.wait_max = std::time::Duration::from_millis(300);
    })
    .await;
    let scope = key(1, "presence");
    let room = channel(&scope, "room");
    let [one, other] = &nodes.brokers;
    let (ada, _) = enter(one, 1, &room, "ada").await;
    let (mut bob, _) = enter(other, 1, &room, "bob").await;
    while bob.next().await != "room +[bob={}] -[]" {}
    nodes.shared.stop();
    until("both notice", async || {
        nodes.brokers.iter().all(|b| b.topics.engine_state() != Some(EngineState::Up))
    })
    .await;
    let (_, entered) = enter(one, 2, &room, "eve").await;
    assert_eq!(entered, Err(SubscribeError::Unavailable));
    one.leave(&ada, room.clone()).await;
    nodes.shared.start();
    assert_eq!(bob.next().await, "room +[] -[ada={}]");
    until("bob is alone", async || {
        let room = room.channel.clone().expect("a channel");
        let members = other.topics.members(&scope, &room).await;
        members.is_ok_and(|members| shown(&members) == "[bob={}]")
    })
    .await;
}
