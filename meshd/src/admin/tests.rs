//! The socket and the ports, over real sockets.

use mesh_proto::api::Get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn echo() -> Handler {
    Arc::new(|request, _| {
        Box::pin(async move {
            match request {
                Request::Version => Ok(Response::Version { version: "9".into(), pid: 0 }),
                _ => Err(ApiError {
                    code: ErrorCode::NoQuorum,
                    message: "no quorum".into(),
                    findings: Vec::new(),
                }),
            }
        })
    })
}

async fn ask(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    answer
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/call HTTP/1.1\r\nhost: meshd\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn socket(handler: Handler) -> (tempfile::TempDir, PathBuf, crate::drain::Drain) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("meshd.sock");
    let listener = bind_socket(&path, &Listeners::default()).await.expect("a socket");
    let (drain, draining) = crate::drain::channel();
    task::spawn("test", serve_socket(listener, handler, draining));
    (folder, path, drain)
}

#[tokio::test]
async fn a_call_is_answered_with_json() {
    let (_folder, path, _drain) = socket(echo()).await;
    let mut stream = tokio::net::UnixStream::connect(&path).await.expect("connected");

    let answer = ask(&mut stream, &post("\"version\"")).await;

    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(r#"{"version":{"version":"9"}}"#), "{answer}");
}

#[tokio::test]
async fn an_error_has_the_status_that_says_the_same() {
    let (_folder, path, _drain) = socket(echo()).await;
    let mut stream = tokio::net::UnixStream::connect(&path).await.expect("connected");
    let request = serde_json::to_string(&Request::Get(Get::default())).expect("json");

    let answer = ask(&mut stream, &post(&request)).await;

    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("no quorum"));
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_a_reason() {
    let (_folder, path, _drain) = socket(echo()).await;
    for body in ["", "{", "\"dance\"", "[1]"] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.expect("connected");
        let answer = ask(&mut stream, &post(body)).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{body}: {answer}");
        assert!(answer.contains("of one version?"));
    }
}

#[tokio::test]
async fn a_socket_in_use_is_not_taken_and_a_dead_one_is_replaced() {
    let (folder, path, _drain) = socket(echo()).await;
    assert!(matches!(bind_socket(&path, &Listeners::default()).await, Err(SocketError::Taken(_))));

    let dead = folder.path().join("dead.sock");
    drop(bind_socket(&dead, &Listeners::default()).await.expect("a socket"));
    assert!(bind_socket(&dead, &Listeners::default()).await.is_ok());
}

#[tokio::test]
async fn the_port_reads_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let pages = Pages {
        ready: Arc::new(|| Err("no Plan yet".into())),
        metrics: Arc::new(|| "meshd_up 1\n".into()),
        reads: Some(echo()),
    };
    let (_drain, draining) = crate::drain::channel();
    task::spawn("test", serve_port(listener, pages, draining));
    let get = async |line: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        ask(&mut stream, &format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    };

    assert!(get("GET /ready").await.contains("503"));
    assert!(get("GET /ready").await.contains("no Plan yet"));
    assert!(get("GET /metrics").await.ends_with("meshd_up 1\n"));
    assert!(get("GET /version").await.contains(r#""version":"9""#));
    assert!(get("POST /version").await.contains("405"));
    assert!(get("GET /v1/call").await.contains("404"));
}
