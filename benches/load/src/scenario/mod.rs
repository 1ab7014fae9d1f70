//! Scenarios: each puts one kind of load on a server, and has bounds for its cost.

mod builds;
mod fanout;
mod history;
mod idle;
mod joins;
mod mixed;
mod nodes;
mod recovery;
mod slow_consumer;
mod stage;
mod strangers;
mod tenants;
mod topics;
mod triggers;
mod watched;
mod window;

use crate::{options::Options, protocol::Protocol};

/// A scenario by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// 1,000 subscribers of one topic, 50 events a second.
    FanoutSteady,
    /// The same, as fast as it goes with eight events under way.
    FanoutSaturated,
    /// The same with one connection to publish over and subscribers that keep up, ten times.
    FanoutWindow,
    /// 10,000 subscribers.
    FanoutLarge,
    /// 10 KB of payload.
    FanoutPayload,
    /// 10,000 topics of one subscriber each.
    TopicsMany,
    /// The cost of idle connections.
    Idle,
    /// A storm of joins.
    Joins,
    /// HTTP triggers.
    Triggers,
    /// Everything at once, for five minutes.
    Mixed,
    /// `FanoutSteady` with ten subscribers that stop reading.
    SlowConsumer,
    /// Attacks by clients without credentials.
    Strangers,
    /// The cost of retaining publications.
    History,
    /// Clients that lose their connections and come back for what they missed.
    Recovery,
    /// A quiet app beside busy ones.
    Tenants,
    /// The cost of an open console.
    Watched,
    /// This build of the server, and another one.
    Builds,
    /// Several servers that share a Redis.
    Nodes,
}

impl Scenario {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::FanoutSteady => "fanout-steady",
            Self::FanoutSaturated => "fanout-saturated",
            Self::FanoutWindow => "fanout-window",
            Self::FanoutLarge => "fanout-large",
            Self::FanoutPayload => "fanout-payload",
            Self::TopicsMany => "topics-many",
            Self::Idle => "idle",
            Self::Joins => "joins",
            Self::Triggers => "triggers",
            Self::Mixed => "mixed",
            Self::SlowConsumer => "slow-consumer",
            Self::Strangers => "strangers",
            Self::History => "history",
            Self::Recovery => "recovery",
            Self::Tenants => "tenants",
            Self::Watched => "watched",
            Self::Builds => "builds",
            Self::Nodes => "nodes",
        }
    }

    /// Whether its subscribers can speak Pusher.
    fn knows_pusher(self) -> bool {
        matches!(self, Self::FanoutSteady | Self::FanoutSaturated | Self::Idle)
    }

    /// Runs it against a program, and prints what came of it.
    ///
    /// # Errors
    /// The faults, in words.
    pub fn run(self, options: &Options, server: &str) -> Result<(), String> {
        let target = options.target(server);
        if target.protocol == Protocol::Pusher && !self.knows_pusher() {
            return Err(
                "only fanout-steady, fanout-saturated and idle know --protocol pusher".to_owned()
            );
        }
        let report = match self {
            Self::FanoutSteady => fanout::steady(options, &target),
            Self::FanoutSaturated => fanout::saturated(options, &target),
            Self::FanoutWindow => window::window(options, &target),
            Self::FanoutLarge => fanout::large(options, &target),
            Self::FanoutPayload => fanout::with_payload(options, &target),
            Self::TopicsMany => topics::many(options, &target),
            Self::Idle => idle::idle(options, &target),
            Self::Joins => joins::joins(options, &target),
            Self::Triggers => triggers::triggers(options, &target),
            Self::Mixed => mixed::mixed(options, &target),
            Self::SlowConsumer => slow_consumer::slow_consumer(options, &target),
            Self::Strangers => strangers::strangers(options, &target),
            Self::History => history::history(options, &target),
            Self::Recovery => recovery::recovery(options, &target),
            Self::Tenants => tenants::tenants(options, &target),
            Self::Watched => watched::watched(options, &target),
            Self::Builds => builds::builds(options, &target),
            Self::Nodes => nodes::nodes(options, &target),
        };
        report.map_err(|error| error.to_string())?.publish(options)
    }
}
