//! The client's own publications: no answer to a later message overtakes them, and no leave drops them (guarantee
//! 2 in section 7 of the protocol document).

use std::{mem, time::Instant};

use crate::broker::{fanout::Confirm, position::StreamPosition, subscriber::ScopeKey};

use super::{Carrier, Driver, Effect, HeldConversation, run};

/// The client's own publications that it may not have been sent yet.
#[derive(Default)]
pub(super) struct Unconfirmed {
    /// The newest position of each scope.
    newest: Vec<(ScopeKey, StreamPosition)>,
    /// The effects that wait until the fan-out has handed out the publications.
    waiting: Vec<Effect>,
}

impl<C: HeldConversation> Driver<C> {
    /// Notes that the client has published, and is sent this publication as well.
    pub(super) fn note_published(&mut self, key: ScopeKey, position: StreamPosition) {
        let newest = &mut self.unconfirmed.get_or_insert_default().newest;
        match newest.iter_mut().find(|(of, _)| *of == key) {
            Some((_, newest)) => *newest = position,
            None => newest.push((key, position)),
        }
    }

    /// Carries out the leaves that wait for the client's own publications. The conversation does not know the left
    /// topics any more, so it could not end them when they are disconnected or no longer permitted.
    pub(super) fn leave_at_once(&mut self) {
        let Some(unconfirmed) = &mut self.unconfirmed else { return };
        let is_leave = |effect: &mut Effect| matches!(effect, Effect::Unsubscribe(..));
        let leaves: Vec<_> = unconfirmed.waiting.extract_if(.., is_leave).collect();
        for leave in leaves {
            if let Effect::Unsubscribe(place, topic) = leave {
                self.unsubscribe(place, &topic);
            }
        }
    }
}

/// Carries out the effects of a client's message. If one of them would overtake the client's own publications or
/// drop them, all wait until the fan-out of this thread has handed the publications out, and so does the client's
/// next message. Returns whether the effects were carried out.
pub(super) fn run_after_own<A: Carrier>(
    carrier: &mut A,
    effects: Vec<Effect>,
    ctx: &mut A::Context,
) -> bool {
    let driver = carrier.driver();
    let overtakes = |_: &&mut Box<Unconfirmed>| effects.iter().any(Effect::overtakes);
    let Some(unconfirmed) = driver.unconfirmed.as_mut().filter(overtakes) else {
        run(carrier, effects, ctx);
        return true;
    };
    unconfirmed.waiting = effects;
    let publications = mem::take(&mut unconfirmed.newest);
    let (session, wait_max) = (driver.membership.session, driver.worker.topics.wait_max());
    let confirm = Confirm { session, publications, until: Instant::now() + wait_max };
    driver.membership.fanout.addr.do_send(confirm);
    carrier.hold();
    false
}

/// Continues after the client's own publications, which are ahead in the outbox.
pub(super) fn confirmed<A: Carrier>(carrier: &mut A, ctx: &mut A::Context) {
    let Some(Unconfirmed { waiting, .. }) = carrier.driver().unconfirmed.take().map(|all| *all)
    else {
        return;
    };
    let holds = waiting.iter().any(Effect::holds);
    run(carrier, waiting, ctx);
    if !holds {
        carrier.resume(ctx);
    }
}
