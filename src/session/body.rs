//! Request bodies: each has its own limit, and all of them share one budget.
//!
//! A request that is refused by its head alone is answered before its body is read; the bodies of all
//! others are bounded here. The bytes of a body are charged as they arrive, so a client that announces a
//! large body takes no more than [`OVERHEAD_BYTES`] from the budget until it sends the body. The bytes stay
//! charged until the request is answered.
//!
//! Bodies from visitors may fill half of the budget: the other half is reserved for the web
//! applications and the operator. While that half is full, a visitor's body takes the room of the visitor's
//! body that has made no progress for the longest time, so clients that announce bodies and send nothing
//! never shut out clients that send theirs.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use actix_web::{
    http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap},
    web,
};
use bytes::{Bytes, BytesMut};
use futures_util::{
    StreamExt,
    stream::{AbortHandle, AbortRegistration, Abortable},
};
use parking_lot::Mutex;

/// The size, in bytes, up to which a body is charged only its received bytes. Such a body arrives in few
/// pieces.
const SMALL_BYTES: usize = 32 * 1024;

/// The bytes that a larger body is charged in addition to its own, because the HTTP server allocates about
/// that many for a body, even if little of it has arrived.
const OVERHEAD_BYTES: usize = 64 * 1024;

/// The budget of all bodies under way. Clones share it.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    used_bytes: Arc<AtomicUsize>,
    arriving: Arc<Mutex<ArrivingBodies>>,
    bytes_max: usize,
}

/// The bodies of visitors that are being read.
#[derive(Debug, Default)]
struct ArrivingBodies {
    /// The bodies in the order of their last progress.
    bodies: BTreeMap<u64, Arriving>,
    next_progress: u64,
    /// The bytes that they are charged together.
    bytes: usize,
}

#[derive(Debug)]
struct Arriving {
    /// The bytes that the body is charged.
    bytes: usize,
    /// Ends the reading of the body.
    stop: AbortHandle,
}

/// The part of the budget that a body may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetShare {
    /// The whole budget: the caller is a web application, or the operator.
    Whole,
    /// Half of the budget: the caller is a visitor, or is not known yet.
    Half,
}

/// The reason why a body is not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnreadBody {
    /// The body is larger than allowed, or its `Content-Length` is.
    TooLarge,
    /// The budget is used up, or another body has taken the room of this one.
    NoRoom,
    /// The connection was closed before the end of the body.
    BrokenOff,
}

impl BodyBudget {
    /// An unused budget of this many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { used_bytes: Arc::default(), arriving: Arc::default(), bytes_max }
    }

    /// Reads a body of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`UnreadBody`]; a `Content-Length` beyond `bytes_max` is enough to be [`UnreadBody::TooLarge`].
    pub async fn read(
        &self,
        headers: &HeaderMap,
        payload: web::Payload,
        bytes_max: usize,
        share: BudgetShare,
    ) -> Result<HeldBody, UnreadBody> {
        let announced = announced_bytes(headers);
        if announced.is_some_and(|bytes| bytes > bytes_max) {
            return Err(UnreadBody::TooLarge);
        }
        let (charge, stopped) = Charge::none(self, share);
        let mut body = HeldBody { bytes: Bytes::new(), charge };
        let mut payload = Abortable::new(payload, stopped);
        if announced.unwrap_or(bytes_max) > SMALL_BYTES {
            // The largest body fits into an unused budget.
            let room = self.bytes_max(share).saturating_sub(bytes_max);
            body.charge.add(OVERHEAD_BYTES.min(room))?;
        }
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|_| UnreadBody::BrokenOff)?;
            if body.bytes.len() + chunk.len() > bytes_max {
                return Err(UnreadBody::TooLarge);
            }
            body.charge.add(chunk.len())?;
            body.bytes = join(body.bytes, chunk, announced.unwrap_or(0));
        }
        body.charge.withdraw()?;
        Ok(body)
    }

    fn bytes_max(&self, share: BudgetShare) -> usize {
        match share {
            BudgetShare::Whole => self.bytes_max,
            BudgetShare::Half => self.bytes_max / 2,
        }
    }

    /// Charges these bytes if they fit.
    fn take(&self, bytes: usize, share: BudgetShare) -> bool {
        let bytes_max = self.bytes_max(share);
        let with_these =
            |used: usize| used.checked_add(bytes).filter(|together| *together <= bytes_max);
        self.used_bytes.fetch_update(Relaxed, Relaxed, with_these).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used_bytes.fetch_sub(bytes, Relaxed);
    }
}

