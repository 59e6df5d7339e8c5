//! `meshctl demo stop|start`: a second terminal acts on the running demo over a unix socket in its folder.
//!
//! One line in (`stop vm3`, `kill vm3`, `start vm3`), one line out (`ok …`, `no …`).

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::folder;
use crate::exit::{Exit, Failure, Result, plain};
use crate::output::say;

/// Name of the socket in the demo's folder.
const SOCKET: &str = "demo.sock";
/// How long either side waits for the other's line.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest line.
const MAX_LINE: u64 = 200;

/// What a second terminal wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Stop as `systemctl stop` would.
    Stop,
    /// Stop as a crash would.
    Kill,
    /// Start again.
    Start,
}

/// An order, and where its answer goes.
pub(crate) struct Order {
    /// What.
    pub(crate) act: Act,
    /// To which host.
    pub(crate) host: String,
    /// The answer.
    pub(crate) answer: oneshot::Sender<Result<String>>,
}

/// Stops a host of the running demo.
pub(crate) async fn stop(host: &str, kill: bool) -> Result<Exit> {
    ask(if kill { "kill" } else { "stop" }, host).await
}

/// Starts a host of the running demo.
pub(crate) async fn start(host: &str) -> Result<Exit> {
    ask("start", host).await
}

async fn ask(verb: &str, host: &str) -> Result<Exit> {
    let Some(folder) = folder::current() else {
        return Err(Failure::no_answer("no demo runs here; start one with `meshctl demo`"));
    };
    let silent =
        |error: io::Error| Failure::no_answer(format!("the demo does not answer ({})", plain(&error)));
    let exchange = async {
        let mut stream = UnixStream::connect(folder.join(SOCKET)).await?;
        stream.write_all(format!("{verb} {host}\n").as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE * 5)).read_line(&mut line).await?;
        Ok(line)
    };
    let line = timeout(PATIENCE, exchange)
        .await
        .map_err(|_| silent(io::ErrorKind::TimedOut.into()))?
        .map_err(silent)?;
    match line.trim_end().split_once(' ') {
        Some(("ok", done)) => {
            say(&format!("{done}\n"))?;
            Ok(Exit::Done)
        }
        Some(("no", why)) => Err(Failure::refused(why)),
        _ => Err(Failure::no_answer("the demo is ending")),
    }
}

/// Takes orders until dropped.
pub(crate) async fn serve(folder: &Path, orders: mpsc::Sender<Order>) -> io::Result<()> {
    let listener = UnixListener::bind(folder.join(SOCKET))?;
    loop {
        let (stream, _) = listener.accept().await?;
        // One at a time: there is one user, and every exchange has a limit.
        let _ = timeout(PATIENCE, exchange(stream, &orders)).await;
    }
}

async fn exchange(stream: UnixStream, orders: &mpsc::Sender<Order>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await?;
    let answer = match parse(line.trim_end()) {
        Some((act, host)) => {
            let (answer, answered) = oneshot::channel();
            let order = Order { act, host: host.to_owned(), answer };
            if orders.send(order).await.is_err() {
                return Ok(());
            }
            match answered.await {
                Ok(Ok(done)) => format!("ok {done}\n"),
                Ok(Err(failure)) => format!("no {failure}\n"),
                Err(_) => return Ok(()),
            }
        }
        None => "no such order: stop, kill or start, and a host\n".to_owned(),
    };
    write.write_all(answer.as_bytes()).await
}

fn parse(line: &str) -> Option<(Act, &str)> {
    let (verb, host) = line.split_once(' ')?;
    let act = match verb {
        "stop" => Act::Stop,
        "kill" => Act::Kill,
        "start" => Act::Start,
        _ => return None,
    };
    Some((act, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_a_verb_and_a_host() {
        assert_eq!(parse("stop vm3"), Some((Act::Stop, "vm3")));
        assert_eq!(parse("kill vm1"), Some((Act::Kill, "vm1")));
        assert_eq!(parse("dance vm1"), None);
        assert_eq!(parse("stop"), None);
    }
}
