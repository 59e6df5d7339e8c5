//! Kinds that are not ours: what to say to whoever applies one.

/// Returns why meshd does not take a known kind of Istio or Kubernetes, and what to do instead.
///
/// `None` for a kind nobody knows.
pub(super) fn reason(group: &str, kind: &str) -> Option<(&'static str, &'static str)> {
    if group == "gateway.networking.k8s.io" {
        return Some((GATEWAY_API, "write a VirtualService instead"));
    }
    let found = match kind {
        "EnvoyFilter" => (
            "is not supported: it changes Envoy's configuration, and there is no Envoy in meshd",
            "leave it out",
        ),
        "WasmPlugin" | "TrafficExtension" => {
            ("is not supported: it extends Envoy, and there is no Envoy in meshd", "leave it out")
        }
        "ProxyConfig" => (
            "is not supported: it configures Envoy, and there is no Envoy in meshd",
            "settings of a host are in meshd.toml",
        ),
        "Service" | "Endpoints" | "EndpointSlice" => (
            "is a kind of Kubernetes",
            "register the service on its hosts with \"meshctl service register\", or write a ServiceEntry",
        ),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Pod" | "Job" | "CronJob" => (
            "is a kind of Kubernetes, and meshd starts no workloads",
            "start the program on its host and register it with \"meshctl service register\"",
        ),
        "ConfigMap"
        | "Secret"
        | "Namespace"
        | "ServiceAccount"
        | "Ingress"
        | "NetworkPolicy"
        | "Role"
        | "RoleBinding"
        | "ClusterRole"
        | "ClusterRoleBinding"
        | "CustomResourceDefinition"
        | "HorizontalPodAutoscaler"
        | "PersistentVolumeClaim" => ("is a kind of Kubernetes, and has no meaning in meshd", "leave it out"),
        "HTTPRoute" | "GRPCRoute" | "TCPRoute" | "TLSRoute" | "GatewayClass" => {
            (GATEWAY_API, "write a VirtualService instead")
        }
        _ => return None,
    };
    Some(found)
}

const GATEWAY_API: &str = "is of the Kubernetes Gateway API, which meshd does not read";
