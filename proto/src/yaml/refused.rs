//! Kinds that are not ours: what to say to whoever applies one.

/// Returns why meshd does not take a known kind of Istio or Kubernetes, and how the same is said here.
///
/// `None` for a kind nobody knows.
pub(super) fn reason(group: &str, kind: &str) -> Option<(&'static str, &'static str)> {
    match group {
        "gateway.networking.k8s.io" | "gateway.networking.x-k8s.io" => {
            Some((GATEWAY_API, in_gateway_api(kind)))
        }
        "networking.istio.io" | "extensions.istio.io" | "install.istio.io" => of_istio(kind),
        _ => of_kubernetes(kind).or_else(|| of_istio(kind)).or_else(|| by_group(group)),
    }
}

const GATEWAY_API: &str = "is of the Kubernetes Gateway API, which meshd does not read";
const KUBERNETES: &str = "is a kind of Kubernetes";

fn in_gateway_api(kind: &str) -> &'static str {
    match kind {
        "Gateway" => {
            "write a Gateway of networking.istio.io: its selector picks hosts by the labels in their meshd.toml"
        }
        "GatewayClass" => {
            "leave it out: a Gateway of networking.istio.io is opened by the hosts its selector picks"
        }
        "TCPRoute" => "write a VirtualService with tcp routes",
        "TLSRoute" => "write a VirtualService with tls routes",
        "BackendTLSPolicy" => "write a DestinationRule with trafficPolicy.tls",
        "ReferenceGrant" => "leave it out: exportTo of a service or rule says who may use it",
        _ => "write a VirtualService instead",
    }
}

fn of_istio(kind: &str) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        "EnvoyFilter" => (
            "is not supported: it changes Envoy's configuration, and there is no Envoy in meshd",
            "retries, limits, header rules, CORS and TLS are in VirtualService and DestinationRule; leave the rest out",
        ),
        "WasmPlugin" | "TrafficExtension" => (
            "is not supported: it extends Envoy, and there is no Envoy in meshd",
            "run its code as a service, and route to that service",
        ),
        "ProxyConfig" => (
            "is not supported: it configures Envoy, and there is no Envoy in meshd",
            "settings of a host are in its meshd.toml (concurrency is proxy.workers)",
        ),
        "IstioOperator" => (
            "is not supported: it installs Istio",
            "what stands in its meshConfig is an object of its own here: kind MeshConfig of mesh.istio.io/v1alpha1",
        ),
        _ => return None,
    })
}

fn of_kubernetes(kind: &str) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        "Service" | "Endpoints" | "EndpointSlice" => (
            KUBERNETES,
            "register the service on its hosts with \"meshctl service register\", or write a ServiceEntry",
        ),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Pod" | "Job" | "CronJob" => (
            "is a kind of Kubernetes, and meshd starts no workloads",
            "start the program on its host and register it with \"meshctl service register\"",
        ),
        "Ingress" | "IngressClass" => (KUBERNETES, "write a Gateway and a VirtualService bound to it"),
        "Secret" => (
            KUBERNETES,
            "a secret named by credentialName is a folder of the host, DATA/secrets/NAME with tls.crt, tls.key and ca.crt",
        ),
        "Certificate" | "Issuer" | "ClusterIssuer" => (
            "is a kind of Kubernetes' cert-manager",
            "put what it would make into DATA/secrets/NAME of the host: tls.crt, tls.key and ca.crt are read again when they change",
        ),
        "ConfigMap" => (
            KUBERNETES,
            "settings of the mesh are an object of kind MeshConfig, those of a host are in its meshd.toml",
        ),
        "Namespace" => (KUBERNETES, "leave it out: a namespace is there as soon as something names it"),
        "ServiceAccount" => {
            (KUBERNETES, "leave it out: the account of a service is said where it is registered (--account)")
        }
        "NetworkPolicy" => {
            (KUBERNETES, "use the firewall of the hosts; between them only port 15008 need be open")
        }
        "PodMonitor" | "ServiceMonitor" | "Prometheus" => {
            ("is a kind of Kubernetes' Prometheus operator", "let Prometheus scrape port 15020 of each host")
        }
        "Role"
        | "RoleBinding"
        | "ClusterRole"
        | "ClusterRoleBinding"
        | "CustomResourceDefinition"
        | "HorizontalPodAutoscaler"
        | "PodDisruptionBudget"
        | "PersistentVolumeClaim"
        | "PersistentVolume"
        | "MutatingWebhookConfiguration"
        | "ValidatingWebhookConfiguration"
        | "PodSecurityPolicy" => NO_MEANING,
        _ => return None,
    })
}

const NO_MEANING: (&str, &str) = ("is a kind of Kubernetes, and has no meaning in meshd", "leave it out");

/// Kinds are many; groups tell too.
fn by_group(group: &str) -> Option<(&'static str, &'static str)> {
    let of_kubernetes =
        group.ends_with(".k8s.io") || matches!(group, "apps" | "batch" | "autoscaling" | "policy");
    of_kubernetes.then_some(NO_MEANING)
}
