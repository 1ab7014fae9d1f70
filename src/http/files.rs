//! Files that are built into the program, with the headers that restrict what their pages may do.

use std::{cell::OnceCell, rc::Rc};

use actix_web::{HttpRequest, HttpResponse, Resource, http::header};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::read;

/// One file, and the headers that tell browsers how to treat it.
#[derive(Debug, Clone, Copy)]
pub(super) struct File {
    pub(super) content_type: &'static str,
    pub(super) bytes: &'static [u8],
    pub(super) content_security_policy: &'static str,
}

impl File {
    /// A resource that answers with this file.
    pub(super) fn at(self, path: &str) -> Resource {
        // Hashing all files on every thread is a large part of a start of a debug build.
        let etag = Rc::new(OnceCell::new());
        let serve = move |request: HttpRequest| {
            let response = self.answer(etag.get_or_init(|| self.etag()), &request);
            async move { response }
        };
        read(path, serve)
    }

    pub(super) fn etag(self) -> String {
        format!("\"{}\"", URL_SAFE_NO_PAD.encode(&Sha256::digest(self.bytes)[..12]))
    }

    /// Answers with the file, unless the browser has the same version. The browser asks each time, so
    /// that an upgrade shows at once.
    fn answer(self, etag: &str, request: &HttpRequest) -> HttpResponse {
        let known = request.headers().get_all(header::IF_NONE_MATCH);
        let mut known =
            known.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
        let is_known = known.any(|tag| matches!(tag.trim(), "*") || tag.trim().ends_with(etag));
        let mut response = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response
            .insert_header((header::CACHE_CONTROL, "no-cache"))
            .insert_header((header::ETAG, etag.to_owned()))
            .insert_header((header::CONTENT_SECURITY_POLICY, self.content_security_policy))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((header::X_FRAME_OPTIONS, "DENY"))
            .insert_header((header::REFERRER_POLICY, "no-referrer"));
        if is_known {
            return response.finish();
        }
        response.content_type(self.content_type).body(self.bytes)
    }
}
