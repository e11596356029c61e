//! The file with the report of the main command's end.

use agentbox_box_protocol::termination::Termination;

use crate::support::TestBox;

#[tokio::test]
async fn filled_termination_file_is_emptied_and_the_exit_is_reported() {
    let script = "head -c 8000000 /dev/zero > termination; \
                  while [ $(stat -c %s termination) -gt 65536 ]; do sleep 0.05; done; exit 7";
    let (mut boxd, _client) = TestBox::main(script).await;
    assert_eq!(boxd.exit_code().await, Some(7));
    let termination = Termination::read(&boxd.path("termination")).unwrap();
    assert_eq!(termination.unwrap().exit_code, 7);
}
