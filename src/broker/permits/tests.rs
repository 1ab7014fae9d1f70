//! Permits alone.

use std::iter;

use futures_util::FutureExt;

use super::super::testing::DEADLINE;
use super::*;

const LOUD: AppId = AppId(1);
const QUIET: AppId = AppId(2);
const THIRD: AppId = AppId(3);

/// Takes single permits for an app until it has to wait.
fn take_all(permits: &Permits, app: AppId) -> Vec<Permit> {
    iter::from_fn(|| permits.take_at_once(app)).take(1_000).collect()
}

/// The number of permits that each app holds.
fn held(permits: &Permits) -> Vec<(AppId, usize)> {
    let state = permits.0.state.lock();
    let mut held: Vec<_> = state.apps.iter().map(|(app, share)| (*app, share.held)).collect();
    held.sort();
    held
}

#[test]
fn one_busy_app_holds_half_of_all_permits_and_two_hold_a_third_each() {
    let permits = Permits::new(6);
    let mut loud = take_all(&permits, LOUD);
    assert_eq!(loud.len(), 6);
    let mut other = take_all(&permits, QUIET);
    assert_eq!(other.len(), 3, "as many as stay free");
    // The first app takes no permit again before it holds fewer than stay free.
    for _ in 0..2 {
        loud.pop();
        assert!(permits.take_at_once(LOUD).is_none());
        other.extend(permits.take_at_once(QUIET));
    }
    assert_eq!(held(&permits), [(LOUD, 4), (QUIET, 4)]);
    assert!(permits.take_at_once(QUIET).is_none());
    assert!(permits.take_at_once(THIRD).is_some(), "a third app finds something free");
    drop((loud, other));
    assert!(!permits.is_any_held());
    assert_eq!(held(&permits), [], "an app that holds nothing takes no memory");
}

#[test]
fn all_apps_together_hold_twice_as_many_as_one_may() {
    let permits = Permits::new(2);
    let held: Vec<_> = (0..10).filter_map(|app| permits.take_at_once(AppId(app))).collect();
    assert_eq!(held.len(), 4);
}

#[tokio::test]
async fn requests_of_one_app_are_answered_in_their_order() {
    let permits = Permits::new(2);
    let loud = permits.take(LOUD, 2).await.expect("as many as it may hold");
    let mut first = Box::pin(permits.take(LOUD, 2));
    let mut second = Box::pin(permits.take(LOUD, 1));
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    let quiet = permits.take(QUIET, 2).now_or_never().flatten().expect("nobody is in its way");
    drop(loud);
    let first = first.now_or_never().flatten().expect("the first request");
    assert!((&mut second).now_or_never().is_none(), "it is behind the first");
    drop((quiet, first));
    assert!(second.now_or_never().flatten().is_some());
    assert_eq!(held(&permits), []);
}

#[tokio::test]
async fn a_large_request_of_an_app_that_holds_nothing_is_not_overtaken_for_ever() {
    let permits = Permits::new(4);
    let mut busy: Vec<_> =
        [LOUD, QUIET].into_iter().flat_map(|app| take_all(&permits, app)).collect();
    assert_eq!(held(&permits), [(LOUD, 4), (QUIET, 2)]);
    let mut large = Box::pin(permits.take(THIRD, 4));
    assert!((&mut large).now_or_never().is_none());
    assert!(permits.take_at_once(THIRD).is_none(), "a later request of the same app");
    // The others take whatever they may have as soon as it is free, but only behind it.
    for _ in 0..2 {
        assert!((&mut large).now_or_never().is_none());
        drop(busy.remove(0));
        busy.extend(permits.take_at_once(LOUD));
        busy.extend(permits.take_at_once(QUIET));
    }
    assert_eq!(busy.len(), 4);
    assert!(large.now_or_never().flatten().is_some());
}

#[tokio::test]
async fn requests_that_wait_behind_a_large_one_of_an_app_that_holds_nothing_do_not_overtake_it() {
    let permits = Permits::new(6);
    let mut busy: Vec<_> =
        [LOUD, QUIET].into_iter().flat_map(|app| take_all(&permits, app)).collect();
    assert_eq!(held(&permits), [(LOUD, 6), (QUIET, 3)]);
    let mut large = Box::pin(permits.take(THIRD, 6));
    assert!((&mut large).now_or_never().is_none());
    let mut small = [LOUD, QUIET].map(|app| Box::pin(permits.take(app, 1)));
    for _ in 0..3 {
        for request in &mut small {
            assert!(request.now_or_never().is_none());
        }
        assert!((&mut large).now_or_never().is_none());
        drop(busy.remove(0));
    }
    let large = large.now_or_never().flatten().expect("all that are free");
    drop((large, busy));
    for request in small {
        assert!(request.now_or_never().flatten().is_some());
    }
}

