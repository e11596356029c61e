//! Connections to the TCP ports of a box, through its boxd.

use agentbox_box_protocol::client::BoxClient;
use agentbox_box_protocol::proto::PortsRequest;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::executions::Execution;
use agentbox_contracts::ports::port_input::Input;
use agentbox_contracts::ports::port_output::Output;
use agentbox_contracts::ports::{ConnectPort, PortInput};
use futures::stream;

use super::boxd::{boxd_of, error_code, failed, in_time};
use super::{Subject, Violation, check, eventually, executions, files};
use crate::{BoxConnector, Runtime};

type Outcome = Result<(), Violation>;

const PORT: u32 = 8080;
const PAGE: &str = "a page of the box";

/// # Errors
/// When the driver does not meet the requirement.
pub async fn server_on_the_loopback_of_the_box_is_reached_and_listed<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let spec = s.spec();
    s.run(&spec).await?;
    let boxd = boxd_of(s, &spec).await?;
    let server = serve(&boxd).await?;
    let listed = in_time(async {
        let listed = boxd.clone().ports(PortsRequest {}).await.map_err(failed)?;
        Ok(listed.into_inner().ports)
    })
    .await?;
    let found = listed.iter().find(|found| found.port == PORT);
    let is_described = found.is_some_and(|found| {
        found.address == "127.0.0.1" && found.pid == server.pid && found.process == "httpd"
    });
    // boxd's own port is not listed.
    check(is_described && listed.len() == 1, || {
        format!("{server:?}: {listed:?}")
    })
}

/// Starts a server on 127.0.0.1 in a box of busybox, and gets a page of it. Nothing listens before.
pub(super) async fn serve(boxd: &BoxClient) -> Result<Execution, Violation> {
    let refused = request(boxd).await?;
    check(
        refused == Err(ErrorCode::NothingListening.as_str().to_owned()),
        || format!("before the server: {refused:?}"),
    )?;
    let page = files::write(boxd, "", "/www/index.html", files::atomic(), PAGE).await?;
    check(page.is_ok(), || format!("{page:?}"))?;
    let address = format!("127.0.0.1:{PORT}");
    let command = ["httpd", "-f", "-p", address.as_str(), "-h", "/www"];
    let server = executions::start(boxd, &command).await?;
    let answer = eventually("the server in the box answers", || async {
        Ok(request(boxd).await?.ok())
    })
    .await?;
    check(
        answer.starts_with("HTTP/1.") && answer.ends_with(PAGE),
        || format!("{answer:?}"),
    )?;
    Ok(server)
}

/// The answer to an HTTP request, or the error code of boxd.
async fn request(boxd: &BoxClient) -> Result<Result<String, String>, Violation> {
    let inputs = [
        Input::Connect(ConnectPort { port: PORT }),
        Input::Data("GET / HTTP/1.0\r\n\r\n".into()),
    ];
    let inputs = inputs.map(|input| PortInput { input: Some(input) });
    in_time(async {
        let mut outputs = match boxd.clone().connect(stream::iter(inputs)).await {
            Ok(outputs) => outputs.into_inner(),
            Err(status) => return Ok(Err(error_code(&status))),
        };
        let mut answer = Vec::new();
        while let Some(message) = outputs.message().await.map_err(failed)? {
            match message.output {
                Some(Output::Connected(())) => {}
                Some(Output::Data(bytes)) => answer.extend_from_slice(&bytes),
                Some(Output::End(())) => {
                    return Ok(Ok(String::from_utf8_lossy(&answer).into_owned()));
                }
                None => return Err(failed("an output message is empty")),
            }
        }
        Err(failed(format!("the connection has no end: {answer:?}")))
    })
    .await
}
