//! The process: the arguments, an exit code. Everything else is the library's.

/// Against glibc's: a third less CPU per event where many are small (`topics-many`), and less memory
/// per session (docs/performance.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    herald::cli::run(std::env::args_os())
}
