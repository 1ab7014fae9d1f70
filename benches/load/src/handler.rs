//! The cost of HTTP alone: a bare actix-web handler in a process of its own.

use std::io::{self, Write};

use actix_web::{App, HttpResponse, HttpServer, web};

/// The argument that makes a program of this folder the bare handler.
pub const ARGUMENT: &str = "handler";

/// Reads each body and answers `{}`, until the process is ended.
///
/// # Errors
/// The errors of its sockets and its standard output.
pub fn run() -> io::Result<()> {
    actix_web::rt::System::new().block_on(async {
        let app = || {
            App::new().route(
                "/api/apps/{slug}/events",
                web::post().to(|_: web::Bytes| async {
                    HttpResponse::Ok().content_type("application/json").body("{}")
                }),
            )
        };
        let server = HttpServer::new(app).bind(("127.0.0.1", 0))?;
        let address = server.addrs().first().copied().ok_or(io::ErrorKind::AddrNotAvailable)?;
        writeln!(io::stdout(), "http://{address}")?;
        server.run().await
    })
}
