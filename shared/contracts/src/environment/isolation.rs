//! The isolation that a request asks for: runtime class, network policy, security context.

use serde::{Deserialize, Serialize};

/// The isolation of an environment from its host and from the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "runtime_class": "gvisor",
    "network_policy": {"allow_internet": true, "allowed_ingress_ports": [8080]},
    "security_context": {"run_as_user": 1000, "run_as_non_root": true}
})))]
#[serde(deny_unknown_fields)]
pub struct Isolation {
    /// The name of a Kubernetes RuntimeClass, or of a CRI runtime handler. The operator decides
    /// which may be named. Default: the cluster's standard runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "gvisor",
            max_length = 63,
            pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
        )
    )]
    pub runtime_class: Option<String>,
    /// The connections that the environment may open and accept. Default: the deployment's
    /// policy, which allows the public internet only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// The user and the privileges of the environment's processes. Default: those of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<SecurityContext>,
}

/// The connections that an environment may open and accept. All others are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "allow_internet": true,
    "allowed_egress_cidrs": ["10.20.0.0/16"],
    "allowed_ingress_ports": [8080],
    "allow_cluster_internal": false
})))]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// Allow connections to the public internet and to DNS. Private address ranges and the
    /// cloud's metadata address stay closed. Default: false.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(example = true, default = false))]
    pub allow_internet: bool,
    /// Address ranges (CIDR notation) that the environment may connect to, at most 64.
    /// Default: none.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(
        value_type = Vec<EgressCidr>, example = json!(["10.20.0.0/16"]), max_items = 64
    ))]
    pub allowed_egress_cidrs: Vec<String>,
    /// TCP ports of the environment, 1 to 65535, that others may connect to, at most 64.
    /// Default: none.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(
        value_type = Vec<IngressPort>, example = json!([8080]), max_items = 64
    ))]
    pub allowed_ingress_ports: Vec<u16>,
    /// Allow connections to and from the other environments of the same owner in the same cluster,
    /// if they allow it too. Default: false.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(example = false, default = false))]
    pub allow_cluster_internal: bool,
}

/// An address range in CIDR notation.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(example = "10.20.0.0/16", pattern = "^[0-9a-fA-F.:]+/[0-9]{1,3}$")]
struct EgressCidr(#[allow(dead_code, reason = "describes the items of a list")] String);

/// A TCP port.
#[cfg(feature = "openapi")]
#[derive(utoipa::ToSchema)]
#[schema(example = 8080, minimum = 1, maximum = 65535)]
struct IngressPort(#[allow(dead_code, reason = "describes the items of a list")] u16);

/// The user and the privileges of an environment's processes. The names are Kubernetes'.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "run_as_user": 1000,
    "run_as_group": 1000,
    "run_as_non_root": true,
    "read_only_root_filesystem": false,
    "allow_privilege_escalation": false
})))]
#[serde(deny_unknown_fields)]
pub struct SecurityContext {
    /// Numeric user id of the main command, and of commands and file operations that name no other
    /// user, 0 to 2147483647. Default: the image's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = 1000, maximum = 2147483647))]
    pub run_as_user: Option<u32>,
    /// Numeric primary group id of every process, 0 to 2147483647. Default: the image's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = 1000, maximum = 2147483647))]
    pub run_as_group: Option<u32>,
    /// Refuse to start as user 0. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = true))]
    pub run_as_non_root: Option<bool>,
    /// Mount the image's file system read-only. `/dev/shm` and an empty `/tmp` are writable, in
    /// memory. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub read_only_root_filesystem: Option<bool>,
    /// Let a process gain privileges that its parent lacks, for example by a setuid program.
    /// Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = false))]
    pub allow_privilege_escalation: Option<bool>,
}