#[tokio::test]
async fn apps_that_wait_are_answered_by_turns() {
    let permits = Permits::new(4);
    let [one, other] =
        [3, 4].map(|app| permits.take(AppId(app), 4).now_or_never().flatten().expect("all free"));
    let mut requests: Vec<_> =
        [LOUD, LOUD, QUIET, QUIET].map(|app| Box::pin(permits.take(app, 1))).into();
    let mut answered = || -> Vec<_> {
        requests.iter_mut().map(|request| request.now_or_never().flatten()).collect()
    };
    assert!(answered().iter().all(Option::is_none));
    drop(one);
    let first: Vec<_> = answered();
    let are_answered: Vec<_> = first.iter().map(Option::is_some).collect();
    assert_eq!(are_answered, [true, false, true, false]);
    drop(other);
}

#[tokio::test]
async fn a_request_that_is_given_up_lets_those_behind_it_go_on() {
    let permits = Permits::new(2);
    let held_by_loud = permits.take_at_once(LOUD).expect("a permit");
    let mut large = Box::pin(permits.take(LOUD, 2));
    let mut small = Box::pin(permits.take(LOUD, 1));
    assert!((&mut large).now_or_never().is_none());
    assert!((&mut small).now_or_never().is_none());
    drop(large);
    let small = small.now_or_never().flatten().expect("a permit");
    // Given up between the answer and its receipt: the permit is free again.
    let mut late = Box::pin(permits.take(LOUD, 1));
    assert!((&mut late).now_or_never().is_none());
    drop(small);
    drop(late);
    assert_eq!(held(&permits), [(LOUD, 1)]);
    drop(held_by_loud);
    assert_eq!(held(&permits), []);
}

#[tokio::test]
async fn more_than_an_app_may_hold_are_never_given_and_are_in_nobodys_way() {
    let permits = Permits::new(2);
    let mut too_many = Box::pin(permits.take(LOUD, 3));
    assert!((&mut too_many).now_or_never().is_none());
    assert!(permits.take_at_once(LOUD).is_some() && permits.take_at_once(QUIET).is_some());
    assert!(too_many.now_or_never().is_none());
}

#[tokio::test]
async fn the_end_waits_for_all_work_under_way_and_for_earlier_callers() {
    let permits = Permits::new(1);
    let under_way = permits.take_at_once(LOUD).expect("a permit");
    let mut waits = Box::pin(permits.take(LOUD, 1));
    assert!((&mut waits).now_or_never().is_none());
    let mut end = Box::pin(permits.finish(DEADLINE));
    assert!((&mut end).now_or_never().is_none());
    assert!(permits.take(QUIET, 1).await.is_none(), "nobody else begins");
    assert!(permits.take_at_once(QUIET).is_none());
    drop(under_way);
    let waited = waits.await.expect("its turn");
    assert!((&mut end).now_or_never().is_none(), "this is under way, too");
    drop(waited);
    end.await;
}

#[tokio::test]
async fn the_end_refuses_waiting_callers_when_its_time_is_up() {
    let permits = Permits::new(1);
    let under_way = permits.take_at_once(LOUD).expect("a permit");
    let mut waits = Box::pin(permits.take(LOUD, 1));
    assert!((&mut waits).now_or_never().is_none());
    permits.finish(Duration::ZERO).await;
    assert!(waits.await.is_none());
    drop(under_way);
    assert!(permits.take(LOUD, 1).await.is_none());
}

#[tokio::test]
async fn while_nothing_is_free_the_requests_of_other_apps_are_not_looked_at() {
    const APPS: i32 = 2_000;
    let permits = Permits::new(1);
    let held_by: Vec<_> = [LOUD, QUIET].map(|app| permits.take_at_once(app)).into();
    let mut waits: Vec<_> = (10..)
        .take(APPS as usize)
        .map(|app| {
            let mut wait = Box::pin(permits.take(AppId(app), 1));
            assert!((&mut wait).now_or_never().is_none());
            wait
        })
        .collect();
    let looked_at = || permits.0.state.lock().looked_at;
    assert_eq!(looked_at(), 0, "none looks at those that came before");
    waits.truncate(APPS as usize / 2);
    assert_eq!(looked_at(), APPS as usize / 2, "each that gives up looks at its own app");
    assert_eq!(permits.0.state.lock().apps.len(), 2 + waits.len(), "and takes no memory");
    drop(held_by);
    let answered: Vec<_> = waits.iter_mut().filter_map(|wait| wait.now_or_never()).collect();
    assert_eq!(answered.len(), 2, "the first two");
}
