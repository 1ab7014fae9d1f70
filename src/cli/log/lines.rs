//! The queue of lines for standard error, whose reader may have stopped.
//!
//! A pipe without an active reader is full after 64 KB, and a write to it then blocks for ever.
//! Therefore only a separate thread writes to standard error: all other threads put their lines
//! into a bounded queue, and a line that finds no room is dropped and counted.

use std::{
    io::{self, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use crate::metrics::Counter;

/// The most bytes of lines that may wait. The writer thread may hold the same number again.
const BYTES_MAX: usize = 1_048_576;
/// The number of bytes that a pipe writes atomically (`PIPE_BUF` of Linux).
const WRITE_BYTES_MAX: usize = 4_096;
/// The bytes of memory that are kept for lines when none wait.
const IDLE_BYTES: usize = 16_384;

/// The queue of lines for standard error. Cheap to clone; all clones share one queue.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines, one after the other.
    waiting: Vec<u8>,
    is_writing: bool,
    dropped: Counter,
}

impl Lines {
    /// Starts the thread that writes to `out`. If the thread cannot be started, no line is written.
    pub(in crate::cli) fn to(out: impl Write + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let shared = lines.0.clone();
        let writer = thread::Builder::new().name("herald-log".into());
        // A process that cannot start a thread for its log can report that only by its exit code.
        writer.spawn(move || shared.write(out)).ok();
        lines
    }

    /// Queues whole lines: either all or none. Never waits for the reader.
    pub(in crate::cli) fn push(&self, lines: &[u8]) {
        let mut state = self.0.state.lock();
        if state.waiting.len() + lines.len() > BYTES_MAX {
            state.dropped.inc_by(count(lines));
            return;
        }
        state.waiting.extend_from_slice(lines);
        self.0.changed.notify_all();
    }

    /// Waits until all lines are written, but no longer than `within`.
    pub(in crate::cli) fn flush(&self, within: Duration) {
        let is_busy = |state: &mut State| !state.waiting.is_empty() || state.is_writing;
        self.0.changed.wait_while_for(&mut self.0.state.lock(), is_busy, within);
    }

    /// Counts dropped lines in `counter` from now on, and adds those dropped before.
    pub(in crate::cli) fn count_dropped_in(&self, counter: &Counter) {
        let mut state = self.0.state.lock();
        counter.inc_by(state.dropped.get());
        state.dropped = counter.clone();
    }
}

/// Queues the records of the logger, which writes each in one piece.
impl Write for Lines {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.push(record);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Writes lines as they arrive, for ever.
    fn write(&self, mut out: impl Write) {
        let (mut batch, mut told) = (Vec::new(), 0);
        loop {
            self.next(&mut batch);
            let lost = write_lines(&mut out, &batch);
            let dropped = {
                let state = self.state.lock();
                state.dropped.inc_by(lost);
                state.dropped.get()
            };
            // If the output accepts nothing any more, this line would be lost too.
            if lost == 0 && dropped > told {
                log::warn!(
                    "{} log lines were dropped: standard error was not read in time",
                    dropped - told
                );
                told = dropped;
            }
        }
    }

    /// Waits for lines and takes all that are queued.
    fn next(&self, batch: &mut Vec<u8>) {
        batch.clear();
        batch.shrink_to(IDLE_BYTES);
        let mut state = self.state.lock();
        state.is_writing = false;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |state| state.waiting.is_empty());
        std::mem::swap(batch, &mut state.waiting);
        state.is_writing = true;
    }
}

/// Writes lines in pieces that a pipe writes atomically, unless a single line is longer. Returns
/// the number of lines that were lost because `out` accepts no more.
fn write_lines(out: &mut impl Write, lines: &[u8]) -> u64 {
    let mut rest = lines;
    while !rest.is_empty() {
        let (piece, others) = rest.split_at(piece_bytes(rest));
        if out.write_all(piece).is_err() {
            return count(rest);
        }
        rest = others;
    }
    0
}

/// The number of bytes of `lines` to write at once: as many whole lines as fit, but at least one.
fn piece_bytes(lines: &[u8]) -> usize {
    let end = |part: &[u8]| part.iter().rposition(|&b| b == b'\n').map(|at| at + 1);
    let fitting = end(&lines[..lines.len().min(WRITE_BYTES_MAX)]);
    let first = || lines.iter().position(|&b| b == b'\n').map(|at| at + 1);
    fitting.or_else(first).unwrap_or(lines.len())
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|&&b| b == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A reader that takes each piece only when the test tells it to.
    struct Slow {
        pieces: mpsc::Sender<Vec<u8>>,
        turns: mpsc::Receiver<()>,
    }

    impl Write for Slow {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.pieces.send(piece.to_vec()).expect("the test reads");
            self.turns.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Lines, mpsc::Receiver<Vec<u8>>, mpsc::Sender<()>) {
        let (pieces, taken) = mpsc::channel();
        let (turn, turns) = mpsc::channel();
        (Lines::to(Slow { pieces, turns }), taken, turn)
    }

    #[test]
    fn while_nobody_reads_lines_wait_up_to_a_bound_and_are_then_dropped_whole() {
        let (lines, taken, turn) = slow();
        let dropped = Counter::default();
        lines.push(b"first\n");
        assert_eq!(taken.recv_timeout(SOON).expect("a piece"), b"first\n");
        // From here on the writer is blocked on the first line.
        let line = [&[b'x'; 1_023][..], b"\n"].concat();
        for _ in 0..BYTES_MAX / line.len() + 3 {
            lines.push(&line);
        }
        lines.count_dropped_in(&dropped);
        assert_eq!(dropped.get(), 3, "those before the counter was there");
        lines.push(&line);
        assert_eq!(dropped.get(), 4);
        lines.flush(Duration::ZERO);

        drop(turn);
        lines.flush(SOON);
        let all = BYTES_MAX / line.len() + 5;
        assert_eq!(dropped.get(), all as u64, "nobody reads any more");
    }

    #[test]
    fn a_flush_ends_when_all_is_written() {
        let (lines, taken, turn) = slow();
        for n in 0..100 {
            lines.push(format!("line {n}\n").as_bytes());
            turn.send(()).expect("a writer");
        }
        lines.flush(SOON);
        let written: Vec<u8> = taken.try_iter().flatten().collect();
        let expected: String = (0..100).map(|n| format!("line {n}\n")).collect();
        assert_eq!(String::from_utf8_lossy(&written), expected);
    }

    #[test]
    fn lines_are_written_in_pieces_that_end_with_a_line() {
        for (case, lengths, expected) in [
            ("one", &[10][..], &[10][..]),
            ("some that fit", &[1_000, 2_000, 1_096], &[4_096]),
            ("one too many", &[1_000, 2_000, 1_097], &[3_000, 1_097]),
            ("one that is too long", &[5_000, 10], &[5_000, 10]),
            ("too long behind a short one", &[10, 5_000], &[10, 5_000]),
        ] {
            let line = |&length: &usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
            let lines: Vec<u8> = lengths.iter().flat_map(line).collect();
            let (mut rest, mut pieces) = (lines.as_slice(), Vec::new());
            while !rest.is_empty() {
                let piece = piece_bytes(rest);
                pieces.push(piece);
                rest = &rest[piece..];
            }
            assert_eq!(pieces, expected, "{case}");
        }
    }
}
