//! The process: the arguments, an exit code. Everything else is the library's.

/// Against glibc's: 28 % of the CPU of `topics-many` went into that allocator, and its memory grew as
/// clients came and went (docs/performance.md).
///
/// Its feature `background_threads` returns unused pages to the system within 10 s on threads of its
/// own. Without them only further allocations do so: after an attack a quiet server kept up to 1.1 GB.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    herald::cli::run(std::env::args_os())
}
