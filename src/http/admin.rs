//! The login of the admin API: Basic credentials, and a limit on attempts to guess them.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use actix_web::{
    Error, HttpMessage, HttpRequest, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header,
    middleware::Next,
    web,
};
use parking_lot::Mutex;

use super::{
    Services, basic,
    client::client_of,
    console::session::{LoggedIn, Session},
    error::ApiError,
    own_host,
    tally::Tally,
};
use crate::{
    app::pair_digests::TextDigest,
    metrics::labels::{FailedLogin, Limit},
    session::{
        bucket::{Bucket, PerSecond},
        client::block,
    },
};

/// The time for which a failure counts.
const WINDOW: Duration = Duration::from_secs(60);
/// The most addresses whose failures are counted.
const ADDRESSES_MAX: usize = 10_000;
/// The most addresses that are remembered as the admin's.
const PROVEN_MAX: usize = 1_000;
/// The number of addresses that may use up their allowance of failures within one minute.
const FAILING_ADDRESSES_MAX: u32 = 10_000;
/// The time after which a caller may try again when all addresses together have failed too often.
const GLOBAL_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Counts failed admin logins, per client address and in total.
///
/// An address that has reached its limit is refused until the oldest of these failures is a minute
/// old, even with the right credentials: a different answer for right credentials would
/// tell a guesser that they are right. A success does not reset the count, because the operator may
/// share an address with the guesser.
///
/// Attackers with many addresses cannot shut out an address that has not failed: the failures of
/// [`ADDRESSES_MAX`] addresses are remembered, the oldest are forgotten, and no failure counts
/// against another address. A shared limit slows down all attackers together: all addresses
/// together may fail as often as [`FAILING_ADDRESSES_MAX`] addresses could. Beyond that limit, only
/// the credentials from an address that has logged in before are checked.
#[derive(Debug)]
pub struct Throttle {
    failures_max: u32,
    started: Instant,
    counts: Mutex<LoginCounts>,
}

#[derive(Debug)]
struct LoginCounts {
    /// The times of the failures of the last minute, oldest first. Each address has at most as many as the limit.
    by_address: Tally<Block, VecDeque<Instant>>,
    in_all: Bucket,
    /// Addresses that have sent the admin's credentials.
    proven: Tally<Block, ()>,
}

/// A group of addresses that counts as one client, see [`block`].
type Block = IpAddr;

/// The reason why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoginRefusal {
    /// The credentials are wrong.
    Wrong,
    /// The credentials were not checked, because there were too many failures. The caller may try
    /// again after this time.
    TooMany(Duration),
}

impl Throttle {
    /// Allows this many failures per minute and address; zero is taken as one.
    pub fn new(failures_per_minute_max: u32) -> Self {
        let counts = LoginCounts {
            by_address: Tally::new(ADDRESSES_MAX),
            in_all: Bucket::default(),
            proven: Tally::new(PROVEN_MAX),
        };
        Self {
            failures_max: failures_per_minute_max.max(1),
            started: Instant::now(),
            counts: Mutex::new(counts),
        }
    }

    /// Judges one attempt. One lock covers judging and counting, so that simultaneous guesses cannot
    /// exceed the limit.
    fn attempt(
        &self,
        login: FailedLogin,
        address: IpAddr,
        now: Instant,
        is_right: impl FnOnce() -> bool,
    ) -> Result<(), LoginRefusal> {
        // A panic while counting leaves each count either right or one too low.
        let mut counts = self.counts.lock();
        let block = block(address);
        if let Some(failures) = counts.failures_of(block, now)
            && failures.len() >= self.failures_max as usize
            && let Some(oldest) = failures.front()
        {
            return Err(LoginRefusal::TooMany(WINDOW - now.saturating_duration_since(*oldest)));
        }
        let in_all = self.one_more(counts.in_all, now);
        if in_all.is_none() && counts.proven.peek(&block).is_none() {
            return Err(LoginRefusal::TooMany(GLOBAL_RETRY_AFTER));
        }
        if is_right() {
            // An app's login proves nothing about its address: apps at many addresses could make the throttle
            // forget that of the admin.
            if is_of_admin(login) {
                counts.proven.insert(block, ());
            }
            return Ok(());
        }
        counts.in_all = in_all.unwrap_or(counts.in_all);
        counts.add_failure(block, now);
        Err(LoginRefusal::Wrong)
    }

    /// Adds one failure to the total; `None` if that exceeds the limit.
    ///
    /// The burst is half of the limit, so that no minute has more failures than the limit.
    fn one_more(&self, mut in_all: Bucket, now: Instant) -> Option<Bucket> {
        let half = PerSecond(self.failures_max.saturating_mul(FAILING_ADDRESSES_MAX / 2));
        // A bucket counts per second; here one of its seconds stands for a minute.
        let minutes = now.saturating_duration_since(self.started).as_secs_f64() / 60.0;
        in_all.take(1, half, minutes).then_some(in_all)
    }
}

