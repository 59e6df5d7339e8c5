//! Clients of others: curl, nghttp, h2load, and in Python a WebSocket client and grpcio. One that is not installed is
//! said to be SKIPPED; in CI that fails.

use std::net::SocketAddr;
use std::process::Stdio;

use mesh_core::plan::UpstreamProtocol;
use meshd::proxy::{Declared, Way};
use tokio::process::Command;

use super::lab::*;
use super::plan::*;

/// Runs a program; `None`, and words, where it is not installed.
async fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match command.output().await {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skipped(program);
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}\n{errors}", output.status);
    Some(text)
}

fn skipped(what: &str) {
    eprintln!("SKIPPED: {what} is not installed");
    assert!(std::env::var_os("CI").is_none(), "{what} must be installed in CI");
}

/// A Python that has a module: the one of `MESH_PYTHON`, else the system's.
async fn python(module: &str) -> Option<String> {
    let python = std::env::var("MESH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found =
        Command::new(&python).args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
    if found.await.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    skipped(&format!("Python's {module}"));
    None
}

async fn web() -> (Backend, Lab) {
    let backend = Backend::http1("v1").await;
    let lab = start(plan(vec![("*", vec![simple(cluster("reviews", vec![local(backend.address)]))])]));
    (backend, lab)
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}

#[tokio::test]
async fn curl_speaks_http1_http2_and_http10() {
    let (_backend, lab) = web().await;
    let url = url(lab.address);
    let large = "a".repeat(100_000);
    for (version, shown) in
        [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2"), ("--http2", "1.1"), ("--http1.0", "1")]
    {
        let usual = ["-sS", "--max-time", "10", "-w", " %{http_version} %{http_code}", version];
        let Some(got) = run("curl", &[&usual[..], &[&url]].concat()).await else { return };
        assert_eq!(
            got.trim_end_matches(".0 200"),
            format!("v1 {shown} 200").trim_end_matches(".0 200"),
            "{version}"
        );
        let Some(echoed) = run("curl", &[&usual[..], &["--data-binary", &large, &url]].concat()).await else {
            return;
        };
        assert!(
            echoed.starts_with(&large) && echoed.ends_with(" 200"),
            "{version}: {}",
            &echoed[echoed.len() - 40..]
        );
    }
    let chunked = [
        "-sS",
        "--max-time",
        "10",
        "-H",
        "Transfer-Encoding: chunked",
        "-H",
        "Expect: 100-continue",
        "-d",
        "hello",
        &url,
    ];
    assert_eq!(run("curl", &chunked).await.as_deref(), Some("hello"));
    let head = run("curl", &["-sS", "-I", "--max-time", "10", &url]).await.expect("curl is there");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
}

#[tokio::test]
async fn curl_passes_the_proxy_port() {
    let backend = Backend::http1("v1").await;
    let plan = plan(vec![("reviews", vec![simple(cluster("reviews", vec![local(backend.address)]))])]);
    let lab = start_with(plan, Way::HttpProxy { caller: 0 }, settings(), &no_credentials());
    let proxy = url(lab.address);

    for more in [&[][..], &["--proxytunnel"][..]] {
        let usual = ["-sS", "--max-time", "10", "--noproxy", "", "-x", &proxy];
        let Some(got) = run("curl", &[&usual[..], more, &["http://reviews/x"]].concat()).await else {
            return;
        };
        assert_eq!(got, "v1", "{more:?}");
    }
}

#[tokio::test]
async fn nghttp_uploads_and_reads() {
    let (_backend, lab) = web().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![b'x'; 300_000]).expect("room");
    let path = file.path().to_str().expect("text");

    let Some(text) = run("nghttp", &["-t", "10", "-d", path, &url(lab.address)]).await else { return };

    assert_eq!(text.len(), 300_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_loses_no_request() {
    let (_backend, lab) = web().await;
    for protocol in [&["-m", "20"][..], &["--h1"][..]] {
        let usual = ["-n", "2000", "-c", "4", "-t", "1", "-T", "20"];
        let address = url(lab.address);
        let Some(text) = run("h2load", &[&usual[..], protocol, &[&address]].concat()).await else { return };
        assert!(text.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{text}");
        assert!(text.contains("status codes: 2000 2xx"), "{text}");
    }
}

const WEBSOCKET: &str = r#"
import asyncio, sys, websockets
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main(port):
    # The application answers under the port that it prints; the caller goes through the proxy.
    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        proxy = sys.stdin.readline().strip()
        async with websockets.connect(f"ws://{proxy}/chat", max_size=None, proxy=None) as socket:
            for message in ["hello", "x" * 200000, b"\0\1" * 1000]:
                await socket.send(message)
                assert await socket.recv() == message
            await (await socket.ping())
        print("fine")
asyncio.run(main(0))
"#;

const GRPC: &str = r#"
import sys, threading, time, grpc
from concurrent import futures
def raw(value): return value
def unary(request, context):
    if request == b"late": time.sleep(2)
    if request == b"refuse": context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
    context.set_trailing_metadata((("x-sum", "7"),))
    return request
def chat(requests, context):
    for request in requests: yield request
def down(request, context):
    for n in range(int(request)): yield b"%d" % n
def up(requests, context): return b"%d" % sum(len(request) for request in requests)
def early(requests, context):
    # Answers before it has heard all.
    next(requests)
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
left = threading.Event()
def endless(request, context):
    context.add_callback(left.set)
    while context.is_active():
        yield b"more"
        time.sleep(0.01)
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/t.Echo/Unary": return grpc.unary_unary_rpc_method_handler(unary, raw, raw)
        if details.method == "/t.Echo/Down": return grpc.unary_stream_rpc_method_handler(down, raw, raw)
        if details.method == "/t.Echo/Up": return grpc.stream_unary_rpc_method_handler(up, raw, raw)
        if details.method == "/t.Echo/Early": return grpc.stream_stream_rpc_method_handler(early, raw, raw)
        if details.method == "/t.Echo/Endless": return grpc.unary_stream_rpc_method_handler(endless, raw, raw)
        if details.method == "/t.Echo/Chat": return grpc.stream_stream_rpc_method_handler(chat, raw, raw)
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Handler(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
proxy = sys.stdin.readline().strip()
channel = grpc.insecure_channel(proxy, options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)])
call = channel.unary_unary("/t.Echo/Unary", raw, raw)
answer, info = call.with_call(b"x" * 1000000, timeout=10)
assert answer == b"x" * 1000000 and dict(info.trailing_metadata())["x-sum"] == "7"
for request, code in [(b"refuse", "FAILED_PRECONDITION"), (b"late", "DEADLINE_EXCEEDED")]:
    try: call(request, timeout=0.5); assert False
    except grpc.RpcError as error: assert error.code().name == code or (code == "DEADLINE_EXCEEDED" and error.code().name == "UNAVAILABLE"), error
try: channel.unary_unary("/t.Echo/Nothing", raw, raw)(b"", timeout=10); assert False
except grpc.RpcError as error: assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
# Streaming: each answer comes before the next question.
answered = threading.Semaphore(0)
def questions():
    for n in range(100):
        yield b"%d" % n
        assert answered.acquire(timeout=10)
stream = channel.stream_stream("/t.Echo/Chat", raw, raw)(questions(), timeout=30)
for n, answer in enumerate(stream):
    assert answer == b"%d" % n
    answered.release()
assert n == 99
assert [int(n) for n in channel.unary_stream("/t.Echo/Down", raw, raw)(b"500", timeout=30)] == list(range(500))
assert channel.stream_unary("/t.Echo/Up", raw, raw)((b"x" * 1000 for _ in range(300)), timeout=30) == b"300000"
def patient():
    yield b"first"
    time.sleep(30)
    yield b"never"
try: list(channel.stream_stream("/t.Echo/Early", raw, raw)(patient(), timeout=10)); assert False
except grpc.RpcError as error: assert (error.code().name, error.details()) == ("RESOURCE_EXHAUSTED", "enough"), error
# A caller that leaves: the application hears of it.
stream = channel.unary_stream("/t.Echo/Endless", raw, raw)(b"", timeout=30)
assert next(stream) == b"more"
stream.cancel()
assert left.wait(10)
for _ in range(2000): assert call(b"y", timeout=10) == b"y"
print("fine")
"#;

/// Runs a script that first prints where its application listens and then wants to know where the proxy does.
async fn script(python: &str, text: &str, protocol: UpstreamProtocol) {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    let mut command = Command::new(python);
    command.args(["-c", text]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("python starts");
    let mut out = BufReader::new(child.stdout.take().expect("its output"));
    let mut port = String::new();
    out.read_line(&mut port).await.expect("text");
    let address = loopback(port.trim().parse().expect("a port"));
    let mut cluster = cluster("reviews", vec![local(address)]);
    cluster.protocol = protocol;
    let lab = start_with(
        plan(vec![("*", vec![simple(cluster)])]),
        service(Declared::Http),
        settings(),
        &no_credentials(),
    );
    let mut input = child.stdin.take().expect("its input");
    input.write_all(format!("{}\n", lab.address).as_bytes()).await.expect("open");
    let mut rest = String::new();
    out.read_to_string(&mut rest).await.expect("text");
    let status = child.wait().await.expect("an end");
    assert!(status.success() && rest.trim() == "fine", "{status}: {rest}");
}

#[tokio::test]
async fn a_websocket_client_of_python_talks() {
    let Some(python) = python("websockets").await else { return };
    script(&python, WEBSOCKET, UpstreamProtocol::Http1).await;
}

#[tokio::test]
async fn grpcio_calls_and_streams() {
    let Some(python) = python("grpc").await else { return };
    script(&python, GRPC, UpstreamProtocol::Http2).await;
}
