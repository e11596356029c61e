//! The hosts and the addresses of previews. Pure.
//!
//! * I1. A request to a host below the domain of previews is one to a preview or to nothing, never one
//!   to the API.

use agentbox_contracts::ids::PreviewId;
use axum::http::Uri;

use crate::config::Config;

/// The domain of previews on one machine (RFC 6761, section 6.3): browsers resolve every name below it
/// to the loopback address.
const LOCALHOST: &str = "localhost";

/// The host of a request to a preview.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreviewHost {
    /// As in the request, in lower case, with the port of the gateway.
    pub host: String,
    /// The port of the box and the preview; `None` for a name that no preview has.
    pub named: Option<(u16, PreviewId)>,
    /// Whether it is a host of one machine.
    pub is_local: bool,
}

/// The name of a host, without its port.
fn name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.trim_end_matches('.')
}

/// Reads the host of a request; `None` for a host of the API.
pub(crate) fn read(host: &str, domain: Option<&str>) -> Option<PreviewHost> {
    let host = host.to_ascii_lowercase();
    let label = |domain: &str| {
        name(&host)
            .strip_suffix(domain)
            .and_then(|rest| rest.strip_suffix('.'))
            .map(parse)
    };
    let (named, is_local) = match domain.and_then(|domain| label(name(domain))) {
        Some(named) => (named, domain.map(name) == Some(LOCALHOST)),
        None => (Some(label(LOCALHOST).flatten()?), true),
    };
    Some(PreviewHost {
        host,
        named,
        is_local,
    })
}

/// `8080-preview-0123456789abcdef`
fn parse(label: &str) -> Option<(u16, PreviewId)> {
    let (digits, id) = label.split_once('-')?;
    let port = digits.parse::<u16>().ok().filter(|port| *port > 0)?;
    // One preview has one origin.
    (port.to_string() == digits).then_some(())?;
    Some((port, id.parse().ok()?))
}

/// The origin of a preview. `api_host` is the host of the request to the API: on one machine, the port
/// of the gateway is in it.
pub(super) fn origin(
    config: &Config,
    api_host: Option<&str>,
    port: u16,
    preview: &PreviewId,
) -> String {
    if let Some(domain) = &config.preview_domain {
        let scheme = config.preview_scheme.as_str();
        return format!("{scheme}://{port}-{preview}.{domain}");
    }
    let uri = api_host.and_then(|host| host.parse::<Uri>().ok());
    let given = uri.as_ref().and_then(Uri::port_u16);
    let listen = config.listen.first().map(|address| address.port());
    match given.or_else(|| listen.filter(|_| api_host.is_none())) {
        Some(of_gateway) => format!("http://{port}-{preview}.{LOCALHOST}:{of_gateway}"),
        None => format!("http://{port}-{preview}.{LOCALHOST}"),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("must be a domain such as `previews.example`, in lower case, is `{0}`")]
pub(crate) struct InvalidDomain(String);

/// Reads the domain of previews, with a port if it is not that of the scheme.
///
/// # Errors
/// When the text is not a domain in lower case.
pub(crate) fn domain(text: &str) -> Result<String, InvalidDomain> {
    let is_label = |label: &str| {
        let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(is_allowed)
    };
    let has_port = text
        .rsplit_once(':')
        .is_none_or(|(_, port)| port.parse::<u16>().is_ok());
    if has_port && name(text).split('.').all(is_label) && !text.ends_with('.') {
        return Ok(text.to_owned());
    }
    Err(InvalidDomain(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    const LABEL: &str = "8080-preview-0123456789abcdef";

    fn id() -> PreviewId {
        "preview-0123456789abcdef".parse().unwrap()
    }

    #[test]
    fn host_below_the_domain_is_never_the_apis() {
        let domain = Some("previews.example:8443");
        for (host, is_preview, is_named) in [
            (format!("{LABEL}.previews.example:8443"), true, true),
            (format!("{LABEL}.Previews.example."), true, true),
            ("x.previews.example".to_owned(), true, false),
            (format!("x.{LABEL}.previews.example"), true, false),
            ("previews.example".to_owned(), false, false),
            (format!("{LABEL}.evilpreviews.example"), false, false),
            (format!("{LABEL}.previews.example.evil.org"), false, false),
            ("api.example".to_owned(), false, false),
        ] {
            let found = read(&host, domain);
            assert_eq!(found.is_some(), is_preview, "{host}");
            let named = found.and_then(|found| {
                assert!(!found.is_local);
                found.named
            });
            let expected = is_named.then(|| (8080, id()));
            assert_eq!(named, expected, "{host}");
        }
    }

    #[test]
    fn only_labels_of_previews_are_previews_on_one_machine() {
        let read = |label: &str| read(&format!("{label}.localhost:8080"), None);
        let found = read(LABEL).unwrap();
        assert_eq!(found.named, Some((8080, id())));
        assert!(found.is_local);
        assert_eq!(found.host, format!("{LABEL}.localhost:8080"));
        for other in [
            "api",
            "08080-preview-0123456789abcdef",
            "+8080-preview-0123456789abcdef",
            "0-preview-0123456789abcdef",
            "70000-preview-0123456789abcdef",
            "8080-preview-short",
            "8080-env-0123456789abcdef",
            "x.8080-preview-0123456789abcdef",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
        assert_eq!(super::read("localhost:8080", None), None);
        assert_eq!(super::read("[::1]:8080", None), None);
    }

    #[test]
    fn origin_has_the_domain_or_the_port_of_the_gateway() {
        let config = |arguments: &[&str]| {
            let all = ["api-gateway"].iter().chain(arguments).copied();
            Config::try_parse_from(all.chain(["--nats-password", "x"])).unwrap()
        };
        let local = config(&[]);
        for (host, expected) in [
            (Some("localhost:9000"), ".localhost:9000"),
            (Some("127.0.0.1:9000"), ".localhost:9000"),
            (Some("localhost"), ".localhost"),
            (None, ".localhost:8080"),
        ] {
            let origin = origin(&local, host, 8080, &id());
            assert_eq!(origin, format!("http://{LABEL}{expected}"), "{host:?}");
        }
        let public = config(&["--preview-domain", "previews.example"]);
        let origin = origin(&public, Some("api.example"), 8080, &id());
        assert_eq!(origin, format!("https://{LABEL}.previews.example"));
    }

    #[test]
    fn only_domains_are_accepted() {
        for text in ["previews.example", "p.example:8443", "localhost"] {
            assert_eq!(domain(text).unwrap(), text);
        }
        for text in [
            "",
            ".",
            "a..b",
            "https://a.example",
            "A.example",
            "a.example.",
            "a:x",
            "*.a",
        ] {
            assert!(domain(text).is_err(), "{text}");
        }
    }
}
