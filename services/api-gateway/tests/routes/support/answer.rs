//! Responses of the API. Each is checked for the headers and fields that every response has.

use reqwest::header::HeaderMap;
use serde_json::Value;

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn read(response: reqwest::Response) -> Self {
        check_head(response.status().as_u16(), response.headers());
        let answer = Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.unwrap(),
        };
        if answer.status >= 400 {
            answer.check_error();
        }
        answer
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        header(&self.headers, name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    pub fn has_header(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }

    /// Asserts the status and returns the body.
    #[track_caller]
    pub fn expect_status(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        if self.text.is_empty() {
            Value::Null
        } else {
            self.json()
        }
    }

    /// Asserts the status and the code of an error, and returns its message.
    #[track_caller]
    pub fn expect_error(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        let body = self.json();
        assert_eq!(body["error"], code, "{body}");
        body["message"].as_str().unwrap().to_owned()
    }

    /// Checks `{"error", "message", "code"}`, and the headers that belong to the status.
    fn check_error(&self) {
        let body = self.json();
        assert_eq!(body["code"], self.status, "{body}");
        assert!(body["error"].is_string(), "{body}");
        assert!(!body["message"].as_str().unwrap().is_empty(), "{body}");
        // The body of an unhealthy system has further fields.
        if body.get("kubernetes").is_none() {
            assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
        }
        assert_eq!(
            self.has_header("www-authenticate"),
            self.status == 401,
            "{body}"
        );
        let has_retry_after = matches!(self.status, 429 | 503);
        assert_eq!(self.has_header("retry-after"), has_retry_after, "{body}");
        assert_eq!(self.has_header("allow"), self.status == 405, "{body}");
    }
}

pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

/// Checks the headers that every response has, also those of streams and handshakes.
pub fn check_head(status: u16, headers: &HeaderMap) {
    let trace = header(headers, "x-trace-id").unwrap_or_else(|| panic!("{status}: no X-Trace-Id"));
    assert!(
        trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit()),
        "{trace}"
    );
    for (name, expected) in [
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ] {
        assert_eq!(header(headers, name), Some(expected), "{status}: {name}");
    }
    let policy = header(headers, "content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'"), "{status}: {policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    for name in [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ] {
        let value = header(headers, name).unwrap_or_else(|| panic!("{status}: no {name}"));
        value.parse::<u64>().unwrap();
    }
}
