//! A server that records requests and plays answers, and a way to run meshctl against it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use mesh_proto::api::{ApiError, ErrorCode, Request, Response};
use tempfile::TempDir;

type Answer = dyn Fn(&Request, usize) -> Result<Response, ApiError> + Send + Sync;

/// A meshd that is not one.
pub(crate) struct Server {
    home: TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// How a run of meshctl ended.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Server {
    /// Serves `answer`, which gets each request and how many came before it.
    pub(crate) fn start(
        answer: impl Fn(&Request, usize) -> Result<Response, ApiError> + Send + Sync + 'static,
    ) -> Self {
        let home = tempfile::tempdir().expect("folder");
        let listener = UnixListener::bind(home.path().join("meshd.sock")).expect("bound");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, kept): (Arc<Answer>, _) = (Arc::new(answer), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serve = || serve(stream, answer.as_ref(), &kept);
                // A test that panics in its answer hangs up, as a meshd that crashes does.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(serve));
            }
        });
        Self { home, requests }
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("lock").clone()
    }

    /// A file beside the socket.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// Runs meshctl in the server's folder.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with_input(arguments, "")
    }

    /// Runs meshctl with something on standard input.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        run(self.home.path(), Some(&self.home.path().join("meshd.sock")), arguments, input)
    }
}

/// Runs meshctl in a folder.
pub(crate) fn run(folder: &Path, socket: Option<&Path>, arguments: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(arguments).current_dir(folder).env_remove("MESHD_SOCKET");
    // No demo of this machine is to be found.
    command.env("XDG_RUNTIME_DIR", folder);
    if let Some(socket) = socket {
        command.env("MESHD_SOCKET", socket);
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A meshctl that ended already does not read.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("ends");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

fn serve(stream: UnixStream, answer: &Answer, requests: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
    let mut first = String::new();
    reader.read_line(&mut first).expect("read");
    assert_eq!(first.trim_end(), "POST /v1/call HTTP/1.1");
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("read");
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("read");
    let request: Request = serde_json::from_slice(&body).expect("a request");
    let before = {
        let mut requests = requests.lock().expect("lock");
        requests.push(request.clone());
        requests.len() - 1
    };
    let (status, body) = match answer(&request, before) {
        Ok(response) => ("200 OK", serde_json::to_vec(&response)),
        Err(error) => ("409 Conflict", serde_json::to_vec(&error)),
    };
    let body = body.expect("written");
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let mut stream = stream;
    // meshctl may have left.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// A refusal.
pub(crate) fn no(code: ErrorCode, message: &str) -> Result<Response, ApiError> {
    Err(ApiError { code, message: message.into(), findings: Vec::new() })
}

/// Runs meshctl without any meshd.
pub(crate) fn alone(arguments: &[&str]) -> Ran {
    let home = tempfile::tempdir().expect("folder");
    run(home.path(), None, arguments, "")
}
