//! gRPC, both ends: HTTP/2 with prior knowledge, messages in both directions at once, the status in trailers.

use std::io::{Error, Result};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Sends every message back as it comes; in the end, how many bytes there were and the status 0, as trailers.
pub(crate) fn serve(address: &str) -> Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            connections.spawn(connection(stream));
        }
    })
}

async fn connection(stream: TcpStream) -> std::result::Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    let mut calls = JoinSet::new();
    while let Some(next) = connection.accept().await {
        let (request, mut respond) = next?;
        calls.spawn(async move {
            let head = Response::builder().header("content-type", "application/grpc").body(());
            let send = respond.send_response(head.expect("a sound head"), false)?;
            echo(request.into_body(), send).await
        });
    }
    Ok(())
}

async fn echo(mut body: RecvStream, mut send: SendStream<Bytes>) -> std::result::Result<(), h2::Error> {
    let mut length = 0;
    while let Some(bytes) = body.data().await.transpose()? {
        length += bytes.len();
        body.flow_control().release_capacity(bytes.len())?;
        send.send_data(bytes, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("x-bytes", length.into());
    send.send_trailers(trailers)
}

/// Makes one call with `messages` messages, each sent only when the one before has come back; prints the trailers.
pub(crate) fn call(to: &str, messages: u32) -> Result<()> {
    runtime()?.block_on(async {
        let stream = TcpStream::connect(to).await?;
        let (mut client, connection) = h2::client::handshake(stream).await.map_err(Error::other)?;
        tokio::select! {
            ended = connection => Err(Error::other(format!("the connection ended: {ended:?}"))),
            called = async {
                let request = Request::post(format!("http://{to}/lab.Echo/Stream"))
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(())
                    .map_err(Error::other)?;
                let (response, send) = client.send_request(request, false).map_err(Error::other)?;
                converse(response, send, messages).await.map_err(Error::other)
            } => called,
        }
    })
}

async fn converse(
    response: h2::client::ResponseFuture,
    mut send: SendStream<Bytes>,
    messages: u32,
) -> std::result::Result<(), h2::Error> {
    send.send_data(message(0), false)?;
    let response = response.await?;
    crate::say(&format!("status {}", response.status().as_u16()));
    let mut body = response.into_body();
    for number in 0..messages {
        if number > 0 {
            send.send_data(message(number), false)?;
        }
        let wanted = message(number);
        let mut came = BytesMut::new();
        while came.len() < wanted.len() {
            let Some(bytes) = body.data().await.transpose()? else { break };
            body.flow_control().release_capacity(bytes.len())?;
            came.extend_from_slice(&bytes);
        }
        let how = if came == wanted { "came back" } else { "did not come back" };
        crate::say(&format!("message {number} {how}"));
    }
    send.send_data(Bytes::new(), true)?;
    while body.data().await.transpose()?.is_some() {}
    for (name, value) in body.trailers().await?.unwrap_or_default() {
        let name = name.map(|name| name.to_string()).unwrap_or_default();
        crate::say(&format!("{name}: {}", value.to_str().unwrap_or("?")));
    }
    Ok(())
}

/// A message with its prefix: not compressed, its length.
fn message(number: u32) -> Bytes {
    let text = format!("message {number}");
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    bytes.put_slice(text.as_bytes());
    bytes.freeze()
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
