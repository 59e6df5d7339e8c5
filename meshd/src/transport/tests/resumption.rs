//! Sessions of TLS that are taken up again.

use super::*;

/// Opens a hop and reads one byte from it, so that session tickets have arrived.
async fn one_hop(dialer: &Dialer, port: &mut Port) -> Result<(), Refused> {
    let (expect, from) = (reviews(), workload("productpage"));
    let target = target(port.address(), Transport::Tcp, &expect, &from);
    let client = async {
        let mut stream = dial_hop(dialer, target).await.ok()?;
        let byte = stream.read_u8().await.ok();
        let LinkStream::Tcp(tls) = &stream else { return None };
        let kind = tls.session().handshake_kind();
        byte.and(kind)
    };
    let server = async {
        match port.accept().await? {
            Accepted::Hop(_, mut stream) => {
                let _ = stream.write_all(b"!").await;
                let _ = stream.flush().await;
                let _ = stream.read_u8().await;
                Ok(())
            }
            other => panic!("{other:?}"),
        }
    };
    let (kind, served) = tokio::join!(client, server);
    KINDS.with(|kinds| kinds.borrow_mut().push(kind));
    served
}

thread_local! {
    static KINDS: std::cell::RefCell<Vec<Option<rustls::HandshakeKind>>> = const { std::cell::RefCell::new(Vec::new()) };
}

#[tokio::test]
async fn sessions_resume_until_something_changes_and_never_for_the_revoked() {
    use rustls::HandshakeKind::{Full, Resumed};
    let mesh = Mesh::new();
    let serving = reviews_host(&mesh);
    let mut port = Port::new(Transport::Tcp, &serving);
    let dialer = dialer(&credentials(&mesh, "1", &["productpage"]));
    KINDS.with(|kinds| kinds.borrow_mut().clear());
    one_hop(&dialer, &mut port).await.unwrap();
    one_hop(&dialer, &mut port).await.unwrap();
    serving.install(&workload("reviews"), mesh.certify(&workload("reviews")));
    one_hop(&dialer, &mut port).await.unwrap();
    let kinds = KINDS.with(|kinds| kinds.borrow().clone());
    assert_eq!(kinds, [Some(Full), Some(Resumed), Some(Full)]);
    serving.trust().set_denied(Denied { identities: [workload("productpage")].into(), ..Denied::default() });
    let refused = one_hop(&dialer, &mut port).await.unwrap_err();
    assert!(
        matches!(&refused.fault, TlsFault::Certificate(fault) if matches!(**fault, Fault::Revoked(_))),
        "{refused}"
    );
}
