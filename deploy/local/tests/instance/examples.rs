//! The `curl` examples of the API's user guide, run by a shell exactly as the guide prints them. The
//! guide is not in this repository; `examples.sh` contains its examples. The route tests of logs and
//! attach cover its two JavaScript examples.

use std::process::Stdio;
use std::time::Duration;

use agentbox_testing::{Options, System};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::api::Api;

/// The guide's examples, each below `### <name>`. `follow` comes after `delete`,
/// so that its stream ends.
const EXAMPLES: &str = include_str!("examples.sh");
/// Gives a box an index of packages of its own.
const PACKAGES: &str = include_str!("packages.py");
const DEADLINE: Duration = Duration::from_secs(150);

/// The examples, with values for the guide's placeholders.
struct Guide<'a> {
    system: &'a System,
    filled_in: Vec<(&'static str, String)>,
}

impl Guide<'_> {
    fn fill_in(&mut self, placeholder: &'static str, value: &Value) -> String {
        let value = value.as_str().unwrap().to_owned();
        self.filled_in.push((placeholder, value.clone()));
        value
    }

    /// The output of the example `name`.
    async fn run(&self, name: &str) -> String {
        let mut example = EXAMPLES
            .split("### ")
            .find_map(|example| example.strip_prefix(name)?.strip_prefix('\n'))
            .unwrap_or_else(|| panic!("no example {name}"))
            .replace("https://your-server", self.system.url());
        for (placeholder, value) in &self.filled_in {
            example = example.replace(placeholder, value);
        }
        let run = Command::new("bash")
            .args(["-c", &example])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(DEADLINE, run)
            .await
            .unwrap_or_else(|_| panic!("{name} did not end in time"))
            .unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn answer(&self, name: &str) -> Value {
        let output = self.run(name).await;
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{name}: {error}: {output}"))
    }

    /// The standard output of the command in the example `name`, which must succeed.
    async fn stdout(&self, name: &str) -> String {
        let answer = self.answer(name).await;
        assert_eq!(answer["exit_code"], 0, "{name}: {answer}");
        answer["stdout"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn every_curl_example_of_the_guide_runs_as_written() {
    let system = System::start(Options::default().replicas(2)).await.unwrap();
    let api = Api::of(&system).await;
    let mut guide = Guide {
        system: &system,
        filled_in: vec![
            ("your-username", system.admin.username.clone()),
            ("your-password", system.admin.password.clone()),
        ],
    };

    let login = guide.answer("login").await;
    assert_eq!(login["user"]["role"], "admin", "{login}");
    guide.fill_in("<token>", &login["token"]);
    let list = guide.answer("use a token").await;
    let none = json!({"environments": [], "total": 0, "limit": 100, "offset": 0});
    assert_eq!(list, none);
    assert_eq!(guide.answer("me").await, login["user"]);

    let created = guide.answer("create").await;
    assert_eq!(created["status"], "pending", "{created}");
    let id = guide.fill_in("env-abc123", &created["id"]);
    assert_eq!(created["namespace"], format!("agentbox-{id}"));
    api.wait_for_status(&id, "running").await;
    let list = guide.answer("list").await;
    assert_eq!((&list["total"], &list["limit"]), (&json!(1), &json!(10)));
    assert_eq!(list["environments"][0]["id"], id);
    let environment = guide.answer("get").await;
    assert_eq!(environment["env"], json!({"MY_VAR": "my-value"}));
    assert_eq!(environment["labels"], json!({"project": "my-project"}));
    assert!(
        environment["metrics"]["memory_usage"].is_string(),
        "{environment}"
    );

    assert_eq!(guide.stdout("exec").await, "Hello, World!\n");
    assert!(guide.stdout("exec a shell script").await.contains("/bin"));
    let packages = json!({ "command": ["python", "-c", PACKAGES] });
    let path = format!("/environments/{id}/exec");
    let (status, made) = api.once(Method::POST, &path, Some(packages)).await;
    assert_eq!(
        (status, &made["exit_code"]),
        (200, &json!(0)),
        "the index: {made}"
    );
    assert!(guide.stdout("exec an installation").await.contains("\n2."));
    assert_eq!(guide.stdout("write a file").await, "");
    assert!(
        guide
            .stdout("execute the file")
            .await
            .starts_with("Python 3.11.")
    );
    assert_eq!(guide.answer("logs").await, json!({"logs": []}));

    let key = guide.answer("create a key").await;
    assert_eq!(key["permissions"][0]["environment_id"], id, "{key}");
    guide.fill_in("agentbox_1234567890abcdef...", &key["key"]);
    let key_id = guide.fill_in("key-abc123", &key["id"]);
    assert_eq!(guide.answer("use a key").await["total"], 1);
    let keys = guide.answer("list keys").await;
    assert_eq!(keys["api_keys"][0]["id"], key_id);
    assert_eq!(guide.run("revoke a key").await, "");
    assert_eq!(guide.answer("use a key").await["error"], "unauthorized");

    let health = guide.answer("health").await;
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(guide.run("delete").await, "");
    let followed = guide.run("follow").await;
    assert!(followed.contains("event: end"), "{followed}");
    api.wait_for_status(&id, "terminated").await;
    system.stop().await;
}