impl LoginCounts {
    /// The failures of the last minute; `None` if there is none.
    fn failures_of(&mut self, block: Block, now: Instant) -> Option<&mut VecDeque<Instant>> {
        let failures = self.by_address.peek_mut(&block)?;
        let is_over = |failure: &Instant| now.saturating_duration_since(*failure) >= WINDOW;
        while failures.front().is_some_and(is_over) {
            failures.pop_front();
        }
        Some(failures).filter(|failures| !failures.is_empty())
    }

    fn add_failure(&mut self, block: Block, now: Instant) {
        match self.failures_of(block, now) {
            Some(failures) => failures.push_back(now),
            None => drop(self.by_address.insert(block, VecDeque::from([now]))),
        }
    }
}

/// Judges the caller of a request: by its credentials, or by the console's session. A request
/// without credentials does not count as an attempt.
fn login(request: &ServiceRequest, services: &Services) -> Result<(), ApiError> {
    if !request.headers().contains_key(header::AUTHORIZATION) {
        let session = request.extensions().get::<Session>().cloned();
        return match session.and_then(|session| session.holder(services)) {
            Some(LoggedIn::Admin) => Ok(()),
            Some(LoggedIn::App(..)) => {
                Err(ApiError::Forbidden("only the administrator may do this"))
            }
            None => Err(ApiError::Unauthorized),
        };
    }
    let admin = &services.settings.admin;
    let is_right = || {
        // The settings refuse a user name with a colon, so that the text has one meaning.
        let expected = TextDigest::of_login(&admin.username, &admin.password);
        basic::login(request.headers()).is_some_and(|given| given.is(&expected).into())
    };
    attempt(services, request.request(), FailedLogin::AdminApi, is_right)
}

fn is_of_admin(login: FailedLogin) -> bool {
    match login {
        FailedLogin::AdminApi | FailedLogin::ConsoleAdmin => true,
        FailedLogin::ConsoleApp => false,
    }
}

/// Judges one attempt to log in, unless there were too many failures from its address.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::TooManyRequests`].
pub(super) fn attempt(
    services: &Services,
    request: &HttpRequest,
    login: FailedLogin,
    is_right: impl FnOnce() -> bool,
) -> Result<(), ApiError> {
    let address = client_of(request, &services.settings.server).address;
    match services.admin_throttle.attempt(login, address, Instant::now(), is_right) {
        Ok(()) => Ok(()),
        Err(LoginRefusal::Wrong) => {
            services.metrics.failed_logins.of(login).inc();
            let whose = if is_of_admin(login) { "admin" } else { "app" };
            log::warn!("wrong {whose} credentials from {address}");
            Err(ApiError::Unauthorized)
        }
        Err(LoginRefusal::TooMany(retry_after)) => {
            services.metrics.hit(Limit::FailedAdminLogins);
            Err(ApiError::TooManyRequests { retry_after })
        }
    }
}

