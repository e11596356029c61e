//! The path of a request through its spans: parents within a trace, links between traces.

use super::caller::TraceContext;
use super::collector::{Span, SpanKind};

/// The spans of one trace, as a tree.
struct Tree<'a>(Vec<&'a Span>);

impl<'a> Tree<'a> {
    pub fn of(spans: &'a [Span], trace: &str) -> Self {
        Self(spans.iter().filter(|span| span.trace == trace).collect())
    }

    pub fn find(
        &self,
        service: &str,
        kind: SpanKind,
        is: impl Fn(&Span) -> bool,
    ) -> Option<&'a Span> {
        let service = format!("agentbox-{service}");
        let fits = |span: &&&Span| span.service == service && span.kind == kind && is(span);
        self.0.iter().find(fits).copied()
    }

    pub fn is_below(&self, span: &Span, above: &Span) -> bool {
        let mut parent = span.parent.clone();
        for _ in 0..self.0.len() {
            if parent == above.id {
                return true;
            }
            match self.0.iter().find(|other| other.id == parent) {
                Some(next) => parent.clone_from(&next.parent),
                None => return false,
            }
        }
        false
    }
}

/// The gateway's span of a request: the child of the caller's span.
fn request<'a>(tree: &Tree<'a>, context: &TraceContext, name: &str) -> Option<&'a Span> {
    tree.find("api-gateway", SpanKind::Server, |span| {
        span.name == name && span.parent == context.span
    })
}

/// HTTP → request → scheduler → Postgres, and the command that the scheduler sent.
pub fn scheduler_path(spans: &[Span], context: &TraceContext, http: &str) -> Option<Span> {
    let tree = Tree::of(spans, &context.trace);
    let http = request(&tree, context, http)?;
    let sent = tree.find("scheduler", SpanKind::Producer, |span| {
        span.name.contains("command") && tree.is_below(span, http)
    })?;
    let served = tree.find("scheduler", SpanKind::Server, |span| {
        tree.is_below(sent, span)
    })?;
    tree.find("api-gateway", SpanKind::Client, |span| {
        span.id == served.parent && tree.is_below(span, http)
    })?;
    tree.find("scheduler", SpanKind::Client, |span| {
        span.attribute("db.system.name") == "postgresql"
            && !span.attribute("db.operation.name").is_empty()
            && tree.is_below(span, served)
    })?;
    Some(sent.clone())
}

/// The span of the command that was sent in the span `sent`. It is in another trace, linked to
/// `sent`, and has a call of containerd as a descendant.
pub fn command(spans: &[Span], sent: &Span, method: &str) -> Option<()> {
    let is_linked = |span: &&Span| {
        span.kind == SpanKind::Consumer
            && span.links.contains(&(sent.trace.clone(), sent.id.clone()))
    };
    let consumed = spans.iter().find(is_linked)?;
    assert_ne!(consumed.trace, sent.trace);
    assert_eq!(consumed.parent, "");
    let tree = Tree::of(spans, &consumed.trace);
    tree.find("scheduler", SpanKind::Client, |span| {
        span.attribute("rpc.method") == method
            && span.attribute("rpc.service") == "runtime.v1.RuntimeService"
            && tree.is_below(span, consumed)
    })?;
    Some(())
}

/// HTTP → exec-proxy → boxd, down to the command.
pub fn box_path(spans: &[Span], context: &TraceContext) -> Option<(Span, Span)> {
    let tree = Tree::of(spans, &context.trace);
    let http = request(&tree, context, "POST /api/v1/environments/{id}/exec")?;
    let session = tree.find("exec-proxy", SpanKind::Server, |s| tree.is_below(s, http))?;
    let call = tree.find("exec-proxy", SpanKind::Client, |s| {
        s.attribute("rpc.method") == "Run" && tree.is_below(s, session)
    })?;
    let run = tree.find("boxd", SpanKind::Server, |s| s.parent == call.id)?;
    let below = |name: &str| {
        tree.find("boxd", SpanKind::Internal, |s| {
            s.name == name && s.parent == run.id
        })
    };
    below("start")?;
    Some((run.clone(), below("command")?.clone()))
}
