//! The process: an allocator, the arguments, an exit code. Everything else is the library's.

/// Many small frames on several threads: glibc's allocator is slower at them and keeps more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    herald::cli::run(std::env::args_os())
}
