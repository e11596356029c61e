//! The media types of archives, in `Accept` and `Content-Type`. Pure.

use agentbox_contracts::files::Archive;
use axum::http::{HeaderMap, header};

use crate::edge::list_header::elements;

/// The media types of archives, each with the extension of its file.
static ARCHIVES: [(&str, &str, Archive); 3] = [
    ("application/x-tar", "tar", Archive::Tar),
    ("application/x-tar+gzip", "tar.gz", Archive::TarGzip),
    ("application/x-tar+zstd", "tar.zst", Archive::TarZstd),
];

fn of_essence(media_type: &str) -> Option<Archive> {
    let mut archives = ARCHIVES.iter();
    let known = archives.find(|(known, ..)| known.eq_ignore_ascii_case(media_type.trim()));
    known.map(|(.., archive)| *archive)
}

/// The media type and the extension of an archive; `None` for a file.
pub(super) fn of_archive(archive: Archive) -> Option<(&'static str, &'static str)> {
    let known = ARCHIVES.iter().find(|(.., known)| *known == archive);
    known.map(|(media_type, extension, _)| (*media_type, *extension))
}

/// The archive that `Accept` prefers; [`Archive::None`] if it names none. Of equal preference the
/// first counts.
pub(super) fn accepted(headers: &HeaderMap) -> Archive {
    let mut best = (0.0, Archive::None);
    for range in elements(headers, &header::ACCEPT) {
        let (media_type, parameters) = range.split_once(';').unwrap_or((range, ""));
        let Some(archive) = of_essence(media_type) else {
            continue;
        };
        let weight = weight(parameters);
        if weight > best.0 {
            best = (weight, archive);
        }
    }
    best.1
}

/// The weight `q` among the parameters of a media range (RFC 9110, section 12.4.2).
fn weight(parameters: &str) -> f32 {
    parameters
        .split(';')
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(1.0)
}

/// The archive that a body is; [`Archive::None`]: it is a file.
pub(super) fn of_body(headers: &HeaderMap) -> Archive {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("");
    of_essence(essence).unwrap_or(Archive::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn preferred_archive_is_accepted() {
        for (accept, expected) in [
            ("*/*", Archive::None),
            ("application/octet-stream", Archive::None),
            ("application/x-tar", Archive::Tar),
            ("Application/X-Tar+Gzip", Archive::TarGzip),
            (
                "application/x-tar;q=0.5, application/x-tar+zstd",
                Archive::TarZstd,
            ),
            ("application/x-tar, application/x-tar+zstd", Archive::Tar),
            (
                "text/html, application/x-tar+gzip ; q=0.1",
                Archive::TarGzip,
            ),
            ("application/x-tar;q=0", Archive::None),
        ] {
            let headers = with(header::ACCEPT, accept);
            assert_eq!(accepted(&headers), expected, "{accept}");
        }
        assert_eq!(accepted(&HeaderMap::new()), Archive::None);
    }

    #[test]
    fn body_is_an_archive_by_its_content_type() {
        for (content_type, expected) in [
            ("application/x-tar", Archive::Tar),
            ("application/x-tar+zstd; x=y", Archive::TarZstd),
            ("application/gzip", Archive::None),
            ("application/json", Archive::None),
        ] {
            let headers = with(header::CONTENT_TYPE, content_type);
            assert_eq!(of_body(&headers), expected, "{content_type}");
        }
        let gzip = of_archive(Archive::TarGzip);
        assert_eq!(gzip, Some(("application/x-tar+gzip", "tar.gz")));
        assert_eq!(of_archive(Archive::None), None);
    }
}
