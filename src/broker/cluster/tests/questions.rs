//! Questions to all nodes.

use super::*;

#[actix_web::test]
async fn questions_are_answered_by_all_nodes_or_not_at_all() {
    let nodes = Nodes::start_with(|limits| {
        limits.wait_max = std::time::Duration::from_millis(300);
    })
    .await;
    let scope = key(1, "public");
    let room = channel(&scope, "room");
    let mut probes = nodes.listeners(&room).await;
    let topics = &nodes.brokers[0].topics;
    let survey =
        Survey { app: scope.app, scope: None, prefix: String::new(), after: None, places_max: 10 };
    assert_eq!(topics.subscribers(room.clone()).await, Ok(2));
    let occupied = topics.occupied(survey.clone()).await.expect("answers");
    assert_eq!(occupied.into_values().collect::<Vec<_>>(), [2]);
    let connections = topics.connections(scope.app, None, 10).await.expect("answers");
    let sessions: Vec<_> = connections.sessions.iter().map(|each| each.session).collect();
    assert_eq!(sessions, probes.each_ref().map(|probe| probe.session));
    let elsewhere = probes[1].session;
    assert_eq!(topics.end_connection(scope.app, elsewhere).await, Ok(true));
    assert_eq!(probes[1].next().await, "disconnect: App(AppId(1))");
    let joins = Disconnect::Place(room.clone());
    topics.disconnect(joins).await.expect("all nodes have heard");
    for probe in &mut probes {
        assert!(probe.next().await.starts_with("disconnect: Place"), "at each node");
    }
    // The record of the disconnect precedes that of the publication, and no node ends the joins a second time.
    publish(&nodes.brokers[0], publication(&scope, "room", "after")).await;
    for probe in &mut probes {
        assert_eq!(probe.next().await, "room after");
    }
    nodes.shared.mute(nodes.engines[1].node(), true);
    assert_eq!(topics.subscribers(room.clone()).await, Err(Unanswered));
    assert_eq!(topics.occupied(survey).await.err(), Some(Unanswered));
    let joins = Disconnect::App(scope.app);
    assert_eq!(topics.disconnect_counted(joins).await, Err(Unanswered));
}

#[actix_web::test]
async fn lists_are_complete_that_are_larger_than_one_answer() {
    const EACH: usize = 100;
    let nodes = Nodes::start().await;
    let scope = key(1, "public");
    // Each quote takes two bytes in JSON.
    let name = |session: usize, nth: usize| format!("{session:03}-{nth:03}{}", "\"".repeat(190));
    let (mut places, mut sessions) = (BTreeMap::new(), Vec::new());
    let all = (0..EACH).map(|session| (0, session, EACH)).chain([(1, 0, 1), (1, EACH, 1)]);
    for (node, session, count) in all {
        let broker = &nodes.brokers[node];
        let number = broker.topics.node().number(session as u64 + 1);
        let probe = broker.stuck_session(number, 2 * EACH).await;
        for nth in 0..count {
            let name = name(session, nth);
            broker.join(&probe, channel(&scope, &name)).await.expect("a place");
            *places.entry(name).or_insert(0) += 1;
        }
        sessions.push((probe.session, count));
    }
    let topics = &nodes.brokers[1].topics;
    for places_max in [EACH * EACH + 2, 3] {
        let (app, prefix) = (scope.app, String::new());
        let survey = Survey { app, scope: None, prefix, after: None, places_max };
        let found = topics.occupied(survey).await.expect("answers");
        let name = |channel: Option<ChannelName>| channel.expect("a channel").as_str().to_owned();
        let found = found.into_iter().map(|(rank, count)| (name(rank.channel), count));
        assert!(found.eq(places.clone().into_iter().take(places_max)), "{places_max} places");
    }
    for sessions_max in [EACH + 3, 3] {
        let found = topics.connections(scope.app, None, sessions_max).await.expect("answers");
        assert_eq!(found.total, EACH + 2);
        let found = found.sessions.iter().map(|each| (each.session, each.places.len()));
        let expected = sessions.iter().copied().take(sessions_max);
        assert!(found.eq(expected), "{sessions_max} sessions");
    }
}

#[actix_web::test]
async fn an_answer_that_is_too_large_fails_its_question_at_once() {
    let nodes = Nodes::start().await;
    let [asker, asked] = nodes.brokers.each_ref().map(|broker| &broker.topics);
    for (bytes, is_answered) in [(MESSAGE_BYTES_MAX - 1, true), (MESSAGE_BYTES_MAX, false)] {
        asked.on_question("large", move |_| async move { Some(vec![0_u8; bytes].into()) });
        let answer = asker.ask_node(asked.node(), "large", b"", 10 * DEADLINE);
        let answer = tokio::time::timeout(DEADLINE, answer).await.expect("an answer in time");
        assert_eq!(answer.is_ok_and(|answer| answer.len() == bytes), is_answered);
    }
}
