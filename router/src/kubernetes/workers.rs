//! From EndpointSlices to workers' addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use disagg_api::kubernetes::WORKER_GRPC_PORT_NAME;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::workers::EndpointState;

/// The address of every worker, with what Kubernetes says of its pod.
///
/// A pod with two addresses (dual stack) counts once, by its IPv4 address. While endpoints move from slice to slice one
/// can be in two; it then is what the worse of the two says.
pub(super) fn workers<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> BTreeMap<String, EndpointState> {
    // By pod, so that each is one worker.
    let mut pods: BTreeMap<String, (bool, String, EndpointState)> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let named = ports.iter().find(|port| port.name.as_deref() == Some(WORKER_GRPC_PORT_NAME));
        let Some(port) = named.and_then(|port| port.port) else { continue };
        for endpoint in slice.endpoints.as_deref().unwrap_or_default() {
            // More than one address of an endpoint has no meaning, by the API's own documentation.
            let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let (second_choice, address) = match ip {
                IpAddr::V4(ip) => (false, format!("{ip}:{port}")),
                IpAddr::V6(ip) => (true, format!("[{ip}]:{port}")),
            };
            let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.name.clone());
            let pod = pod.unwrap_or_else(|| address.clone());
            let endpoint_state = endpoint_state(endpoint);
            pods.entry(pod)
                .and_modify(|known| {
                    let worse = known.2.max(endpoint_state);
                    if (second_choice, &address) < (known.0, &known.1) {
                        *known = (second_choice, address.clone(), worse);
                    } else {
                        known.2 = worse;
                    }
                })
                .or_insert((second_choice, address, endpoint_state));
        }
    }
    pods.into_values().map(|(_, address, endpoint_state)| (address, endpoint_state)).collect()
}

/// `serving` rather than `ready`: for a Service that publishes addresses that are not ready, `ready` is always true.
/// What is not said counts as yes, as the API's documentation asks.
fn endpoint_state(endpoint: &Endpoint) -> EndpointState {
    let Some(conditions) = &endpoint.conditions else { return EndpointState::Serving };
    if conditions.terminating == Some(true) {
        EndpointState::Terminating
    } else if conditions.serving.or(conditions.ready) == Some(false) {
        EndpointState::NotServing
    } else {
        EndpointState::Serving
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(family: &str, port: &Value, endpoints: &Value) -> EndpointSlice {
        let slice = json!({
            "metadata": { "name": "s" }, "addressType": family, "ports": port, "endpoints": endpoints,
        });
        serde_json::from_value(slice).unwrap()
    }

    fn endpoint(pod: &str, address: &str, conditions: &Value) -> Value {
        json!({
            "addresses": [address], "conditions": conditions, "targetRef": { "kind": "Pod", "name": pod },
        })
    }

    fn grpc() -> Value {
        json!([{ "name": "metrics", "port": 9090 }, { "name": "grpc", "port": 9000 }])
    }

    fn found(slices: &[EndpointSlice]) -> Vec<(String, EndpointState)> {
        workers(slices).into_iter().collect()
    }

    #[test]
    fn conditions_say_how_a_worker_stands() {
        let cases = [
            (json!({ "ready": true, "serving": true, "terminating": false }), EndpointState::Serving),
            (json!({}), EndpointState::Serving),
            (json!({ "ready": true }), EndpointState::Serving),
            (json!({ "ready": false }), EndpointState::NotServing),
            // Its Service publishes what is not ready.
            (json!({ "ready": true, "serving": false, "terminating": false }), EndpointState::NotServing),
            (json!({ "ready": false, "serving": true, "terminating": true }), EndpointState::Terminating),
            (json!({ "ready": true, "serving": true, "terminating": true }), EndpointState::Terminating),
        ];
        for (conditions, expected) in cases {
            let slices = [slice("IPv4", &grpc(), &json!([endpoint("d-0", "10.0.0.1", &conditions)]))];
            assert_eq!(found(&slices), [("10.0.0.1:9000".to_owned(), expected)], "{conditions}");
        }
        let without = json!([{ "addresses": ["10.0.0.1"] }]);
        assert_eq!(
            found(&[slice("IPv4", &grpc(), &without)]),
            [("10.0.0.1:9000".to_owned(), EndpointState::Serving)]
        );
    }

    #[test]
    fn a_pod_is_one_worker() {
        let v4 = slice("IPv4", &grpc(), &json!([endpoint("d-0", "10.0.0.1", &json!({}))]));
        let v6 = slice("IPv6", &grpc(), &json!([endpoint("d-0", "fd00::1", &json!({}))]));
        let expected = [("10.0.0.1:9000".to_owned(), EndpointState::Serving)];
        assert_eq!(found(&[v4.clone(), v6.clone()]), expected);
        assert_eq!(found(&[v6.clone(), v4]), expected);
        assert_eq!(found(&[v6]), [("[fd00::1]:9000".to_owned(), EndpointState::Serving)]);
    }

    #[test]
    fn an_endpoint_in_two_slices_is_what_the_worse_says() {
        let old = slice("IPv4", &grpc(), &json!([endpoint("d-0", "10.0.0.1", &json!({ "ready": true }))]));
        let new =
            slice("IPv4", &grpc(), &json!([endpoint("d-0", "10.0.0.1", &json!({ "terminating": true }))]));
        let expected = [("10.0.0.1:9000".to_owned(), EndpointState::Terminating)];
        assert_eq!(found(&[old.clone(), new.clone()]), expected);
        assert_eq!(found(&[new, old]), expected);
    }

    #[test]
    fn what_is_no_worker_is_passed_over() {
        let other_port = json!([{ "name": "http", "port": 80 }]);
        let of_names = json!([endpoint("d-0", "worker.example.com", &json!({}))]);
        for slice in [
            slice("IPv4", &other_port, &json!([endpoint("d-0", "10.0.0.1", &json!({}))])),
            slice("IPv4", &Value::Null, &Value::Null),
            slice("FQDN", &grpc(), &of_names),
            slice("IPv4", &grpc(), &json!([{ "addresses": [] }])),
        ] {
            assert_eq!(found(&[slice]), []);
        }
    }
}