impl ArrivingBodies {
    /// Adds a body that has just made progress, and returns the number of this progress.
    fn push(&mut self, body: Arriving) -> u64 {
        let progress = self.next_progress;
        self.next_progress += 1;
        self.bytes += body.bytes;
        self.bodies.insert(progress, body);
        progress
    }

    /// Removes a body; `None` if another body has taken its room.
    fn remove(&mut self, progress: u64) -> Option<Arriving> {
        let removed = self.bodies.remove(&progress)?;
        self.bytes -= removed.bytes;
        Some(removed)
    }

    /// Charges bytes to the budget for a body that is not one of the arriving ones. If the bytes do not fit, the
    /// arriving bodies that have made no progress for the longest time are ended, provided that this frees enough.
    fn make_room(&mut self, bytes: usize, budget: &BodyBudget) -> bool {
        while !budget.take(bytes, BudgetShare::Half) {
            let others = budget.used_bytes.load(Relaxed).saturating_sub(self.bytes);
            if others.saturating_add(bytes) > budget.bytes_max(BudgetShare::Half) {
                return false;
            }
            let Some((_, last)) = self.bodies.pop_first() else { return false };
            self.bytes -= last.bytes;
            budget.give_back(last.bytes);
            last.stop.abort();
        }
        true
    }
}

/// The `Content-Length`, if there is one that can be read.
fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Appends a chunk. A body in one piece, as most are, is not copied. The buffer of a body in several pieces
/// at least doubles when it grows, but does not exceed the announced length. Nothing is allocated for an
/// announced length alone.
fn join(bytes: Bytes, chunk: Bytes, announced: usize) -> Bytes {
    if bytes.is_empty() {
        return chunk;
    }
    let mut bytes = BytesMut::from(bytes);
    if bytes.capacity() < bytes.len() + chunk.len() {
        let left = announced.saturating_sub(bytes.len());
        bytes.reserve(left.min(bytes.len()).max(chunk.len()));
    }
    bytes.extend_from_slice(&chunk);
    bytes.freeze()
}

/// A whole body, charged to the budget until it is dropped.
#[derive(Debug)]
pub struct HeldBody {
    bytes: Bytes,
    charge: Charge,
}

