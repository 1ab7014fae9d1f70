//! The machine over a simulated Redis, network and clock.
//!
//! Several nodes append, change members and tell messages, while connections are cut and swallow what is
//! sent, Redis pauses, is restarted with and without its data, fails over to a replica that lags, and nodes
//! stop and die. All random choices come from a seed. Then the faults end, and the invariants (the *law*) are
//! checked:
//!
//! - all nodes have read the log to its end, and no two have different records at one position,
//! - within an epoch a node was given every offset once and in order, or told that it is lost,
//! - every record that was acknowledged is in the log, or another epoch has been announced since,
//! - the members are those that the live nodes put, and a node's members left at most once.
//!
//! `HERALD_TEST_SEEDS=10000` tries 10,000 seeds, and `HERALD_TEST_SEED=7` tries the seed 7 alone.

mod leaving;
mod model;
mod node;
mod reading;
mod rounds;
mod stall;
mod world;

use world::World;

/// The seeds that are tried.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

#[test]
fn acknowledged_records_are_delivered_or_their_loss_is_announced() {
    let seeds = match number("HERALD_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HERALD_TEST_SEEDS").unwrap_or(SEEDS),
    };
    let (mut acknowledged, mut broken) = (0, Vec::new());
    for seed in seeds.clone() {
        let done = std::panic::catch_unwind(|| World::new(seed).run());
        match done {
            Ok(count) => acknowledged += count,
            Err(_) => broken.push(seed),
        }
    }
    assert!(broken.is_empty(), "seeds {broken:?} broke the law: HERALD_TEST_SEED repeats one");
    let each = acknowledged / (seeds.end - seeds.start);
    assert!(each > 20, "a run with {each} acknowledged records shows little");
}

// The seeds below failed once. The effect of a seed depends on each call of the machine, so they need not lead to
// the same faults any more; the descriptions say which faults were found with them.

/// Two silent rollbacks: the second one restores an epoch that was ended because of the first one, with the
/// records that all nodes have read in it.
#[test]
fn seed_344_an_epoch_that_has_ended_does_not_come_back() {
    World::new(344).run();
}

/// A server returns to an earlier state without a sign and gives the same offsets again, while a node is cut
/// off or paused, or before a node has read what was acknowledged to it.
#[test]
fn offsets_that_are_given_twice_are_noticed() {
    for seed in [400, 1570, 1980, 2403, 2503, 2708, 3702, 6988, 9020] {
        World::new(seed).run();
    }
}

/// Two messages with the same offset and different lengths are held back, one after the other.
#[test]
fn seed_881_a_message_that_is_held_back_is_replaced_by_a_longer_one() {
    World::new(881).run();
}
