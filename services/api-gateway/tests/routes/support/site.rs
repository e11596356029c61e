//! An environment with a server that has a page, and previews of it.

use agentbox_testing::System;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::boxes::small;
use super::caller::{User, admin_of, new_user_with_role, send, send_with_retry};
use super::eventually;

/// The server listens on port 8000.
const SERVER: &str = include_str!("site.py");
/// The page, with `TITLE` in the place of its title.
const PAGE: &str = include_str!("site.html");

pub struct Site {
    pub user: User,
    pub id: String,
}

pub struct Preview {
    pub id: String,
    pub origin: String,
    /// Opens the preview in a browser.
    pub link: String,
    /// Opens it for a program; public previews have none.
    pub token: Option<String>,
}

impl Preview {
    /// Reads the answer to the request that created it.
    pub fn read(created: &Value) -> Self {
        let text = |name: &str| created[name].as_str().map(str::to_owned);
        let link = text("url").unwrap();
        let origin = link.split("/.agentbox/").next().unwrap();
        Self {
            id: text("id").unwrap(),
            origin: origin.trim_end_matches('/').to_owned(),
            token: text("token"),
            link,
        }
    }

    /// The host of the preview, as in the header `Host`.
    pub fn host(&self) -> &str {
        self.origin.trim_start_matches("http://")
    }
}

impl Site {
    /// Starts the server in a new environment of a new user. The title of its page is `first`.
    pub async fn start(system: &System) -> Self {
        let user = new_user_with_role(&admin_of(system).await, "user").await;
        let mut body = small();
        body["image"] = json!("python:3.11-slim");
        body["resources"] = json!({"cpu": "1", "memory": "256Mi", "storage": "64Mi"});
        let request = user
            .caller
            .request(Method::POST, "/environments?wait=running")
            .json(&body);
        let created = send_with_retry(request).await.expect_status(201);
        assert_eq!(created["status"], "running", "{created}");
        let site = Self {
            id: created["id"].as_str().unwrap().to_owned(),
            user,
        };
        site.write_page("first").await;
        site.write("site.py", SERVER.to_owned()).await;
        let run = "python3 /tmp/site/site.py > /dev/null 2>&1 &";
        let started = site.user.caller.sh(&site.id, run).await;
        assert_eq!(started["exit_code"], 0, "{started}");
        // Requests to ports are not counted, so polling exhausts no limit.
        eventually("the server answers", async || {
            let answer = site.request(Method::GET, "received").send().await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
        site
    }

    /// Replaces the page with one of this title.
    pub async fn write_page(&self, title: &str) {
        let page = PAGE.replace("TITLE", title);
        self.write("index.html", page).await;
    }

    async fn write(&self, name: &str, content: String) {
        let path = format!(
            "/environments/{}/files/content?path=/tmp/site/{name}",
            self.id
        );
        let request = self.user.caller.request(Method::PUT, &path);
        let answer = send(request.body(content)).await;
        assert!(matches!(answer.status, 201 | 204), "{}", answer.text);
    }

    /// A request to the server over the API.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let path = format!("/environments/{}/ports/8000/{path}", self.id);
        self.user.caller.request(method, &path)
    }

    /// The paths of the requests that the server has received.
    pub async fn received(&self) -> Vec<String> {
        let answer = self.request(Method::GET, "received").send().await.unwrap();
        let text = answer.text().await.unwrap();
        text.lines().map(str::to_owned).collect()
    }

    pub async fn preview(&self, is_public: bool) -> Preview {
        let path = format!("/environments/{}/previews", self.id);
        let body = json!({"port": 8000, "public": is_public});
        let created = self.user.caller.post(&path, &body).await.expect_status(201);
        Preview::read(&created)
    }

    pub async fn delete_preview(&self, preview: &Preview) {
        let path = format!("/environments/{}/previews/{}", self.id, preview.id);
        self.user.caller.delete(&path).await.expect_status(204);
    }
}
