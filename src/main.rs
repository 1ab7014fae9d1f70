//! The process: the arguments, an exit code. Everything else is the library's.

fn main() -> std::process::ExitCode {
    herald::cli::run(std::env::args_os())
}
