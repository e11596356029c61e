//! The spans that boxd returns with a run, and in the header of another call.

use agentbox_box_protocol::call_span::{CallSpan, SPAN_METADATA};
use agentbox_box_protocol::client::BoxClient;
use agentbox_box_protocol::proto::{self, RunInput, Step, run_input, run_output};
use agentbox_contracts::executions::{
    ExecutionInput, ExecutionRequest, execution_input, execution_request,
};
use tonic::Request;

use crate::support::{TestBox, run, sh, start};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn with_trace<T>(inputs: T, flags: &str) -> Request<T> {
    let mut request = Request::new(inputs);
    let traceparent = format!("00-{TRACE_ID}-{PARENT}-{flags}");
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    request
}

async fn traced(client: &BoxClient, flags: &str, command: proto::StartCommand) -> proto::Exited {
    let first = RunInput {
        input: Some(run_input::Input::Start(command)),
    };
    let request = with_trace(tokio_stream::iter([first]), flags);
    let mut outputs = client.clone().run(request).await.unwrap().into_inner();
    loop {
        let output = outputs.message().await.unwrap().unwrap();
        if let Some(run_output::Output::Exited(exited)) = output.output {
            return exited;
        }
    }
}

fn steps(exited: &proto::Exited) -> Vec<Step> {
    exited.spans.iter().map(proto::Span::step).collect()
}

#[tokio::test]
async fn sampled_call_returns_run_start_and_command_spans() {
    let (_boxd, client) = TestBox::idle().await;
    let exited = traced(&client, "01", sh("sleep 0.2; exit 3")).await;
    assert_eq!(exited.exit_code, 3);
    assert_eq!(steps(&exited), [Step::Run, Step::Start, Step::Command]);
    let [run, start, command] = exited.spans.as_slice() else {
        panic!("{:?}", exited.spans);
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&run.trace_id), TRACE_ID);
    assert_eq!(hex(&run.parent_span_id), PARENT);
    assert_eq!(
        (&start.parent_span_id, &command.parent_span_id),
        (&run.span_id, &run.span_id)
    );
    assert!(run.start_unix_nanos <= start.start_unix_nanos);
    assert!(start.end_unix_nanos <= command.start_unix_nanos);
    assert!(command.end_unix_nanos <= run.end_unix_nanos);
    assert!(command.end_unix_nanos - command.start_unix_nanos >= 200_000_000);
}

#[tokio::test]
async fn failed_start_returns_no_command_span() {
    let (_boxd, client) = TestBox::idle().await;
    let exited = traced(&client, "01", start(&["no-such-program"])).await;
    assert_eq!(exited.exit_code, 127);
    assert_eq!(steps(&exited), [Step::Run, Step::Start]);
}

#[tokio::test]
async fn unsampled_call_returns_no_spans() {
    let (_boxd, client) = TestBox::idle().await;
    assert_eq!(steps(&traced(&client, "00", sh("true")).await), []);
    let untraced = run(&client, sh("true")).await.exited.unwrap();
    assert_eq!(steps(&untraced), []);
}

#[tokio::test]
async fn header_of_an_accepted_call_has_its_span_only_when_sampled() {
    let (_boxd, client) = TestBox::idle().await;
    for (flags, is_sampled) in [("01", true), ("00", false)] {
        let list = ExecutionRequest {
            operation: Some(execution_request::Operation::List(())),
        };
        let list = ExecutionInput {
            input: Some(execution_input::Input::Request(list)),
        };
        let request = with_trace(tokio_stream::iter([list]), flags);
        let response = client.clone().executions(request).await.unwrap();
        let header = response.metadata().get(SPAN_METADATA);
        assert_eq!(header.is_some(), is_sampled, "{header:?}");
        if let Some(header) = header {
            let span: CallSpan = header.to_str().unwrap().parse().unwrap();
            assert!(span.start_unix_nanos <= span.end_unix_nanos, "{span:?}");
        }
    }
}
