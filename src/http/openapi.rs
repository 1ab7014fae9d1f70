//! `GET /api/openapi.json`: the description of this API, an OpenAPI 3.1 document.
//!
//! The document is written by hand and embedded. A test compares it with the table of URLs, in both
//! directions, and the tests of the whole server send requests that are made from it.

use actix_web::{
    HttpResponse,
    http::header::{CACHE_CONTROL, ContentType},
};

/// The document.
pub const DOCUMENT: &str = include_str!("openapi.json");

/// Answers the document. It needs no login, because it is the same for every server.
pub async fn show() -> HttpResponse {
    HttpResponse::Ok()
        .content_type(ContentType::json())
        .insert_header((CACHE_CONTROL, "no-cache"))
        .body(DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use actix_web::{ResponseError, http::Method, test::TestRequest};
    use serde_json::{Map, Value};

    use super::*;
    use crate::{
        form::FormError,
        http::{error::ApiError, testing::TestServices},
    };

    /// Every method that a path may take, and one that none takes. `HEAD` goes with `GET`.
    const METHODS: [&str; 7] = ["get", "put", "post", "patch", "delete", "options", "trace"];

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).expect("JSON")
    }

    fn object(value: &Value) -> &Map<String, Value> {
        value.as_object().expect("an object")
    }

    /// Each operation with its path and its method.
    fn operations(document: &Value) -> Vec<(String, String, Value)> {
        let of_path = |(path, item): (&String, &Value)| {
            let methods = METHODS.iter().filter_map(|method| {
                Some((path.clone(), (*method).to_owned(), item.get(*method)?.clone()))
            });
            methods.collect::<Vec<_>>()
        };
        object(&document["paths"]).iter().flat_map(of_path).collect()
    }

    #[test]
    fn every_operation_has_a_name_a_summary_its_credentials_and_answers() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut names = BTreeSet::new();
        for (path, method, operation) in operations(&document) {
            let operation = object(&operation);
            assert!(names.insert(operation["operationId"].to_string()), "{method} {path}");
            assert!(operation["summary"].as_str().is_some_and(|s| s.ends_with('.')), "{path}");
            let is_open = operation["security"].as_array().is_some_and(Vec::is_empty);
            let answers = object(&operation["responses"]);
            assert!(answers.keys().any(|status| status.starts_with('2')), "{method} {path}");
            // A login has its credentials in its body.
            let is_login = operation["operationId"] == "logIn";
            assert_eq!(answers.contains_key("401"), !is_open || is_login, "{method} {path}");
            // The type of a signed body is not checked.
            let is_signed = operation["tags"][0] == "Pusher";
            let is_typed = answers.contains_key("413") == answers.contains_key("415");
            assert!(is_typed || is_signed, "{method} {path}: every body has a limit and a type");
            assert_eq!(
                operation.contains_key("requestBody"),
                answers.contains_key("413"),
                "{path}"
            );
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_component_is_used() {
        let document = document();
        let mut used = BTreeSet::new();
        let mut parts = vec![&document];
        while let Some(part) = parts.pop() {
            match part {
                Value::Object(members) => {
                    if let Some(Value::String(reference)) = members.get("$ref") {
                        let pointer = reference.strip_prefix('#').expect("within the document");
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                        used.insert(pointer.to_owned());
                    }
                    parts.extend(members.values());
                }
                Value::Array(items) => parts.extend(items),
                _ => {}
            }
        }
        for kind in ["schemas", "responses", "parameters"] {
            for name in object(&document["components"][kind]).keys() {
                // Every address answers 405, which stands in the description of them all.
                let is_used = used.contains(&format!("/components/{kind}/{name}"));
                assert!(is_used || name == "MethodNotAllowed", "{name}");
            }
        }
    }

    #[test]
    fn every_status_of_the_error_table_is_described() {
        let document = document();
        let described = object(&document["components"]["responses"]);
        for (error, name) in [
            (ApiError::Malformed("".into()), "BadRequest"),
            (ApiError::Unauthorized, "Unauthorized"),
            (ApiError::Forbidden(""), "Forbidden"),
            (ApiError::NotFound, "NotFound"),
            (ApiError::MethodNotAllowed { allow: "" }, "MethodNotAllowed"),
            (ApiError::TooLarge { what: "", bytes_max: 0 }, "TooLarge"),
            (ApiError::UnsupportedMediaType, "UnsupportedMediaType"),
            (ApiError::invalid("", ""), "Invalid"),
            (FormError::BadName { name: String::new(), fault: "" }.into(), "Invalid"),
            (ApiError::TooManyRequests { retry_after: Default::default() }, "TooManyRequests"),
            (ApiError::Unavailable, "Unavailable"),
        ] {
            let response = error.error_response();
            let shown = object(&described[name]);
            let headers = shown.get("headers").map(object);
            for (header, _) in response.headers().iter().filter(|(h, _)| *h != "content-type") {
                let is_shown = headers.is_some_and(|all| {
                    all.keys().any(|name| name.eq_ignore_ascii_case(header.as_str()))
                });
                assert!(is_shown, "{name} has {header}");
            }
            // The status of a component is that by which the operations refer to it.
            let pointer = format!("#/components/responses/{name}");
            for (path, method, operation) in operations(&document) {
                for (status, answer) in object(&operation["responses"]) {
                    if answer.get("$ref").is_some_and(|reference| *reference == pointer) {
                        assert_eq!(*status, response.status().as_str(), "{method} {path}");
                    }
                }
            }
        }
    }

    #[actix_web::test]
    async fn each_address_takes_exactly_the_methods_that_are_described() {
        let services = TestServices::start().await;
        let document = document();
        for (path, item) in object(&document["paths"]) {
            let address = path.replace("{slug}", "foo-app").replace("{scope}", "public");
            let address = address.replace("{channel}", "room").replace("{id}", "none");
            let address = address.replace("{app}", "foo-app").replace("{user}", "1");
            let described: Vec<_> =
                METHODS.iter().filter(|method| item.get(**method).is_some()).collect();
            for method in METHODS {
                let upper = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
                // Admin calls are judged by their credentials before their method.
                let request = TestRequest::default().method(upper).uri(&address).insert_header((
                    "authorization",
                    crate::http::testing::basic("pusher_admin_username", "pusher_admin_password"),
                ));
                let response = services.respond(request).await;
                let is_taken = response.status() != 405;
                assert_eq!(is_taken, described.contains(&&method), "{method} {path}");
                if !is_taken {
                    let allow = response.headers().get("allow").expect("an Allow header");
                    let allowed = allow.to_str().expect("text").to_lowercase();
                    let mut allowed: Vec<_> =
                        allowed.split(", ").filter(|m| *m != "head").collect();
                    allowed.sort_unstable();
                    let mut expected: Vec<_> = described.iter().map(|method| **method).collect();
                    expected.sort_unstable();
                    assert_eq!(allowed, expected, "{path}");
                }
            }
        }
    }

    /// All sources of this room. The files below a folder come after the folder's own files.
    fn sources() -> Vec<String> {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http")];
        let mut all = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder of this room") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    all.push(fs::read_to_string(path).expect("a source of this room"));
                }
            }
        }
        all
    }

    /// The paths that the sources of this room give to the router, apart from those of files.
    fn routed() -> BTreeSet<String> {
        let mut routed = BTreeSet::new();
        for code in sources() {
            let code = code.split("#[cfg(test)]\nmod tests").next().expect("its beginning");
            let given = |call: &str| -> BTreeSet<String> {
                let paths = code.split(call).skip(1).filter_map(|rest| rest.split('"').next());
                // A pattern of a parameter is the router's own.
                paths.map(|path| path.replace("{channel:.+}", "{channel}")).collect()
            };
            for call in ["post(\"", "posted(\"", "read(\"", "resource(\"", "below(prefix, \""] {
                for path in given(call) {
                    match path.as_str() {
                        // The address of its scope.
                        "" => routed.extend(given("scope(\"")),
                        path if path.starts_with('/') => drop(routed.insert(path.to_owned())),
                        _ => {}
                    }
                }
            }
        }
        routed
    }

    #[test]
    fn every_address_of_the_router_is_described() {
        let document = document();
        let described: Vec<_> = object(&document["paths"]).keys().collect();
        let routed = routed();
        assert!(routed.len() > 10, "{routed:?}");
        for path in &routed {
            let is_described = described.iter().any(|known| known.ends_with(path.as_str()));
            assert!(is_described, "{path} is not described");
        }
        for path in described {
            let is_routed = routed.iter().any(|known| path.ends_with(known.as_str()));
            assert!(is_routed, "there is no {path}");
        }
    }
}
