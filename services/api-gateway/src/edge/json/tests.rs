use agentbox_api::environment::{CreateEnvironment, PatchEnvironment};
use agentbox_api::exec::ExecBody;
use agentbox_api::execution::{StartExecution, Stdin};

use super::*;
use crate::shares::Shares;

#[test]
fn invalid_body_is_refused_by_field_rule_and_value() {
    use ErrorCode::{BadRequest, Validation};
    let table = [
        (r#"{"name": 5}"#, Validation, "name: ", "integer `5`"),
        (
            r#"{"name":"a","image":"b","resources":{"cpu":1}}"#,
            Validation,
            "resources.cpu: ",
            "`1`",
        ),
        (
            r#"{"name":"a","image":"b","resources":{"cpu":"1"}}"#,
            Validation,
            "resources.memory: ",
            "required",
        ),
        (r#"{"name":"a","x":1}"#, Validation, "x: ", "not a field"),
        (
            r#"{"name":"a","resources":{"gpu":"1"}}"#,
            Validation,
            "resources.gpu: ",
            "not a field",
        ),
        (r#"{"name":"a","name":"b"}"#, Validation, "name: ", "twice"),
        (
            r#"{"name":"a","timeout":-1}"#,
            Validation,
            "timeout: ",
            "integer `-1`, expected an integer from 0 to 18446744073709551615",
        ),
        (
            r#"{"name":"a","timeout":"30"}"#,
            Validation,
            "timeout: ",
            r#"string "30", expected an integer from 0 to"#,
        ),
        (
            r#"{"name":"a","timeout":1e999}"#,
            Validation,
            "timeout: ",
            "is outside this range",
        ),
        (
            r#"{"isolation":{"network_policy":{"allowed_ingress_ports":[65536]}}}"#,
            Validation,
            "isolation.network_policy.allowed_ingress_ports[0]: ",
            "integer `65536`, expected an integer from 0 to 65535",
        ),
        (
            r#"{"name":"a","timeout":1.5}"#,
            Validation,
            "timeout: ",
            "`1.5`",
        ),
        (
            r#"{"name":"a","command":["a",2]}"#,
            Validation,
            "command[1]: ",
            "`2`",
        ),
        (
            r#"{"name":"a","env":{"A":true}}"#,
            Validation,
            "env.A: ",
            "`true`",
        ),
        (
            r#"{"name":"a","isolation":{"network_policy":{"allow":1}}}"#,
            Validation,
            "isolation.network_policy.allow: ",
            "not a field",
        ),
        (r#"{"name":"a"}"#, Validation, "image: ", "required"),
        (
            r#"{"name":"a","image":"b","resources":["1","64Mi","1Gi"]}"#,
            Validation,
            "resources: ",
            "sequence, expected an object",
        ),
        (
            r#"{"name":"a","tolerations":[["a"]]}"#,
            Validation,
            "tolerations[0]: ",
            "sequence, expected an object",
        ),
        ("[]", Validation, "body: ", "sequence, expected an object"),
        ("7", Validation, "body: ", "integer `7`, expected an object"),
        (r#"{"name""#, BadRequest, "", "not JSON"),
        ("", BadRequest, "", "not JSON"),
        ("\u{0}", BadRequest, "", "not JSON"),
    ];
    for (body, code, field, text) in table {
        let error = parse::<CreateEnvironment>(body.as_bytes()).unwrap_err();
        assert_eq!(error.code, code, "{body}: {error}");
        assert!(error.message.starts_with(field), "{body}: {error}");
        assert!(error.message.contains(text), "{body}: {error}");
    }
}

#[test]
fn value_of_the_wrong_kind_is_refused_by_field_rule_and_value() {
    for (field, value, text) in [
        (
            "output_encoding",
            "5",
            "integer `5`, expected one of `utf8`, `base64`",
        ),
        (
            "output_encoding",
            r#"{"utf8":null}"#,
            "map, expected one of `utf8`, `base64`",
        ),
        (
            "output_encoding",
            "null",
            "null, expected one of `utf8`, `base64`",
        ),
        ("output_encoding", r#""hex""#, "`hex`, expected `utf8` or"),
        (
            "timeout",
            "true",
            "boolean `true`, expected a number of seconds",
        ),
        ("timeout", "[30]", "sequence, expected a number of seconds"),
        ("command", r#"{"0":"a"}"#, "map, expected a sequence"),
        ("env", "[]", "sequence, expected a map"),
        ("stdin", "{}", "map, expected a string"),
        ("working_dir", "0", "integer `0`, expected a string"),
    ] {
        let body = format!(r#"{{"command":["a"],"{field}":{value}}}"#);
        let body = body.replace(r#""command":["a"],"command""#, r#""command""#);
        let error = parse::<ExecBody>(body.as_bytes()).unwrap_err();
        assert_eq!(error.code, ErrorCode::Validation, "{body}: {error}");
        let begin = format!("{field}: ");
        assert!(error.message.starts_with(&begin), "{body}: {error}");
        assert!(error.message.contains(text), "{body}: {error}");
    }
    let long = format!(r#"{{"command":["a"],"timeout":"{}"}}"#, "x".repeat(100_000));
    let error = parse::<ExecBody>(long.as_bytes()).unwrap_err();
    assert!(error.message.len() < 300, "{error}");
    assert!(error.message.contains("expected a number"), "{error}");
}

#[test]
fn integral_number_in_any_notation_is_an_integer() {
    for number in ["30", "30.0", "3e1", "300e-1"] {
        let body = format!(r#"{{"timeout":{number}}}"#);
        let body = parse::<PatchEnvironment>(body.as_bytes()).unwrap();
        assert_eq!(body.timeout, Some(30), "{number}");
    }
    for (number, text) in [
        ("1.5", "`1.5`, expected an integer from 0 to"),
        ("-30.0", "`-30`, expected an integer from 0 to"),
        ("1e300", "`, expected an integer from 0 to"),
    ] {
        let body = format!(r#"{{"timeout":{number}}}"#);
        let error = parse::<PatchEnvironment>(body.as_bytes()).unwrap_err();
        assert!(error.message.contains(text), "{error}");
    }
}

#[test]
fn seconds_may_have_a_fraction() {
    for (number, seconds) in [("30", 30.0), ("0.25", 0.25), ("3e1", 30.0)] {
        let body = format!(r#"{{"command":["a"],"timeout":{number}}}"#);
        let body = parse::<ExecBody>(body.as_bytes()).unwrap();
        assert_eq!(body.timeout.0, seconds, "{number}");
    }
}

#[test]
fn stdin_of_an_execution_is_a_word_or_an_object() {
    let read = |stdin: &str| {
        let body = format!(r#"{{"command":["a"],"stdin":{stdin}}}"#);
        parse::<StartExecution>(body.as_bytes()).map(|body| body.stdin)
    };
    assert_eq!(read(r#""open""#), Ok(Some(Stdin::Open)));
    assert_eq!(read(r#"{"text":"a"}"#), Ok(Some(Stdin::Text("a".into()))));
    assert_eq!(read("null"), Ok(None));
    for (stdin, field, text) in [
        (r#""closed""#, "stdin: ", "`none`, `open`, an object"),
        ("7", "stdin: ", "integer `7`"),
        ("{}", "stdin", "must have one of"),
        (r#"{"file":"a"}"#, "stdin.file: ", "not a field"),
        (r#"{"text":7}"#, "stdin.text: ", "integer `7`"),
    ] {
        let error = read(stdin).unwrap_err();
        assert!(error.message.starts_with(field), "{stdin}: {error}");
        assert!(error.message.contains(text), "{stdin}: {error}");
    }
}

#[test]
fn text_after_the_body_is_refused() {
    let error = parse::<serde_json::Value>(b"{} {}").unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
}

#[test]
fn head_with_wrong_type_or_length_is_refused_before_the_body() {
    let mut headers = HeaderMap::new();
    let code = |headers: &HeaderMap| check_head(headers, MAX_BODY).err().map(|error| error.code);
    assert_eq!(code(&headers), Some(ErrorCode::UnsupportedMediaType));
    for (value, expected) in [
        ("text/plain", Some(ErrorCode::UnsupportedMediaType)),
        ("application/json", None),
        ("Application/JSON; charset=utf-8", None),
    ] {
        headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
        assert_eq!(code(&headers), expected, "{value}");
    }
    headers.insert(header::CONTENT_LENGTH, "1048576".parse().unwrap());
    assert_eq!(code(&headers), None);
    headers.insert(header::CONTENT_LENGTH, "1048577".parse().unwrap());
    assert_eq!(code(&headers), Some(ErrorCode::PayloadTooLarge));
}

#[tokio::test]
async fn incomplete_body_times_out_and_long_body_is_too_large() {
    let stalled = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let error = read(stalled, MAX_BODY, Duration::from_millis(10), &mut None)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::RequestTimeout);
    let long = Body::from(vec![b' '; MAX_BODY + 1]);
    let error = read(long, MAX_BODY, Duration::from_secs(10), &mut None)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::PayloadTooLarge);
}

#[tokio::test]
async fn body_beyond_the_bytes_of_its_user_is_refused_with_503() {
    let bodies = Shares::new(4, 8);
    let user = UserId::random();
    let other = bodies.take(&user, 2).unwrap();
    let mut share = Some(bodies.take(&user, 0).unwrap());
    let deadline = Duration::from_secs(10);
    let body = || Body::from("123");
    let refused = read(body(), MAX_BODY, deadline, &mut share).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Unavailable);
    drop(other);
    let bytes = read(body(), MAX_BODY, deadline, &mut share).await;
    assert_eq!(bytes.unwrap(), b"123");
    assert!(bodies.take(&user, 2).is_err());
}
