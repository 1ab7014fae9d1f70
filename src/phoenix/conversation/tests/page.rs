//! The table of refusals in `docs/protocol.md` lists exactly the refusals that clients receive.

use std::collections::BTreeSet;

use super::*;
use crate::{
    app::token::TokenError,
    metrics::{closed::Closed, labels::JoinOutcome},
    strict_json::NotStrict,
};

const PAGE: &str = include_str!("../../../../docs/protocol.md");

const METAS: [MetaFault; 3] = [MetaFault::TooLarge, MetaFault::TooDeep, MetaFault::NotStrict];

/// The first cells of the table under this heading, without the code marks.
fn responses(heading: &str) -> BTreeSet<String> {
    let (_, table) = PAGE.split_once(heading).expect("the table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| `"));
    let cell = |row: &str| {
        row.split(" | ").next().map(|cell| cell.trim_matches(['|', ' ', '`']).to_owned())
    };
    rows.filter_map(cell).collect()
}

/// Every refusal, once for each of its faults. The match fails to compile when a refusal is added.
fn join_refusals() -> Vec<JoinRefusal> {
    use JoinRefusal as R;
    let tokens = [
        TokenError::TooLong,
        TokenError::Malformed,
        TokenError::Unsupported,
        TokenError::Forged,
        TokenError::NotShared,
        TokenError::NotInSeconds,
        TokenError::Expired,
        TokenError::NotYetValid,
        TokenError::InvalidCsrf,
    ];
    let all = JoinOutcome::ALL.iter().flat_map(|outcome| match outcome {
        JoinOutcome::Ok => Vec::new(),
        JoinOutcome::UnmatchedTopic => vec![R::UnmatchedTopic],
        JoinOutcome::UnknownApp => vec![R::UnknownApp],
        JoinOutcome::InactiveApp => vec![R::InactiveApp],
        JoinOutcome::OriginNotAllowed => vec![R::OriginNotAllowed],
        JoinOutcome::NoToken => vec![R::NoToken],
        JoinOutcome::NotPermitted => vec![R::NotPermitted],
        JoinOutcome::BadToken => tokens.map(R::Token).to_vec(),
        JoinOutcome::TooManyChannels => vec![R::TooManyChannels],
        JoinOutcome::TooManyScopes => vec![R::TooManyScopes],
        JoinOutcome::Anonymous => vec![R::Anonymous],
        JoinOutcome::BadPresence => METAS.map(R::Meta).to_vec(),
        JoinOutcome::TooManyMembers => vec![R::TooManyMembers],
        JoinOutcome::TooManyJoins => vec![R::TooManyJoins],
        JoinOutcome::TooManySessions => vec![R::TooManySessions],
        JoinOutcome::AppChanged => vec![R::AppChanged],
        JoinOutcome::Disconnected => vec![R::Disconnected],
        JoinOutcome::Unavailable => vec![R::Unavailable],
    });
    all.collect()
}

/// Every refusal of a push that a client can receive; text that is not JSON is never a message.
fn push_refusals() -> Vec<PushRefusal> {
    use PushRefusal as R;
    let next = |refusal: &R| match refusal {
        R::NotPermitted(_) => Some(R::InvalidEvent),
        R::InvalidEvent => Some(R::TooLarge),
        R::TooLarge => Some(R::TooMany),
        R::TooMany => Some(R::Payload(PayloadError::NotAnObject)),
        R::Payload(PayloadError::NotJson | PayloadError::NotAnObject) => {
            Some(R::Payload(NotStrict::TooDeep.into()))
        }
        R::Payload(PayloadError::NotStrict(fault)) => Some(match fault {
            NotStrict::TooDeep => R::Payload(NotStrict::LoneSurrogate.into()),
            NotStrict::LoneSurrogate => R::Payload(NotStrict::NumberTooLarge.into()),
            NotStrict::NumberTooLarge => R::Payload(NotStrict::RepeatedKey.into()),
            NotStrict::RepeatedKey => R::NoCustom,
        }),
        R::NoCustom => Some(R::Meta(MetaFault::TooLarge)),
        R::Meta(MetaFault::TooLarge) => Some(R::Meta(MetaFault::TooDeep)),
        R::Meta(MetaFault::TooDeep) => Some(R::Meta(MetaFault::NotStrict)),
        R::Meta(MetaFault::NotStrict) => None,
    };
    std::iter::successors(Some(R::NotPermitted(None)), next).collect()
}

#[test]
fn the_page_lists_every_answer_to_a_join_that_is_refused_and_no_other() {
    let told = join_refusals().into_iter().map(JoinRefusal::response);
    assert_eq!(responses("| response to a join |"), told.collect());
}

#[test]
fn the_page_lists_every_answer_to_a_push_that_is_refused_and_no_other() {
    let mut told: BTreeSet<_> = push_refusals().iter().map(PushRefusal::response).collect();
    // A push that the broker did not accept is refused like a join in the same case.
    told.insert(JoinRefusal::Unavailable.response());
    assert_eq!(responses("| response to a push |"), told);
}
