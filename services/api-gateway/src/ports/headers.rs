//! The headers of requests to servers in boxes, and of their answers. Pure.
//!
//! * I1. No credential of AgentBox reaches a box.
//! * I2. A server in a box cannot act for the origin that serves its answer.
//! * I3. Headers of one connection are not those of the next (RFC 9110, section 7.6.1).

use std::net::IpAddr;

use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, EXPECT, HOST,
    STRICT_TRANSPORT_SECURITY, TE, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Version};

use super::cookies::remove_preview_cookie;
use crate::edge::list_header::elements;
use crate::principal::credential::{OWN_HEADER, remove_subprotocols};
use crate::principal::signature::is_own_jwt;

/// The beginning of AgentBox's own request headers, all of which stay here.
const OWN_HEADERS: &str = "x-agentbox-";
/// The beginning of an API key.
const KEY_PREFIX: &[u8] = b"agentbox_";
const FORWARDED: &str = "x-forwarded-";

/// The headers of one connection, besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers of an answer that a browser applies to more than this answer: to the whole origin, its
/// domain, or later connections.
pub(crate) const OF_THE_ORIGIN: [HeaderName; 5] = [
    STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("alt-svc"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
];

/// What a server in a box is told about the original request.
#[derive(Clone, Debug)]
pub(crate) struct Original {
    pub host: Option<HeaderValue>,
    pub client: IpAddr,
    pub is_over_tls: bool,
}

/// The protocol that a request asks to change to. HTTP/2 is not among them: see `protocol=h2c`.
pub(crate) fn upgrade(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    let asked = headers.get(UPGRADE)?;
    let is_h2c = asked.as_bytes().to_ascii_lowercase().starts_with(b"h2c");
    let is_asked =
        elements(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    (version == Version::HTTP_11 && is_asked && !is_h2c).then(|| asked.clone())
}

/// Removes the headers of the connection.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = elements(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        .collect();
    if headers.contains_key(TRANSFER_ENCODING) {
        // The length of the message is another one (RFC 9112, section 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Changes the headers of a request into those for port `port` of a box. `keeps_authorization`: the
/// caller's credential is another header, so that this one is for the server in the box.
pub(crate) fn to_box(
    headers: &mut HeaderMap,
    original: &Original,
    port: u16,
    keeps_authorization: bool,
    upgrade: Option<&HeaderValue>,
) {
    let takes_trailers = elements(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    remove_hop_by_hop(headers);
    headers.remove(EXPECT);
    if !keeps_authorization {
        headers.remove(AUTHORIZATION);
    }
    remove_own_credential(headers);
    remove_subprotocols(headers);
    remove_preview_cookie(headers);
    let not_for_boxes: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.starts_with(OWN_HEADERS)
                || name.starts_with(FORWARDED)
                || matches!(name, "forwarded" | "x-real-ip")
        })
        .cloned()
        .collect();
    for name in not_for_boxes {
        headers.remove(name);
    }
    let text = |text: String| HeaderValue::try_from(text).ok();
    let scheme = if original.is_over_tls {
        "https"
    } else {
        "http"
    };
    for (name, value) in [
        (HOST, text(format!("localhost:{port}"))),
        (
            HeaderName::from_static("x-forwarded-host"),
            original.host.clone(),
        ),
        (
            HeaderName::from_static("x-forwarded-proto"),
            Some(HeaderValue::from_static(scheme)),
        ),
        (
            HeaderName::from_static("x-forwarded-for"),
            text(original.client.to_string()),
        ),
        (UPGRADE, upgrade.cloned()),
        (
            TE,
            takes_trailers.then(|| HeaderValue::from_static("trailers")),
        ),
    ] {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    if upgrade.is_some() {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else if takes_trailers {
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Whether the caller's credential is in a header of its own.
pub(crate) fn has_own_header(headers: &HeaderMap) -> bool {
    headers.contains_key(OWN_HEADER)
}

/// Removes an API key or a token of AgentBox that was sent by mistake.
fn remove_own_credential(headers: &mut HeaderMap) {
    let is_own = headers.get_all(AUTHORIZATION).iter().any(|value| {
        let mut words = value.as_bytes().split(u8::is_ascii_whitespace);
        words.any(|word| word.starts_with(KEY_PREFIX) || is_own_jwt(word))
    });
    if is_own {
        headers.remove(AUTHORIZATION);
    }
}

/// Changes the headers of an answer of a box, without those of its connection, into those of an answer
/// of the API's origin.
pub(super) fn from_box(headers: &mut HeaderMap) {
    let of_the_origin: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.starts_with("access-control-")
                || matches!(
                    name,
                    "set-cookie" | "set-cookie2" | "service-worker-allowed"
                )
        })
        .chain(&OF_THE_ORIGIN)
        .cloned()
        .collect();
    for name in of_the_origin {
        headers.remove(name);
    }
    // In addition to a policy of the box: browsers apply both.
    headers.append(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
}

/// What tests of headers share.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::testing::map;
    use super::*;

    fn original() -> Original {
        Original {
            host: Some(HeaderValue::from_static("api.example:8443")),
            client: IpAddr::from([192, 0, 2, 7]),
            is_over_tls: true,
        }
    }

    /// The headers that a request with `pairs` has in the box, without those that every one has.
    fn in_box(pairs: &[(&str, &str)], keeps_authorization: bool) -> Vec<String> {
        let mut headers = map(pairs);
        let upgrade = upgrade(&headers, Version::HTTP_11);
        to_box(
            &mut headers,
            &original(),
            8080,
            keeps_authorization,
            upgrade.as_ref(),
        );
        for (name, value) in [
            ("host", "localhost:8080"),
            ("x-forwarded-host", "api.example:8443"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-for", "192.0.2.7"),
        ] {
            assert_eq!(headers.get_all(name).iter().count(), 1, "{name}");
            assert_eq!(headers.remove(name).unwrap(), value, "{name}");
        }
        headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn no_credential_reaches_the_box() {
        let none: [&str; 0] = [];
        assert_eq!(in_box(&[("authorization", "Bearer secret")], false), none);
        assert_eq!(
            in_box(&[("authorization", "Bearer of-the-app")], true),
            ["authorization: Bearer of-the-app"]
        );
        assert_eq!(
            in_box(&[("authorization", "bearer agentbox_k")], true),
            none
        );
        assert_eq!(
            in_box(&[("authorization", "Bearer agentbox_k ")], true),
            none
        );
        for (issuer, is_kept) in [("agentbox", false), ("of-the-app", true)] {
            let claims = format!(r#"{{"iss":"{issuer}","aud":"agentbox-api","sub":"user-0"}}"#);
            let token = format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
            let headers = in_box(&[("authorization", &token)], true);
            assert_eq!(!headers.is_empty(), is_kept, "{issuer}");
        }
        for own in ["x-agentbox-token", "X-Agentbox-Preview-Token"] {
            assert_eq!(in_box(&[(own, "secret")], true), none, "{own}");
        }
        for (cookies, kept) in [
            ("__Host-agentbox-preview=s", vec![]),
            (
                "a=1; __Host-agentbox-preview=s; b=2",
                vec!["cookie: a=1; b=2"],
            ),
            ("a=1;__HOST-agentbox-preview=s", vec!["cookie: a=1"]),
            (
                "a=__Host-agentbox-preview",
                vec!["cookie: a=__Host-agentbox-preview"],
            ),
        ] {
            assert_eq!(in_box(&[("cookie", cookies)], true), kept, "{cookies}");
        }
        for (offered, kept) in [
            ("Authorization, secret", vec![]),
            ("Authorization, , secret", vec![]),
            (
                "Authorization, secret, chat",
                vec!["sec-websocket-protocol: chat"],
            ),
            (
                "chat, base64url.bearer.authorization.agentbox.c2VjcmV0",
                vec!["sec-websocket-protocol: chat"],
            ),
        ] {
            let headers = in_box(&[("sec-websocket-protocol", offered)], false);
            assert_eq!(headers, kept, "{offered}");
        }
    }

    #[test]
    fn cookies_that_http2_has_split_are_one_header() {
        let split = [
            ("cookie", "a=1"),
            ("cookie", "__Host-agentbox-preview=s"),
            ("cookie", "b=2; c=3"),
        ];
        assert_eq!(in_box(&split, true), ["cookie: a=1; b=2; c=3"]);
    }

    #[test]
    fn headers_of_the_connection_and_of_earlier_proxies_are_replaced() {
        let mut headers = in_box(
            &[
                ("connection", "close, X-Hop"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("content-length", "5"),
                ("transfer-encoding", "chunked"),
                ("expect", "100-continue"),
                ("host", "api.example:8443"),
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-host", "evil.example"),
                ("x-forwarded-prefix", "/x"),
                ("forwarded", "for=10.0.0.1"),
                ("traceparent", "00-1-2-01"),
                ("accept", "*/*"),
            ],
            false,
        );
        headers.sort();
        assert_eq!(headers, ["accept: */*", "traceparent: 00-1-2-01"]);
        let sized = in_box(&[("content-length", "5")], false);
        assert_eq!(sized, ["content-length: 5"]);
        let mut headers = in_box(&[("te", "trailers, deflate")], false);
        headers.sort();
        assert_eq!(headers, ["connection: te", "te: trailers"]);
    }

    #[test]
    fn upgrade_is_passed_on_except_to_http2() {
        let asks = |connection: &str, protocol: &str, version| {
            let headers = map(&[("connection", connection), ("upgrade", protocol)]);
            upgrade(&headers, version).is_some()
        };
        assert!(asks("keep-alive, Upgrade", "websocket", Version::HTTP_11));
        assert!(!asks("keep-alive", "websocket", Version::HTTP_11));
        assert!(!asks("upgrade", "h2c", Version::HTTP_11));
        assert!(!asks("upgrade", "websocket", Version::HTTP_2));
        let pairs = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let mut headers = in_box(&pairs, false);
        headers.sort();
        assert_eq!(headers, ["connection: upgrade", "upgrade: websocket"]);
    }

    #[test]
    fn answer_of_a_box_has_no_power_over_the_origin() {
        let mut headers = map(&[
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("strict-transport-security", "max-age=0"),
            ("service-worker-allowed", "/"),
            ("clear-site-data", "\"*\""),
            ("access-control-allow-origin", "*"),
            ("access-control-max-age", "1"),
            ("alt-svc", "h3=\":443\""),
            ("content-security-policy", "default-src *"),
            ("x-ratelimit-limit", "of the app"),
        ]);
        from_box(&mut headers);
        let policies: Vec<_> = headers.get_all(CONTENT_SECURITY_POLICY).iter().collect();
        assert_eq!(policies, ["default-src *", "sandbox"]);
        headers.remove(CONTENT_SECURITY_POLICY);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-ratelimit-limit"]);
    }
}
