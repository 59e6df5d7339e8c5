//! What gateways answer to an authority that wants to see that a name leads here (ACME), for as long as it asks.
//!
//! Orders put answers in ([`Challenges::token`], [`Challenges::certificate`]) and take them out by dropping what they were
//! given; gateways look them up. Where nothing is asked for, a look-up costs one load.
//!
//! Source: RFC 8555, section 8.3 (`http-01`); RFC 8737 (`tls-alpn-01`).

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::provider;

/// Answers to what authorities may ask now.
#[derive(Debug, Default)]
pub struct Challenges(ArcSwap<Asked>);

#[derive(Clone, Debug, Default)]
struct Asked {
    /// The content of `/.well-known/acme-challenge/TOKEN`, by token.
    tokens: HashMap<String, Arc<str>>,
    /// What is shown to whom asks for a name with [`ACME_TLS`].
    names: HashMap<String, Arc<ServerConfig>>,
}

/// Keeps an answer in place until it is dropped.
#[derive(Debug)]
pub struct Offered {
    challenges: Arc<Challenges>,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Token(String),
    Name(String),
}

impl Challenges {
    /// Answers a token with `content`.
    pub fn token(self: &Arc<Self>, token: &str, content: &str) -> Offered {
        let content: Arc<str> = content.into();
        self.change(|asked| asked.tokens.insert(token.to_owned(), content.clone()));
        Offered { challenges: self.clone(), answer: Answer::Token(token.to_owned()) }
    }

    /// Shows a certificate to whom asks for `name` with [`ACME_TLS`].
    ///
    /// # Errors
    /// The key is none.
    pub fn certificate(
        self: &Arc<Self>,
        name: &str,
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Offered, rustls::Error> {
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        // Its extension is critical, and unknown to rustls' own check of a pair.
        let pair = CertifiedKey::new(vec![certificate], provider().key_provider.load_private_key(key)?);
        let mut config = ServerConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        config.alpn_protocols = vec![ACME_TLS.to_vec()];
        let (name, config) = (name.to_ascii_lowercase(), Arc::new(config));
        self.change(|asked| asked.names.insert(name.clone(), config.clone()));
        Ok(Offered { challenges: self.clone(), answer: Answer::Name(name) })
    }

    /// Returns the answer to a request for `path`; `None`: it is no matter of orders of this host.
    pub fn answer(&self, path: &str) -> Option<Arc<str>> {
        let token = path.strip_prefix("/.well-known/acme-challenge/")?;
        self.0.load().tokens.get(token).cloned()
    }

    /// Returns what to show to whom asks for `name` (lower case) and offers `protocols`; `None`: as to any visitor.
    pub fn shown(&self, name: &str, protocols: &[Vec<u8>]) -> Option<Arc<ServerConfig>> {
        // RFC 8737, section 3: an authority offers this protocol and no other.
        let [only] = protocols else { return None };
        if only != ACME_TLS {
            return None;
        }
        self.0.load().names.get(name).cloned()
    }

    fn change<T>(&self, mut change: impl FnMut(&mut Asked) -> T) {
        self.0.rcu(|asked| {
            let mut asked = Asked::clone(asked);
            change(&mut asked);
            asked
        });
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        let answer = &self.answer;
        self.challenges.change(|asked| match answer {
            Answer::Token(token) => drop(asked.tokens.remove(token)),
            Answer::Name(name) => drop(asked.names.remove(name)),
        });
    }
}

/// The protocol of `tls-alpn-01`. Source: RFC 8737, section 6.2.
pub const ACME_TLS: &[u8] = b"acme-tls/1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_there_for_as_long_as_it_is_kept() {
        let challenges = Arc::new(Challenges::default());
        let (one, two) = (challenges.token("one", "one.thumb"), challenges.token("two", "two.thumb"));
        let answer = |path| challenges.answer(path).map(|answer| answer.to_string());

        assert_eq!(answer("/.well-known/acme-challenge/one").as_deref(), Some("one.thumb"));
        assert_eq!(answer("/.well-known/acme-challenge/three"), None);
        assert_eq!(answer("/.well-known/acme-challenge/"), None);
        assert_eq!(answer("/one"), None);
        drop(one);
        assert_eq!(answer("/.well-known/acme-challenge/one"), None);
        assert_eq!(answer("/.well-known/acme-challenge/two").as_deref(), Some("two.thumb"));
        drop(two);
    }

    #[test]
    fn a_certificate_is_shown_to_authorities_only() {
        let challenges = Arc::new(Challenges::default());
        let made = rcgen::generate_simple_self_signed(["shop.com".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let kept = challenges.certificate("Shop.com", made.cert.der().clone(), key).expect("they fit");
        let acme = || vec![ACME_TLS.to_vec()];

        assert!(challenges.shown("shop.com", &acme()).is_some());
        assert!(challenges.shown("other.com", &acme()).is_none());
        assert!(challenges.shown("shop.com", &[b"h2".to_vec()]).is_none());
        assert!(challenges.shown("shop.com", &[ACME_TLS.to_vec(), b"h2".to_vec()]).is_none());
        drop(kept);
        assert!(challenges.shown("shop.com", &acme()).is_none());
    }
}
