//! The standard `OTEL_*` variables.
//!
//! This module applies those that the SDK does not apply by itself:
//! `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER`, `OTEL_TRACES_SAMPLER`,
//! `OTEL_EXPORTER_OTLP_[TRACES_]{ENDPOINT,PROTOCOL}`, `OTEL_BSP_MAX_QUEUE_SIZE`,
//! `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`. The SDK and its exporter read
//! headers, timeouts, compression and the sampler's argument themselves.

use anyhow::{bail, ensure};
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};

const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// The most spans that may wait for the collector, by default.
const DEFAULT_QUEUE: usize = 2048;

/// The protocol of the exporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// Looks up variables. An empty value counts as absent, as the standard requires.
pub(super) struct OtelVariables<F>(pub(super) F);

impl<F: Fn(&str) -> Option<String>> OtelVariables<F> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.trim().is_empty())
    }

    /// The protocol to export spans with; `None` when there is no export.
    ///
    /// # Errors
    /// When a value is not supported. Otherwise the operator would wait for spans that never
    /// arrive.
    pub(super) fn protocol(&self) -> Result<Option<Protocol>, anyhow::Error> {
        if let Some(sampler) = self.get("OTEL_TRACES_SAMPLER") {
            ensure!(
                SAMPLERS.contains(&sampler.as_str()),
                "OTEL_TRACES_SAMPLER: `{sampler}` is not one of {}",
                SAMPLERS.join(", ")
            );
        }
        if self
            .get("OTEL_SDK_DISABLED")
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
        {
            return Ok(None);
        }
        match self.get("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => bail!("OTEL_TRACES_EXPORTER: `{other}` is not one of otlp, none"),
        }
        let either = |name: &str| {
            self.get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let Some(endpoint) = either("ENDPOINT") else {
            return Ok(None);
        };
        match either("PROTOCOL").as_deref() {
            None | Some("grpc") => Ok(Some(Protocol::Grpc)),
            Some("http/protobuf") => {
                ensure!(
                    !endpoint.starts_with("https:"),
                    "OTEL_EXPORTER_OTLP_ENDPOINT: https is supported with the protocol grpc only"
                );
                Ok(Some(Protocol::HttpProtobuf))
            }
            Some(other) => {
                bail!("OTEL_EXPORTER_OTLP_PROTOCOL: `{other}` is not one of grpc, http/protobuf")
            }
        }
    }

    /// The most spans that may wait for the collector.
    pub(super) fn queue_size(&self) -> usize {
        self.get("OTEL_BSP_MAX_QUEUE_SIZE")
            .and_then(|size| size.parse().ok())
            .filter(|size| *size > 0)
            .unwrap_or(DEFAULT_QUEUE)
    }

    /// The resource of the spans. `OTEL_RESOURCE_ATTRIBUTES` overrides `defaults`, and
    /// `OTEL_SERVICE_NAME` overrides both.
    pub(super) fn resource(&self, name: &str, defaults: Vec<KeyValue>) -> Resource {
        let resource = Resource::builder_empty()
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_service_name(name.to_owned())
            .with_attributes(defaults)
            .with_detector(Box::new(EnvResourceDetector::new()));
        match self.get("OTEL_SERVICE_NAME") {
            Some(name) => resource.with_service_name(name).build(),
            None => resource.build(),
        }
    }

    /// The resource of relayed spans: the deployment's attributes, and the program's own
    /// service name.
    pub(super) fn relayed_resource(&self, name: &str, defaults: Vec<KeyValue>) -> Resource {
        Resource::builder_empty()
            .with_attributes(defaults)
            .with_detector(Box::new(EnvResourceDetector::new()))
            .with_service_name(name.to_owned())
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");

    fn protocol_of(variables: &[(&str, &str)]) -> Result<Option<Protocol>, String> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        OtelVariables(lookup)
            .protocol()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn export_protocol_follows_otel_variables() {
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4317");
        let protocol = |name| ("OTEL_EXPORTER_OTLP_PROTOCOL", name);
        for (variables, expected) in [
            (vec![], None),
            (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", " ")], None),
            (vec![ENDPOINT], Some(Protocol::Grpc)),
            (vec![traces], Some(Protocol::Grpc)),
            (vec![ENDPOINT, protocol("grpc")], Some(Protocol::Grpc)),
            (
                vec![ENDPOINT, protocol("http/protobuf")],
                Some(Protocol::HttpProtobuf),
            ),
            (
                vec![
                    ENDPOINT,
                    protocol("grpc"),
                    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
                ],
                Some(Protocol::HttpProtobuf),
            ),
            (vec![ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")], None),
            (vec![ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")], None),
            (
                vec![ENDPOINT, ("OTEL_TRACES_SAMPLER", "always_off")],
                Some(Protocol::Grpc),
            ),
        ] {
            assert_eq!(protocol_of(&variables), Ok(expected), "{variables:?}");
        }
    }

    #[test]
    fn unsupported_otel_values_are_rejected_by_name() {
        for (name, value) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "xray"),
        ] {
            let error = protocol_of(&[ENDPOINT, (name, value)]).unwrap_err();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        let secure = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ];
        assert!(protocol_of(&secure).unwrap_err().contains("https"));
    }

    #[test]
    fn service_name_follows_otel_service_name_except_for_relayed_spans() {
        let name_of = |resource: Resource| {
            let name = resource.get(&opentelemetry::Key::new("service.name"));
            name.map(|name| name.to_string())
        };
        let plain = OtelVariables(|_: &str| None);
        assert_eq!(
            name_of(plain.resource("agentbox-auth", vec![])).as_deref(),
            Some("agentbox-auth")
        );
        let named =
            OtelVariables(|name: &str| (name == "OTEL_SERVICE_NAME").then(|| "mine".to_owned()));
        assert_eq!(
            name_of(named.resource("agentbox-auth", vec![])).as_deref(),
            Some("mine")
        );
        assert_eq!(
            name_of(named.relayed_resource("agentbox-boxd", vec![])).as_deref(),
            Some("agentbox-boxd")
        );
    }
}