/// Middleware: lets only the admin pass. Needs [`Services`]. Marks the answers as not cacheable.
///
/// # Errors
/// Any error of the wrapped service; a refusal is an answer, not an error.
pub async fn require_login<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let verdict = match request.app_data::<web::Data<Services>>() {
        Some(services) => own_host::check(request.headers(), &services.settings)
            .and_then(|()| login(&request, services)),
        // Fails closed: without settings no caller can be recognised as the admin.
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

    const ADMIN: FailedLogin = FailedLogin::AdminApi;
    const WRONG: Result<(), LoginRefusal> = Err(LoginRefusal::Wrong);

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn too_many(seconds: u64) -> Result<(), LoginRefusal> {
        Err(LoginRefusal::TooMany(Duration::from_secs(seconds)))
    }

    #[test]
    fn an_address_that_fails_too_often_waits_until_its_oldest_failure_is_a_minute_old() {
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
            ("the first failure counts no more", guesser, 60, false, WRONG),
            ("no other minute has more failures", guesser, 61, true, too_many(9)),
            ("nor does the second failure", guesser, 70, true, Ok(())),
            ("a minute without failures", guesser, 130, false, WRONG),
            ("counted anew", guesser, 131, false, WRONG),
        ] {
            assert_eq!(throttle.attempt(ADMIN, who, at(second), || is_right), expected, "{case}");
        }
    }

    #[test]
    fn credentials_of_a_throttled_address_are_not_even_looked_at() {
        let throttle = Throttle::new(1);
        let now = Instant::now();
        let guesser = address("192.0.2.1");
        assert_eq!(throttle.attempt(ADMIN, guesser, now, || false), WRONG);
        let answer = throttle.attempt(ADMIN, guesser, now, || unreachable!("they were compared"));
        assert_eq!(answer, too_many(60));
    }

    #[test]
    fn an_ipv6_customer_counts_as_one() {
        let throttle = Throttle::new(1);
        let now = Instant::now();
        assert_eq!(throttle.attempt(ADMIN, address("2001:db8::1"), now, || false), WRONG);
        assert_eq!(
            throttle.attempt(ADMIN, address("2001:db8::ffff:1"), now, || true),
            too_many(60)
        );
        assert_eq!(throttle.attempt(ADMIN, address("2001:db8:0:1::1"), now, || true), Ok(()));
        assert_eq!(throttle.attempt(ADMIN, address("192.0.2.1"), now, || false), WRONG);
        assert_eq!(
            throttle.attempt(ADMIN, address("::ffff:192.0.2.1"), now, || true),
            too_many(60)
        );
    }

    /// The nth network of one provider, which hands out a /64 to each customer.
    fn network(n: u32) -> IpAddr {
        let [a, b, c, d] = n.to_be_bytes().map(u16::from);
        IpAddr::from([0x2001, 0xdb8, a << 8 | b, c << 8 | d, 0, 0, 0, 1])
    }

    #[test]
    fn failures_from_endless_addresses_shut_out_no_address_that_has_not_failed() {
        let throttle = Throttle::new(10);
        let (start, operator) = (Instant::now(), address("192.0.2.1"));
        assert_eq!(throttle.attempt(ADMIN, operator, start, || true), Ok(()));
        for n in 0..10_012 {
            assert_eq!(throttle.attempt(ADMIN, network(n), start, || false), WRONG, "{n}");
        }
        for (case, who) in [
            ("it has logged in before", operator),
            ("it is new", address("192.0.2.2")),
            ("it is a neighbour of those that failed", network(10_012)),
        ] {
            assert_eq!(throttle.attempt(ADMIN, who, start, || true), Ok(()), "{case}");
        }
    }

    #[test]
    fn a_full_table_forgets_the_oldest_failures() {
        let throttle = Throttle::new(3);
        let start = Instant::now();
        let addresses = u32::try_from(ADDRESSES_MAX).expect("a small number");
        for n in 0..=addresses {
            assert_eq!(throttle.attempt(ADMIN, network(n), start, || false), WRONG, "{n}");
        }
        for (case, n, expected) in [
            ("remembered", 2, too_many(60)),
            ("the youngest", addresses, too_many(60)),
            ("forgotten", 0, Ok(())),
        ] {
            for _ in 0..2 {
                assert_eq!(throttle.attempt(ADMIN, network(n), start, || false), WRONG, "{case}");
            }
            assert_eq!(throttle.attempt(ADMIN, network(n), start, || true), expected, "{case}");
        }
    }

    #[test]
    fn guesses_from_endless_addresses_share_one_rate() {
        let throttle = Throttle::new(1);
        let (start, operator) = (Instant::now(), address("192.0.2.1"));
        assert_eq!(throttle.attempt(ADMIN, operator, start, || true), Ok(()));
        // Logins of apps do not make the throttle forget the address of the operator.
        let proven_max = u32::try_from(PROVEN_MAX).expect("a small number");
        for app in (0..proven_max).map(|n| network(u32::MAX - n)) {
            assert_eq!(throttle.attempt(FailedLogin::ConsoleApp, app, start, || true), Ok(()));
        }
        let mut networks = (0..).map(network);
        let mut guess = |second| {
            let now = start + Duration::from_secs(second);
            let network = networks.next().expect("endless networks");
            throttle.attempt(ADMIN, network, now, || false)
        };
        let mut guesses = |second| (0..).take_while(|_| guess(second) == WRONG).count();
        assert_eq!(guesses(0), 5_000);
        // The rate is a fraction, so a guess may come due just after its half of a minute.
        for second in [30, 60] {
            let allowed = guesses(second);
            assert!((2_499..=2_500).contains(&allowed), "{allowed} by second {second}");
        }
        let now = start + Duration::from_secs(60);
        let new = address("192.0.2.2");
        let answer = throttle.attempt(ADMIN, new, now, || unreachable!("they were compared"));
        assert_eq!(answer, too_many(1));
        assert_eq!(
            throttle.attempt(ADMIN, operator, now, || true),
            Ok(()),
            "known to be the admin's"
        );
        assert_eq!(throttle.attempt(ADMIN, operator, now, || false), WRONG);
        assert_eq!(
            throttle.attempt(ADMIN, operator, now, || true),
            too_many(60),
            "it counts by itself"
        );
        assert_eq!(throttle.attempt(ADMIN, new, now + GLOBAL_RETRY_AFTER, || true), Ok(()));
    }

    #[test]
    fn no_limit_shuts_everybody_out() {
        let throttle = Throttle::new(0);
        assert_eq!(throttle.attempt(ADMIN, address("192.0.2.1"), Instant::now(), || true), Ok(()));
    }
}