impl HeldBody {
    /// The bytes, which may be kept for longer than they are charged.
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// The bytes, charged for as long as any part of them is kept.
    pub fn into_charged_bytes(self) -> Bytes {
        if self.bytes.is_empty() {
            return self.bytes;
        }
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for HeldBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The bytes that a body has taken out of the budget. Dropping this gives them back.
#[derive(Debug)]
struct Charge {
    budget: BodyBudget,
    bytes: usize,
    share: BudgetShare,
    /// Ends the reading of the body.
    stop: AbortHandle,
    /// The number of the body's last progress, while it is one of the arriving bodies.
    progress: Option<u64>,
}

impl Charge {
    /// The charge of a body of which nothing has arrived, and the registration by which its reading ends.
    fn none(budget: &BodyBudget, share: BudgetShare) -> (Self, AbortRegistration) {
        let (stop, stopped) = AbortHandle::new_pair();
        (Self { budget: budget.clone(), bytes: 0, share, stop, progress: None }, stopped)
    }

    /// Charges further bytes, because the body makes progress.
    fn add(&mut self, bytes: usize) -> Result<(), UnreadBody> {
        match self.share {
            BudgetShare::Half => self.add_of_visitor(bytes),
            BudgetShare::Whole if self.budget.take(bytes, self.share) => {
                self.bytes += bytes;
                Ok(())
            }
            BudgetShare::Whole => Err(UnreadBody::NoRoom),
        }
    }

    /// Charges further bytes to a visitor's body. The lock is held over all steps: another body that needs room
    /// meanwhile would find the bytes of this one charged, but not this body among the arriving ones that can be
    /// ended, and would be refused.
    fn add_of_visitor(&mut self, bytes: usize) -> Result<(), UnreadBody> {
        let budget = self.budget.clone();
        let mut arriving = budget.arriving.lock();
        self.leave(&mut arriving)?;
        if !arriving.make_room(bytes, &budget) {
            budget.give_back(mem::take(&mut self.bytes));
            return Err(UnreadBody::NoRoom);
        }
        self.bytes += bytes;
        let body = Arriving { bytes: self.bytes, stop: self.stop.clone() };
        self.progress = Some(arriving.push(body));
        Ok(())
    }

    /// Removes the body from the arriving ones, because it is complete: no other body may take its room any more.
    /// Fails if another body has already taken it.
    fn withdraw(&mut self) -> Result<(), UnreadBody> {
        let arriving = Arc::clone(&self.budget.arriving);
        self.leave(&mut arriving.lock())
    }

    /// Removes the body from the arriving ones, if it is one of them. Fails if another body has taken its room;
    /// its bytes were given back then.
    fn leave(&mut self, arriving: &mut ArrivingBodies) -> Result<(), UnreadBody> {
        if let Some(progress) = self.progress.take()
            && arriving.remove(progress).is_none()
        {
            self.bytes = 0;
            return Err(UnreadBody::NoRoom);
        }
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Some(progress) = self.progress else { return self.budget.give_back(self.bytes) };
        // As in `add_of_visitor`, the lock is held until the bytes are given back.
        let mut arriving = self.budget.arriving.lock();
        // A body whose room was taken has nothing left to give back.
        if arriving.remove(progress).is_some() {
            self.budget.give_back(self.bytes);
        }
    }
}

/// The media type of a request's body as it was sent, without parameters: `Application/JSON`.
/// Compare it with [`str::eq_ignore_ascii_case`]. `None` without a `Content-Type`; `?`, which equals no
/// media type, if the `Content-Type` is not text.
pub fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(CONTENT_TYPE)?.to_str().unwrap_or("?");
    Some(value.split_once(';').map_or(value, |(essence, _)| essence).trim())
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, thread};

    use actix_web::{FromRequest, dev::Payload, error::PayloadError, test::TestRequest};
    use tokio::{sync::mpsc, task::JoinHandle};

    use super::*;

    const BYTES_MAX: usize = 1_000;

    /// A request of these chunks; one that is `None` breaks off.
    async fn read(
        bodies: &BodyBudget,
        announced: Option<&str>,
        chunks: Vec<Option<&[u8]>>,
        share: BudgetShare,
    ) -> Result<HeldBody, UnreadBody> {
        let mut request = TestRequest::post();
        if let Some(announced) = announced {
            request = request.insert_header((CONTENT_LENGTH, announced));
        }
        let request = request.to_http_request();
        let chunks: Vec<_> = chunks
            .into_iter()
            .map(|chunk| chunk.map(Bytes::copy_from_slice).ok_or(PayloadError::Incomplete(None)))
            .collect();
        let stream = futures_util::stream::iter(chunks);
        let mut payload = Payload::Stream { payload: stream.boxed_local() };
        let payload = web::Payload::from_request(&request, &mut payload).await.expect("a payload");
        bodies.read(request.headers(), payload, BYTES_MAX, share).await
    }

