//! The process: the arguments, an exit code. Everything else is the library's.

/// The allocator, in place of glibc's: that one took 28 % of the CPU of the bench scenario `topics-many`, and
/// its memory grew as clients came and went (docs/performance.md).
///
/// Its feature `background_threads` returns unused pages to the system on threads of its own. Without
/// them only further allocations do so: after an attack a quiet server kept up to 1.1 GB.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The options with which the allocator starts: it returns pages within 2 s of their last use. Within
/// its own default of 10 s, an attack that has the server allocate and free large bodies raised the
/// memory by 40 MB more. `_RJEM_MALLOC_CONF` in the environment overrides them.
///
/// The allocator looks for a symbol of this name, which must point to a text that ends with a zero byte.
#[allow(unsafe_code, reason = "only this name sets the options; no other crate defines it")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 20] = b"dirty_decay_ms:2000\0";

fn main() -> std::process::ExitCode {
    herald::cli::run(std::env::args_os())
}
