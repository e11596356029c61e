//! The Helm chart's admission policies, for the account of this machine's services.

use super::api::SYSTEM_NAMESPACE;
use super::configuration::SERVICES;

const POLICIES: &str = include_str!("../../../helm/files/admission.yaml");
const API: &str = "/apis/admissionregistration.k8s.io/v1";

/// The policies and their bindings as YAML, each with its path.
pub(crate) fn policies(deployment: &str) -> Vec<(String, String)> {
    let text = POLICIES
        .replace("@PREFIX@", "agentbox-local")
        .replace("@LABELS@", "{}")
        .replace("@USER@", SERVICES.name)
        .replace("@NAMESPACE@", SYSTEM_NAMESPACE)
        .replace("@DEPLOYMENT@", deployment);
    text.split("\n---\n")
        .map(|document| {
            let value = |start: &str| {
                let mut lines = document.lines();
                lines
                    .find_map(|line| line.strip_prefix(start))
                    .unwrap_or("")
            };
            let plural = match value("kind: ") {
                "ValidatingAdmissionPolicyBinding" => "validatingadmissionpolicybindings",
                _ => "validatingadmissionpolicies",
            };
            let path = format!("{API}/{plural}/{}", value("  name: "));
            (path, document.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_of_the_chart_has_its_path_and_its_binding() {
        let policies = policies("local-1");
        let paths: Vec<&str> = policies.iter().map(|(path, _)| path.as_str()).collect();
        let path =
            |plural: &str, name: &str| format!("{API}/{plural}/agentbox-local-scheduler-{name}");
        let expected: Vec<String> = [
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
        ]
        .into_iter()
        .flat_map(|plural| ["objects", "services", "pods"].map(|name| path(plural, name)))
        .collect();
        assert_eq!(paths, expected);
        for (path, text) in &policies {
            assert!(!text.contains('@'), "{path}: {text}");
        }
        assert!(policies[0].1.contains("== 'local-1'"), "{}", policies[0].1);
    }
}
