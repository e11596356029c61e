//! What a ticket opens, and who gets one.

use std::collections::BTreeMap;

use agentbox_contracts::ids::{ExecId, LoginId};

use super::*;

#[test]
fn ticket_is_issued_to_callers_who_may_do_its_action() {
    let (owner, id) = (UserId::random(), EnvironmentId::random());
    let target = Target {
        id: &id,
        owner: &owner,
        resource: None,
    };
    for (action, expected) in [
        (Action::TicketForLogs, "UAANAAAANNF"),
        (Action::TicketForAttach, "UAANAFAANNF"),
        (Action::TicketForOutput, "UAANAAAANNF"),
        (Action::TicketForExecutionAttach, "UAANAFAANNF"),
        (Action::TicketForFileDownload, "UAANAFAANNF"),
        (Action::TicketForFileUpload, "UAANAFAANNF"),
    ] {
        let row: String = principals(&owner, &id)
            .iter()
            .map(|principal| letter(authorize(principal.as_ref(), action, Some(target))))
            .collect();
        assert_eq!(row, expected, "{action:?}");
    }
}

#[test]
fn ticket_for_another_environment_is_not_found() {
    let owner = UserId::random();
    let (id, other) = (EnvironmentId::random(), EnvironmentId::random());
    let ticket = principals(&owner, &id).pop().unwrap().unwrap();
    let on_other = Target {
        id: &other,
        owner: &owner,
        resource: None,
    };
    assert_eq!(
        letter(authorize(Some(&ticket), Action::ReadLogs, Some(on_other))),
        'N'
    );
}

#[test]
fn ticket_is_valid_for_its_resource_alone() {
    let (owner, id) = (UserId::random(), EnvironmentId::random());
    let execution = TicketResource::Execution(ExecId::random());
    let path = TicketResource::Path(b"/a\xff".to_vec());
    let other_execution = TicketResource::Execution(ExecId::random());
    let other_path = TicketResource::Path(b"/a".to_vec());
    for (action, ticket, needed, resource, other) in [
        (
            Action::ReadOutput,
            TicketAction::Output,
            Permission::Read,
            &execution,
            &other_execution,
        ),
        (
            Action::AttachExecution,
            TicketAction::ExecutionAttach,
            Permission::Write,
            &execution,
            &other_execution,
        ),
        (
            Action::DownloadFile,
            TicketAction::FileDownload,
            Permission::Write,
            &path,
            &other_path,
        ),
        (
            Action::UploadFile,
            TicketAction::FileUpload,
            Permission::Write,
            &path,
            &other_path,
        ),
    ] {
        let credential = Credential::Ticket {
            environment: id.clone(),
            action: ticket,
            resource: Some(resource.clone()),
            issued_by: Box::new(Credential::Login {
                id: LoginId::random(),
            }),
        };
        let scope = Scope::Environments(BTreeMap::from([(id.clone(), needed)]));
        let caller = principal(&owner, Role::User, credential, scope);
        let outcome = |action, resource| {
            let target = Target {
                id: &id,
                owner: &owner,
                resource,
            };
            letter(authorize(Some(&caller), action, Some(target)))
        };
        assert_eq!(outcome(action, Some(resource)), 'A', "{action:?}");
        assert_eq!(outcome(action, Some(other)), 'F', "{action:?}");
        assert_eq!(outcome(action, None), 'F', "{action:?}");
        for another in [
            Action::ViewEnvironment,
            Action::ViewFiles,
            Action::ChangeFiles,
            Action::ReadLogs,
            Action::ControlExecution,
            Action::Exec,
        ] {
            assert_eq!(outcome(another, Some(resource)), 'F', "{another:?}");
        }
    }
}
