//! TLS between a box's boxd and its clients, without certificates.
//!
//! Both ends know the box's token, and derive the box's Ed25519 key from it. boxd proves with it
//! that it is the boxd of this box: its public key is a raw public key (RFC 7250), and a client
//! accepts no other. The client then sends the token, which is its own proof.
//!
//! Invariants:
//! * I1. A peer that does not know the token receives no byte of a call, and so not the token.
//! * I2. TLS 1.3 only, and no resumption: each connection costs one handshake, and is kept.
//! * I3. The key depends on nothing but the token: nothing is issued, stored or renewed, and no
//!   clock is read.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::ring::{default_provider, sign::any_eddsa_type};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::token::BoxToken;

/// Distinguishes this use of a token from any other.
const KEY_LABEL: &[u8] = b"agentbox boxd tls ed25519";
/// The PKCS #8 encoding (RFC 8410) of an Ed25519 key, up to its 32 bytes.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Two records of TLS.
const READ_BUFFER_BYTES: usize = 32 * 1024;

/// Accepts connections as the boxd whose token is `token`.
///
/// # Errors
/// When the key cannot be derived: a fault of this program.
pub fn acceptor(token: &BoxToken) -> Result<TlsAcceptor, Error> {
    let signing = signing_key(token)?;
    let public = CertificateDer::from(public_key(&*signing)?.to_vec());
    let key = Arc::new(CertifiedKey::new(vec![public], signing));
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Connects to the boxd whose token is `token`. Does not send the token.
///
/// # Errors
/// When the peer is not this boxd, speaks no TLS, or closes the connection.
pub async fn connect<S>(stream: S, token: &BoxToken) -> io::Result<TlsStream<BufReader<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connector = connector(token).map_err(io::Error::other)?;
    // The key identifies the peer. An address is not sent as its name.
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    connector.connect(name, buffered(stream)).await
}

/// The TLS library reads 4 KiB at a time; this makes one system call of several reads.
pub fn buffered<S: AsyncRead>(stream: S) -> BufReader<S> {
    BufReader::with_capacity(READ_BUFFER_BYTES, stream)
}

fn connector(token: &BoxToken) -> Result<TlsConnector, Error> {
    let provider = Arc::new(default_provider());
    let verifier = ExpectedKey {
        public: public_key(&*signing_key(token)?)?,
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The key is one block of HKDF-Expand (RFC 5869): the token is uniformly random.
fn signing_key(token: &BoxToken) -> Result<Arc<dyn SigningKey>, Error> {
    let mut mac = Hmac::<Sha256>::new_from_slice(token.expose().as_bytes())
        .map_err(|_| Error::General("the token cannot be a key".to_owned()))?;
    mac.update(KEY_LABEL);
    mac.update(&[1]);
    let mut pkcs8 = PKCS8_PREFIX.to_vec();
    pkcs8.extend_from_slice(&mac.finalize().into_bytes());
    any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8))
}

fn public_key(signing: &dyn SigningKey) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    signing
        .public_key()
        .map(SubjectPublicKeyInfoDer::into_owned)
        .ok_or_else(|| Error::General("the key has no public key".to_owned()))
}

/// Accepts one public key. It replaces the verification of certificates, of which there are none.
#[derive(Debug)]
struct ExpectedKey {
    public: SubjectPublicKeyInfoDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ExpectedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if end_entity.as_ref() == self.public.as_ref() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General(
                "the peer's key is not the key of this box".to_owned(),
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not used".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &self.public, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    fn token(text: &str) -> BoxToken {
        BoxToken::parse(text).unwrap()
    }

    #[test]
    fn key_is_derived_from_the_token_alone() {
        let token = token("dca749c9de52fa1df3a12695d1a5ab56daba389771e3d7120eb0985385c2a8e3");
        let public = public_key(&*signing_key(&token).unwrap()).unwrap();
        // (printf 302e020100300506032b657004220420 | xxd -r -p; printf 'agentbox boxd tls ed25519\1'
        // | openssl dgst -sha256 -binary -hmac TOKEN) | openssl pkey -inform DER -pubout -outform DER
        let expected = "302a300506032b6570032100\
                        b42ade6218ce9e5260dfcc2b744079aa8d41ad24d0a3382ce2fe725f5d957d64";
        assert_eq!(hex::encode(&public), expected);
    }

    #[tokio::test]
    async fn ends_with_one_token_exchange_bytes() {
        let (near, far) = duplex(64 * 1024);
        let acceptor = acceptor(&token("mine")).unwrap();
        let mine = token("mine");
        let (client, server) = tokio::join!(connect(near, &mine), acceptor.accept(far));
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        client.write_all(b"ping").await.unwrap();
        client.flush().await.unwrap();
        let mut received = [0; 4];
        server.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"ping");
    }

    #[tokio::test]
    async fn peer_with_another_token_is_refused() {
        let (near, far) = duplex(64 * 1024);
        let acceptor = acceptor(&token("other")).unwrap();
        let mine = token("mine");
        let (client, server) = tokio::join!(connect(near, &mine), acceptor.accept(far));
        let error = client.err().unwrap();
        assert!(error.to_string().contains("key of this box"), "{error}");
        assert!(server.is_err());
    }

    #[tokio::test]
    async fn peer_without_tls_is_refused_by_both_ends() {
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        assert!(connect(near, &token("mine")).await.is_err());

        let (mut near, far) = duplex(64 * 1024);
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let acceptor = acceptor(&token("mine")).unwrap();
        assert!(acceptor.accept(far).await.is_err());
    }
}
