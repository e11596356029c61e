//! The secrets that must not be in a log or a span.

use agentbox_box_protocol::secret::BoxSecret;
use agentbox_box_protocol::token::BoxToken;
use agentbox_testing::System;
use serde_json::Value;

pub struct Secrets {
    /// Each secret: its description and its text.
    known: Vec<(String, String)>,
    box_secret: BoxSecret,
}

impl Secrets {
    /// The generated secrets of this system.
    pub fn of(system: &System) -> Self {
        let file = system.directory().join("secrets.json");
        let generated: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let mut known = vec![(
            "the admin's password".to_owned(),
            system.admin.password.clone(),
        )];
        for name in ["auth_secret", "box_secret", "scheduler_secret"] {
            known.push((
                name.to_owned(),
                generated[name].as_str().unwrap().to_owned(),
            ));
        }
        for part in ["postgres", "nats"] {
            for (user, password) in generated[part].as_object().unwrap() {
                let what = format!("{user}'s password of {part}");
                known.push((what, password.as_str().unwrap().to_owned()));
            }
        }
        let box_secret = generated["box_secret"].as_str().unwrap().parse().unwrap();
        Self { known, box_secret }
    }

    pub fn add(&mut self, what: &str, text: &str) {
        assert!(
            text.len() >= 8,
            "{what}: {text:?} is too short to search for"
        );
        self.known.push((what.to_owned(), text.to_owned()));
    }

    pub fn add_token_of(&mut self, environment: &str) {
        let id = environment.parse().unwrap();
        let token = BoxToken::derive(self.box_secret.bytes(), &id).unwrap();
        self.add("the box's token", token.expose());
    }

    /// A unique text to use as a value of this kind.
    pub fn canary(&mut self, what: &str) -> String {
        let text = format!("CANARY{}", hex::encode(rand::random::<[u8; 6]>()));
        self.add(what, &text);
        text
    }

    /// Checks that `text` contains no secret.
    pub fn check(&self, place: &str, text: &str) {
        for (what, secret) in &self.known {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{what} is in {place}");
        }
    }
}
