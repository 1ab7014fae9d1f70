//! TLS with a private authority.

use std::{path::Path, process::Command};

use super::{OWNER, node_at, redis_server::RedisServer, settings};
use crate::{
    engine::{Engine as _, RedisEngine, contract},
    metrics::Metrics,
};

/// Makes an authority, and a certificate for 127.0.0.1 that it signed.
fn make_certificates(folder: &Path) {
    let steps: [&[&str]; 3] = [
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ],
        &[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=redis",
            "-keyout",
            "redis.key",
            "-out",
            "redis.csr",
        ],
        &[
            "x509",
            "-req",
            "-in",
            "redis.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "names",
            "-out",
            "redis.pem",
        ],
    ];
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").expect("a file");
    for step in steps {
        let made = Command::new("openssl").args(step).current_dir(folder).output();
        let made = made.expect("openssl is needed (Debian: apt-get install openssl)");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

#[tokio::test]
async fn a_private_authority_is_trusted_if_it_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    make_certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let port = super::redis_server::free_port().to_string();
    let server = RedisServer::start_on(
        port.parse().expect("a port"),
        &[
            "--port",
            "0",
            "--tls-port",
            &port,
            "--tls-cert-file",
            &path("redis.pem"),
            "--tls-key-file",
            &path("redis.key"),
            "--tls-ca-cert-file",
            &path("ca.pem"),
            "--tls-auth-clients",
            "no",
        ],
    );
    let url = format!("rediss://127.0.0.1:{}", server.port);
    let ca = path("ca.pem");
    let (node, heard) =
        (node_at(&url, &[("HERALD__ENGINE__CA_FILE", &ca)]).await, contract::Heard::new());
    node.follow(heard.clone());
    contract::up(&*node).await;
    contract::append(&*node, 0, "a").await.expect("appended");
    heard.until(|told| told.bodies(0) == ["a"]).await;

    let more = [("HERALD__ENGINE__CONNECT_RETRY", "0s")];
    let started = RedisEngine::start(&settings(&url, &more), OWNER, Metrics::new(0)).await;
    let text = started.expect_err("the system does not know the authority").to_string();
    assert!(text.contains("certificate") || text.contains("UnknownIssuer"), "{text}");
}
