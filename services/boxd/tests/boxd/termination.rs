//! The file with the report of the main command's end.

use agentbox_box_protocol::termination::Termination;

use crate::support::{TestBox, eventually, run, sh};

#[tokio::test]
async fn filled_termination_file_is_emptied_and_the_exit_is_reported() {
    let script = "head -c 8000000 /dev/zero > termination; \
                  while [ $(stat -c %s termination) -gt 65536 ]; do sleep 0.05; done; exit 7";
    let (mut boxd, _client) = TestBox::main(script).await;
    assert_eq!(boxd.exit_code().await, Some(7));
    let termination = Termination::read(&boxd.path("termination")).unwrap();
    assert_eq!(termination.unwrap().exit_code, 7);
}

#[tokio::test]
async fn termination_file_that_an_ended_process_filled_is_emptied() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("termination");
    let fill = format!("head -c 8000000 /dev/zero > {}", path.display());
    for _ in 0..2 {
        assert_eq!(run(&client, sh(&fill)).await.code(), 0);
        eventually("the file is emptied", async || {
            path.metadata().is_ok_and(|file| file.len() <= 65_536)
        })
        .await;
    }
}
