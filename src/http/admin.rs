//! The admin API's login: Basic credentials, and a brake on guessing them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::{
    Error, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header,
    middleware::Next,
    web,
};
use secrecy::ExposeSecret;

use super::{Services, basic::BasicCredentials, client::client_of, error::ApiError, own_host};
use crate::{metrics::labels::Limit, session::client::block};

/// How long failures count.
const WINDOW: Duration = Duration::from_secs(60);
/// The most addresses that are counted one by one.
const ADDRESSES_MAX: usize = 10_000;

/// Counts failed admin logins per client address.
///
/// Once an address has failed as often as it may, it is refused for the rest of the minute that
/// began with its first failure, also with the right credentials: an answer that told right from
/// wrong would be all that a guesser needs. A success in between forgives nothing, since the
/// operator may share an address with the guesser.
#[derive(Debug)]
pub struct Throttle {
    failures_max: u32,
    counts: Mutex<Counts>,
}

/// Failures by address. When there are too many addresses, all further ones count as one: whoever
/// has that many gets no more guesses by it, and an operator known before is not shut out.
#[derive(Debug, Default)]
struct Counts {
    by_address: HashMap<Block, Window>,
    of_the_rest: Option<Window>,
}

/// Who counts as one, as [`block`] has it.
type Block = IpAddr;

#[derive(Debug, Clone, Copy)]
struct Window {
    began: Instant,
    failures: u32,
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= WINDOW
    }
}

/// Why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The credentials are wrong.
    Wrong,
    /// They were not looked at: this address failed too often, and may come back after this.
    TooMany(Duration),
}

impl Throttle {
    /// Allows this many failures per minute and address, but at least one.
    pub fn new(failures_per_minute_max: u32) -> Self {
        Self { failures_max: failures_per_minute_max.max(1), counts: Mutex::default() }
    }

    /// Judges one attempt. Counting and judging are one step: simultaneous guesses gain nothing.
    fn attempt(
        &self,
        address: IpAddr,
        now: Instant,
        is_right: impl FnOnce() -> bool,
    ) -> Result<(), Refusal> {
        // A panic while counting leaves counts that are right or one too low.
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let block = block(address);
        let failures = counts.current(block, now);
        if let Some(window) = failures.filter(|window| window.failures >= self.failures_max) {
            return Err(Refusal::TooMany(WINDOW - now.saturating_duration_since(window.began)));
        }
        if is_right() {
            return Ok(());
        }
        counts.add_failure(block, now);
        Err(Refusal::Wrong)
    }
}

impl Counts {
    fn current(&self, block: Block, now: Instant) -> Option<Window> {
        let window = match self.by_address.get(&block) {
            Some(window) => Some(*window),
            None if self.by_address.len() >= ADDRESSES_MAX => self.of_the_rest,
            None => None,
        };
        window.filter(|window| !window.is_over(now))
    }

    fn add_failure(&mut self, block: Block, now: Instant) {
        if self.by_address.len() >= ADDRESSES_MAX && !self.by_address.contains_key(&block) {
            self.by_address.retain(|_, window| !window.is_over(now));
        }
        let is_full = self.by_address.len() >= ADDRESSES_MAX;
        let fresh = Window { began: now, failures: 0 };
        let window = match self.by_address.get_mut(&block) {
            Some(window) => window,
            None if is_full => self.of_the_rest.get_or_insert(fresh),
            None => self.by_address.entry(block).or_insert(fresh),
        };
        if window.is_over(now) {
            *window = fresh;
        }
        window.failures += 1;
    }
}

/// Judges a request's credentials. A request that brings none is no attempt.
fn login(request: &ServiceRequest, services: &Services) -> Result<(), ApiError> {
    if !request.headers().contains_key(header::AUTHORIZATION) {
        return Err(ApiError::Unauthorized);
    }
    let admin = &services.settings.admin;
    let is_right = || {
        BasicCredentials::of(request.headers())
            .is_some_and(|given| given.are(&admin.username, admin.password.expose_secret()))
    };
    let address = client_of(request.request(), &services.settings.server).address;
    match services.admin_throttle.attempt(address, Instant::now(), is_right) {
        Ok(()) => Ok(()),
        Err(Refusal::Wrong) => {
            log::warn!("wrong admin credentials from {address}");
            Err(ApiError::Unauthorized)
        }
        Err(Refusal::TooMany(retry_after)) => {
            services.metrics.hit(Limit::FailedAdminLogins);
            Err(ApiError::TooManyRequests { retry_after })
        }
    }
}

