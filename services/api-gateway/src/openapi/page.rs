//! The reference page: Redoc 2.5.4 (MIT, `redoc.LICENSE`), the file
//! `bundles/redoc.standalone.js` of its npm package, compressed with `gzip -9 -n`.
//!
//! Redoc reads the document from the page's own server and renders it in the browser.
//! Without scripts, the page lists the operations and the errors.

use std::fmt::Write as _;

use utoipa::openapi::OpenApi as Document;

/// Redoc, compressed.
pub(super) const SCRIPT: &[u8] = include_bytes!("redoc-2.5.4.js.gz");

/// What the page may load: the script and the document from its own server, nothing from any
/// other. The hashes are of the page's style and of an empty one: Redoc adds empty style
/// elements and fills them by script. Its search runs in a worker that it makes from a blob.
pub(super) const POLICY: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; \
    style-src 'sha256-IAdwN3biDCQ3brrgp1m8kBEsPQYyqfREKOEfeoREopc=' \
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; img-src 'self' data:; \
    worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const STYLE: &str = "body{margin:0}";

/// The page. Its links are relative, so that it works at `/docs` and under the API's base.
pub(super) fn render(document: &Document) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>AgentBox API</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <redoc spec-url=\"openapi.json\"></redoc>\n\
         <noscript>\n<p>This page needs JavaScript. The same as JSON: \
         <a href=\"openapi.json\">openapi.json</a></p>\n<pre>\n"
    );
    page.push_str(&escaped(document.info.description.as_deref().unwrap_or("")));
    for (path, item) in &document.paths.paths {
        for (method, operation) in [
            ("GET", &item.get),
            ("POST", &item.post),
            ("PUT", &item.put),
            ("PATCH", &item.patch),
            ("DELETE", &item.delete),
        ] {
            if let Some(operation) = operation {
                let summary = operation.summary.as_deref().unwrap_or("");
                let _ = write!(page, "\n{method} {path}: {}", escaped(summary));
            }
        }
    }
    page.push_str(
        "\n</pre>\n</noscript>\n<script src=\"docs/redoc.js\"></script>\n</body>\n</html>\n",
    );
    page
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn document_text_in_the_page_is_escaped() {
        assert_eq!(
            escaped("a < `b & c` \"d\""),
            "a &lt; `b &amp; c` &quot;d&quot;"
        );
    }

    #[test]
    fn content_security_policy_allows_the_pages_own_style() {
        let hash = STANDARD.encode(Sha256::digest(STYLE));
        assert!(POLICY.contains(&format!("'sha256-{hash}'")), "{hash}");
    }
}
