//! One order, from the names to the chain: each name proven in the way that was chosen for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, KeyAuthorization, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

use super::OrderError;
use crate::config::Challenge;
use crate::transport::{Challenges, Offered};

/// How an authority sees that a name leads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It asks a gateway's plain port for a token.
    Http,
    /// It shakes hands with a gateway, which shows it a certificate made for that.
    Tls,
}

impl Way {
    pub(super) fn challenge(self) -> Challenge {
        match self {
            Self::Http => Challenge::Http,
            Self::Tls => Challenge::Tls,
        }
    }

    fn kind(self) -> ChallengeType {
        match self {
            Self::Http => ChallengeType::Http01,
            Self::Tls => ChallengeType::TlsAlpn01,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Http => "http-01",
            Self::Tls => "tls-alpn-01",
        }
    }
}

/// What an order brought; PEM.
pub(super) struct Issued {
    pub(super) chain: String,
    pub(super) key: Zeroizing<String>,
}

/// Carries an order out. Whatever gateways were told to answer is forgotten when this ends.
pub(super) async fn carry_out(
    account: &Account,
    names: &[String],
    ways: &BTreeMap<String, Way>,
    challenges: &Arc<Challenges>,
) -> Result<Issued, OrderError> {
    let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let offered = offer(&mut order, ways, challenges).await?;
    let policy = RetryPolicy::default().timeout(super::ORDER_WITHIN);
    let ready = order.poll_ready(&policy).await;
    drop(offered);
    if !matches!(ready, Ok(OrderStatus::Ready)) {
        return Err(why_not(&mut order, ways, ready.err()).await);
    }
    let (key, request) = request(names)?;
    order.finalize_csr(&request).await?;
    let chain = order.poll_certificate(&policy).await?;
    Ok(Issued { chain, key })
}

/// Lets gateways answer what the authority will ask, then tells it to ask.
async fn offer(
    order: &mut Order,
    ways: &BTreeMap<String, Way>,
    challenges: &Arc<Challenges>,
) -> Result<Vec<Offered>, OrderError> {
    let mut offered = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            // Proven for an order before this one.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            status => return Err(OrderError::Unproven(format!("{name}: its proof is {status:?}"))),
        }
        let way = ways.get(&name.to_ascii_lowercase()).copied();
        let way = way.ok_or_else(|| OrderError::Unproven(format!("{name} was not asked for")))?;
        let Some(mut challenge) = authorization.challenge(way.kind()) else {
            let text = format!("{name}: the authority does not offer {}", way.word());
            return Err(OrderError::Unproven(text));
        };
        let proof = challenge.key_authorization();
        offered.push(match way {
            Way::Http => challenges.token(&challenge.token, proof.as_str()),
            Way::Tls => certificate(&name, &proof, challenges)?,
        });
        challenge.set_ready().await?;
    }
    Ok(offered)
}

/// Makes what is shown for `tls-alpn-01`: a certificate with the proof in it. Source: RFC 8737, section 3.
fn certificate(
    name: &str,
    proof: &KeyAuthorization,
    challenges: &Arc<Challenges>,
) -> Result<Offered, OrderError> {
    let made = || -> Result<_, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(proof.digest().as_ref())];
        Ok((params.self_signed(&key)?, key))
    };
    let (certificate, key) = made().map_err(|error| OrderError::Crypto(error.to_string()))?;
    let key =
        PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| OrderError::Crypto(error.into()))?;
    challenges
        .certificate(name, certificate.der().clone(), key)
        .map_err(|error| OrderError::Crypto(error.to_string()))
}

/// Makes a key (P-256) and asks for a certificate of it.
fn request(names: &[String]) -> Result<(Zeroizing<String>, Vec<u8>), OrderError> {
    let made = || -> Result<_, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        Ok((Zeroizing::new(key.serialize_pem()), request.der().to_vec()))
    };
    made().map_err(|error| OrderError::Crypto(error.to_string()))
}

/// Asks the authority what it did not see.
async fn why_not(
    order: &mut Order,
    ways: &BTreeMap<String, Way>,
    error: Option<instant_acme::Error>,
) -> OrderError {
    let mut words = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            break;
        }
        let name = authorization.identifier().to_string();
        for challenge in &authorization.challenges {
            let Some(problem) = &challenge.error else { continue };
            let port = match challenge.r#type {
                ChallengeType::Http01 => "; it asks port 80 of the name's address",
                ChallengeType::TlsAlpn01 => "; it asks port 443 of the name's address",
                _ => "",
            };
            let way = ways.get(&name).map_or("", |way| way.word());
            words.push(format!("{name}, {way}: {problem}{port}"));
        }
    }
    match error {
        _ if !words.is_empty() => OrderError::Unproven(words.join(". ")),
        Some(error) => error.into(),
        None => OrderError::Unproven("the authority gave the order up and does not say why".to_owned()),
    }
}
