//! The socket and the ports, over real sockets.

use mesh_proto::api::Get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn echo() -> Handler {
    Arc::new(|request, _| {
        Box::pin(async move {
            match request {
                Request::Version => Ok(Response::Version { version: "9".into(), pid: 0, clock_ms: 0 }),
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
    assert!(answer.ends_with(r#"{"version":{"version":"9","pid":0,"clock_ms":0}}"#), "{answer}");
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
        metrics: Arc::new(|_| "meshd_up 1\n".into()),
        reads: Some(echo()),
    };
    let (_drain, draining) = crate::drain::channel();
    task::spawn("test", serve_port(listener, pages, draining));
    let get = async |line: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        ask(&mut stream, &format!("{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")).await
    };

    assert!(get("GET /ready").await.contains("503"));
    assert!(get("GET /ready").await.contains("no Plan yet"));
    assert!(get("GET /metrics").await.ends_with("meshd_up 1\n"));
    assert!(get("GET /version").await.contains(r#""version":"9""#));
    assert!(get("POST /version").await.contains("405"));
    assert!(get("GET /v1/call").await.contains("404"));
}

/// Asks an admin port for `path` with more fields, each with its line end.
async fn page(path: &str, fields: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let pages = Pages {
        ready: Arc::new(|| Ok(())),
        metrics: Arc::new(|_| "meshd_up 1\n".into()),
        reads: Some(echo()),
    };
    let (_drain, draining) = crate::drain::channel();
    task::spawn("test", serve_port(listener, pages, draining));
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    ask(&mut stream, &format!("GET {path} HTTP/1.1\r\n{fields}connection: close\r\n\r\n")).await
}

#[tokio::test]
async fn a_browser_gets_the_page_and_a_program_the_list() {
    let browser = page("/", "host: localhost:15000\r\naccept: text/html,*/*\r\n").await;
    assert!(browser.contains("content-security-policy: default-src 'none'"), "{browser}");
    assert!(browser.contains("<title>meshd</title>"));

    let program = page("/", "host: localhost:15000\r\naccept: */*\r\n").await;
    assert!(program.contains("/endpoints?host=NAME"), "{program}");

    // All that the page asks for is there, and nothing of it comes from elsewhere.
    let links = browser.split(['"']).filter(|part| part.starts_with("/ui/"));
    for path in links.chain(["/ui/map.js", "/ui/model.js", "/ui/words.js"]) {
        assert!(page(path, "host: localhost\r\n").await.starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(!browser.contains("src=\"http") && !browser.contains("href=\"http"));
}

#[tokio::test]
async fn the_mesh_is_told_to_those_who_ask_for_loopback_only() {
    for host in ["localhost", "127.0.0.1:15000", "127.0.1.3:15000", "[::1]:15000", "LocalHost:1"] {
        let answer = page("/version", &format!("host: {host}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1:15000", "127.0.0.1.evil.example", ""] {
        for path in ["/version", "/", "/ui/main.js"] {
            let answer = page(path, &format!("host: {host}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 421"), "{host}: {answer}");
        }
        // A scraper may call this host as it likes: counters tell nothing that a page could use.
        assert!(page("/metrics", &format!("host: {host}\r\n")).await.starts_with("HTTP/1.1 200"));
    }
}