/// Middleware: lets only the admin pass. Needs [`Services`]. What passes is kept by no cache.
///
/// # Errors
/// Whatever the wrapped service fails with; a refusal is an answer.
pub async fn require_login<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let verdict = match request.app_data::<web::Data<Services>>() {
        Some(services) => own_host::check(request.headers(), &services.settings)
            .and_then(|()| login(&request, services)),
        // Fails closed: without settings nobody is the admin.
        None => Err(ApiError::Unavailable),
    };
    if let Err(refusal) = verdict {
        return Ok(request.into_response(refusal.error_response()).map_into_right_body());
    }
    let mut response = next.call(request).await?;
    let no_store = header::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    Ok(response.map_into_left_body())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: Result<(), Refusal> = Err(Refusal::Wrong);

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn too_many(seconds: u64) -> Result<(), Refusal> {
        Err(Refusal::TooMany(Duration::from_secs(seconds)))
    }

    #[test]
    fn an_address_that_fails_too_often_waits_for_the_minute_to_pass() {
        let throttle = Throttle::new(3);
        let (guesser, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (case, who, second, is_right, expected) in [
            ("first failure", guesser, 0, false, WRONG),
            ("second failure", guesser, 10, false, WRONG),
            ("a success forgives nothing", guesser, 15, true, Ok(())),
            ("third failure", guesser, 20, false, WRONG),
            ("beyond", guesser, 20, false, too_many(40)),
            ("the right credentials do not help", guesser, 30, true, too_many(30)),
            ("another address", other, 30, true, Ok(())),
            ("another address fails", other, 30, false, WRONG),
            ("the last second", guesser, 59, true, too_many(1)),
            ("a new minute", guesser, 60, false, WRONG),
            ("counted anew", guesser, 61, true, Ok(())),
        ] {
            assert_eq!(throttle.attempt(who, at(second), || is_right), expected, "{case}");
        }
    }

    #[test]
    fn credentials_of_a_throttled_address_are_not_even_looked_at() {
        let throttle = Throttle::new(1);
        let now = Instant::now();
        let guesser = address("192.0.2.1");
        assert_eq!(throttle.attempt(guesser, now, || false), WRONG);
        let answer = throttle.attempt(guesser, now, || unreachable!("they were compared"));
        assert_eq!(answer, too_many(60));
    }

    #[test]
    fn an_ipv6_customer_counts_as_one() {
        let throttle = Throttle::new(1);
        let now = Instant::now();
        assert_eq!(throttle.attempt(address("2001:db8::1"), now, || false), WRONG);
        assert_eq!(throttle.attempt(address("2001:db8::ffff:1"), now, || true), too_many(60));
        assert_eq!(throttle.attempt(address("2001:db8:0:1::1"), now, || true), Ok(()));
        assert_eq!(throttle.attempt(address("192.0.2.1"), now, || false), WRONG);
        assert_eq!(throttle.attempt(address("::ffff:192.0.2.1"), now, || true), too_many(60));
    }

    #[test]
    fn the_map_does_not_grow_without_bound_and_the_rest_counts_as_one() {
        let throttle = Throttle::new(2);
        let start = Instant::now();
        let nth = |n: usize| IpAddr::from(u32::try_from(n).expect("a small number").to_be_bytes());
        for n in 0..ADDRESSES_MAX {
            assert_eq!(throttle.attempt(nth(n), start, || false), WRONG);
        }
        let rest = ADDRESSES_MAX;
        assert_eq!(throttle.attempt(nth(rest), start, || false), WRONG);
        assert_eq!(throttle.attempt(nth(rest + 1), start, || false), WRONG);
        assert_eq!(throttle.attempt(nth(rest + 2), start, || true), too_many(60));
        assert_eq!(throttle.attempt(nth(0), start, || true), Ok(()), "known before");
        assert_eq!(throttle.counts.lock().expect("counts").by_address.len(), ADDRESSES_MAX);

        let later = start + WINDOW;
        assert_eq!(throttle.attempt(nth(rest + 2), later, || false), WRONG);
        assert_eq!(throttle.counts.lock().expect("counts").by_address.len(), 1);
    }

    #[test]
    fn no_limit_shuts_everybody_out() {
        let throttle = Throttle::new(0);
        assert_eq!(throttle.attempt(address("192.0.2.1"), Instant::now(), || true), Ok(()));
    }
}