    #[actix_web::test]
    async fn a_large_body_is_charged_for_what_is_kept_of_it_on_its_way() {
        const BYTES_MAX: usize = 1 << 20;
        let small = SMALL_BYTES.to_string();
        let large = (SMALL_BYTES + 1).to_string();
        for (announced, expected) in [(small.as_str(), 4), (&large, OVERHEAD_BYTES + 4)] {
            let bodies = BodyBudget::new(BYTES_MAX + OVERHEAD_BYTES);
            let headers = TestRequest::post()
                .insert_header((CONTENT_LENGTH, announced))
                .to_http_request()
                .headers()
                .clone();
            let payload = |chunk: &'static [u8]| {
                let chunks = [Ok::<_, PayloadError>(Bytes::from_static(chunk))];
                Payload::Stream { payload: futures_util::stream::iter(chunks).boxed_local() }
            };
            let request = TestRequest::post().to_http_request();
            let first = web::Payload::from_request(&request, &mut payload(b"four")).await;
            let first = first.expect("a payload");
            let held = bodies.read(&headers, first, BYTES_MAX, BudgetShare::Whole).await;
            assert_eq!(held.expect("room").charge.bytes, expected);
            assert_eq!(bodies.used_bytes.load(Relaxed), 0, "given back");
            bodies.used_bytes.store(BYTES_MAX - 4, Relaxed);
            let second = web::Payload::from_request(&request, &mut payload(b"fives")).await;
            let second = second.expect("a payload");
            let refused = bodies.read(&headers, second, BYTES_MAX, BudgetShare::Whole).await.err();
            let is_large = expected > OVERHEAD_BYTES;
            assert_eq!(refused, is_large.then_some(UnreadBody::NoRoom));
        }
    }

    #[actix_web::test]
    async fn a_body_in_chunks_is_joined_up_to_its_limit() {
        let bodies = BodyBudget::new(10 * BYTES_MAX);
        let half = vec![b'x'; BYTES_MAX / 2];
        for (case, announced, chunks, expected) in [
            ("none", None, vec![], Ok(vec![])),
            ("one", None, vec![Some(b"one".as_slice())], Ok(b"one".to_vec())),
            (
                "three",
                None,
                vec![Some(b"one"), Some(b" two"), Some(b" three")],
                Ok(b"one two three".to_vec()),
            ),
            ("announced", Some("6"), vec![Some(b"one"), Some(b"two")], Ok(b"onetwo".to_vec())),
            ("an empty one", None, vec![Some(b"one"), Some(b""), Some(b"2")], Ok(b"one2".to_vec())),
            ("just the limit", None, vec![Some(&half), Some(&half)], Ok(half.repeat(2))),
            (
                "one byte more",
                None,
                vec![Some(&half), Some(&half), Some(b"x")],
                Err(UnreadBody::TooLarge),
            ),
            ("announced as too large", Some("1001"), vec![None], Err(UnreadBody::TooLarge)),
            ("beyond any number", Some("99999999999999999999"), vec![], Ok(vec![])),
            ("broken off", None, vec![Some(b"one"), None], Err(UnreadBody::BrokenOff)),
        ] {
            let read = read(&bodies, announced, chunks, BudgetShare::Whole).await;
            assert_eq!(read.map(|body| body.bytes().to_vec()), expected, "{case}");
            assert_eq!(bodies.used_bytes.load(Relaxed), 0, "{case}: nothing stays charged");
        }
    }

    #[actix_web::test]
    async fn all_bodies_share_the_budget_and_those_of_visitors_half_of_it() {
        let bodies = BodyBudget::new(1_000);
        let read = async |bytes: usize, share| {
            let body = vec![b'x'; bytes];
            read(&bodies, None, vec![Some(&body)], share).await
        };
        let first = read(400, BudgetShare::Half).await.expect("room");
        assert_eq!(read(101, BudgetShare::Half).await.map(drop), Err(UnreadBody::NoRoom));
        let second = read(600, BudgetShare::Whole).await.expect("the other half");
        assert_eq!(read(1, BudgetShare::Whole).await.map(drop), Err(UnreadBody::NoRoom));
        drop(first);
        let third = read(400, BudgetShare::Whole).await.expect("room again").into_charged_bytes();
        let part = third.slice(1..2);
        drop((second, third));
        assert_eq!(
            read(601, BudgetShare::Whole).await.map(drop),
            Err(UnreadBody::NoRoom),
            "a part is kept"
        );
        drop(part);
        assert!(read(1_000, BudgetShare::Whole).await.is_ok());
        assert_eq!(bodies.used_bytes.load(Relaxed), 0);
    }

    /// Reads a visitor's body whose chunks are sent through the returned channel.
    fn read_slowly(
        bodies: &BodyBudget,
    ) -> (mpsc::UnboundedSender<Bytes>, JoinHandle<Result<usize, UnreadBody>>) {
        let (chunks, mut arriving) = mpsc::unbounded_channel();
        let stream = futures_util::stream::poll_fn(move |cx| {
            arriving.poll_recv(cx).map(|chunk| chunk.map(Ok::<_, PayloadError>))
        });
        let bodies = bodies.clone();
        let reading = tokio::task::spawn_local(async move {
            let request = TestRequest::post().to_http_request();
            let mut payload = Payload::Stream { payload: stream.boxed_local() };
            let payload = web::Payload::from_request(&request, &mut payload).await.expect("one");
            let share = BudgetShare::Half;
            let held = bodies.read(request.headers(), payload, BYTES_MAX, share).await?;
            Ok(held.bytes().len())
        });
        (chunks, reading)
    }

    #[actix_web::test]
    async fn a_visitors_body_takes_the_room_of_the_one_without_progress_for_the_longest_time() {
        let bodies = BodyBudget::new(1_000);
        let send = async |chunks: &mpsc::UnboundedSender<Bytes>, bytes: usize| {
            let used = bodies.used_bytes.load(Relaxed);
            chunks.send(Bytes::from(vec![b'x'; bytes])).expect("it is read");
            while bodies.used_bytes.load(Relaxed) == used {
                tokio::task::yield_now().await;
            }
        };
        let whole = async |bytes: usize, share| {
            let body = vec![b'x'; bytes];
            read(&bodies, None, vec![Some(&body)], share).await
        };
        let (first, first_read) = read_slowly(&bodies);
        let (second, second_read) = read_slowly(&bodies);
        send(&first, 200).await;
        send(&second, 200).await;
        send(&first, 50).await;
        let third = whole(100, BudgetShare::Half).await.expect("the room of the second");
        assert_eq!(second_read.await.expect("no panic"), Err(UnreadBody::NoRoom));
        assert_eq!(bodies.used_bytes.load(Relaxed), 250 + 100);

        let applications = whole(600, BudgetShare::Whole).await.expect("the other half");
        assert_eq!(whole(1, BudgetShare::Half).await.map(drop), Err(UnreadBody::NoRoom));
        drop((third, applications));
        send(&first, 50).await;
        drop(first);
        assert_eq!(first_read.await.expect("no panic"), Ok(300), "its end would not have helped");
        assert_eq!(bodies.used_bytes.load(Relaxed), 0);
        assert_eq!(bodies.arriving.lock().bytes, 0);
    }

    #[test]
    fn a_visitors_body_finds_the_room_of_one_that_makes_progress_at_the_same_moment() {
        let bodies = BodyBudget::new(1_000);
        let is_over = AtomicBool::new(false);
        let charge = || Charge::none(&bodies, BudgetShare::Half).0;
        let make_progress = || {
            while !is_over.load(Relaxed) {
                let mut charge = charge();
                let mut charged = charge.add(300);
                while charged.is_ok() && !is_over.load(Relaxed) {
                    charged = charge.add(0);
                }
            }
        };
        let refused = thread::scope(|scope| {
            scope.spawn(make_progress);
            let is_refused = |_: &usize| {
                while bodies.used_bytes.load(Relaxed) == 0 {
                    thread::yield_now();
                }
                charge().add(300).is_err()
            };
            let refused = (0..100).filter(is_refused).count();
            is_over.store(true, Relaxed);
            refused
        });
        assert_eq!(refused, 0, "the other body can make room each time");
        assert_eq!(bodies.used_bytes.load(Relaxed), 0);
        assert_eq!(bodies.arriving.lock().bytes, 0);
    }

    #[test]
    fn a_media_type_is_what_stands_before_the_parameters() {
        for (given, expected) in [
            (Some("application/json"), Some("application/json")),
            (Some("Application/X-NDJSON; charset=utf-8"), Some("Application/X-NDJSON")),
            (Some(" application/json ;charset"), Some("application/json")),
            (Some("application/json;"), Some("application/json")),
            (Some(""), Some("")),
            (Some("caf\u{e9}"), Some("?")),
            (None, None),
        ] {
            let mut request = TestRequest::post();
            if let Some(given) = given {
                request = request.insert_header((CONTENT_TYPE, given));
            }
            assert_eq!(media_type(request.to_http_request().headers()), expected, "{given:?}");
        }
    }
}
