//! Which certificate a relay may show: the DERP map says it, for each node in one of four ways.
//!
//! Invariant: the handshake's signature is always checked, so that a relay holds the key of what it shows; a
//! certificate that only carries the relay's DERP key (`CN=derpkey…`) is never part of the judgement. Called
//! by `dial`.
//!
//! ```text
//! InsecureForTests         any certificate
//! CertName empty           chain to a root, valid for HostName
//! CertName a host name     chain to a root, valid for CertName; the server is still asked for HostName
//! CertName sha256-raw:hex  exactly one certificate, with this digest, valid now, and for HostName unless that
//!                          is an address; no chain
//! ```
//!
//! Source: tailscale.com `net/tlsdial/tlsdial.go`.

use std::io;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{
    Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use tokio_rustls::rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;

use super::error::DerpConnError;
use crate::tailcfg::DerpNode;

/// Begins a `CertName` that is the digest of a certificate.
const PIN_PREFIX: &str = "sha256-raw:";
/// Begins the common name of a certificate that carries the relay's DERP key.
const META_PREFIX: &[u8] = b"derpkey";
/// X.520 commonName.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// The system's roots, or Mozilla's where it has none.
pub(super) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::info!("this system has no root certificates; relays are checked with Mozilla's");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// TLS for one node of the map.
pub(super) fn config(
    node: &DerpNode,
    roots: Arc<RootCertStore>,
) -> Result<(ClientConfig, ServerName<'static>), DerpConnError> {
    let host = &node.host_name;
    let name = ServerName::try_from(host.clone())
        .map_err(|_| DerpConnError::Host { host: host.clone() })?;
    let provider = ring::default_provider();
    let verifier = Verifier {
        trust: Trust::of(node)?,
        roots,
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(DerpConnError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // Connections live for hours, and what is resumed is not judged again.
    config.resumption = Resumption::disabled();
    Ok((config, name))
}

/// What a node's certificate must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    Any,
    Host,
    Name(ServerName<'static>),
    Pin([u8; 32]),
}

impl Trust {
    fn of(node: &DerpNode) -> Result<Self, DerpConnError> {
        let cert_name = node.cert_name.as_str();
        let bad = || DerpConnError::CertName {
            host: node.host_name.clone(),
            cert_name: cert_name.chars().take(255).collect(),
        };
        if node.insecure_for_tests {
            Ok(Self::Any)
        } else if cert_name.is_empty() {
            Ok(Self::Host)
        } else if let Some(digits) = cert_name.strip_prefix(PIN_PREFIX) {
            digest(digits).map(Self::Pin).ok_or_else(bad)
        } else {
            let name = ServerName::try_from(cert_name.to_owned()).map_err(|_| bad())?;
            Ok(Self::Name(name))
        }
    }
}

fn digest(digits: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let mut digest = [0; 32];
    if pairs.len() != digest.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(digest)
}

/// Why a pinned certificate is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// There must be exactly one, not counting the one that carries the DERP key.
    #[error("the relay shows {count} certificates, where the DERP map pins a single one")]
    Count {
        /// Certificates that it shows.
        count: usize,
    },
    /// Its digest is another.
    #[error("the relay shows another certificate than the one that the DERP map pins")]
    Digest,
    /// It has the digest, and is no certificate.
    #[error("the pinned certificate cannot be read")]
    Unreadable,
    /// Now is outside its validity.
    #[error("the pinned certificate is not valid now: it is expired, or a clock is wrong")]
    NotNow,
}

impl From<PinError> for rustls::Error {
    fn from(error: PinError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// The pin's complaint inside the error of a TLS connection.
pub(super) fn pin_error(error: &io::Error) -> Option<PinError> {
    let tls: &rustls::Error = error.get_ref()?.downcast_ref()?;
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = tls else {
        return None;
    };
    other.0.downcast_ref().copied()
}

#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) trust: Trust,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn chain(
        &self,
        end: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(end)?;
        // One that cannot be read cannot be a link either, and must not break the chain without it.
        let links: Vec<CertificateDer<'_>> = others
            .iter()
            .filter(|other| !is_meta(other) && ParsedCertificate::try_from(*other).is_ok())
            .cloned()
            .collect();
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, &links, now, algorithms)?;
        verify_server_name(&parsed, name)
    }
}

fn pin(
    digest: &[u8; 32],
    end: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    host: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let shown = std::iter::once(end).chain(others);
    let mut shown = shown.filter(|certificate| !is_meta(certificate));
    let first = shown.next();
    let count = usize::from(first.is_some()) + shown.count();
    // TLS proves the key of the first one that was sent, so that one it must be.
    if count != 1 || first != Some(end) {
        return Err(PinError::Count { count }.into());
    }
    if Sha256::digest(end).as_slice() != digest {
        return Err(PinError::Digest.into());
    }
    let certificate = Certificate::from_der(end).map_err(|_| PinError::Unreadable)?;
    let validity = certificate.tbs_certificate.validity;
    let from = validity.not_before.to_unix_duration().as_secs();
    let until = validity.not_after.to_unix_duration().as_secs();
    if !(from..=until).contains(&now.as_secs()) {
        return Err(PinError::NotNow.into());
    }
    if matches!(host, ServerName::IpAddress(_)) {
        return Ok(());
    }
    verify_server_name(&ParsedCertificate::try_from(end)?, host)
}

/// Whether a certificate only carries the relay's DERP key.
fn is_meta(certificate: &CertificateDer<'_>) -> bool {
    let Ok(certificate) = Certificate::from_der(certificate) else {
        return false;
    };
    let names = certificate.tbs_certificate.subject.0;
    let mut attributes = names.iter().flat_map(|name| name.0.iter());
    attributes.any(|attribute| {
        attribute.oid == COMMON_NAME && attribute.value.value().starts_with(META_PREFIX)
    })
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.trust {
            Trust::Any => Ok(()),
            Trust::Host => self.chain(end, others, host, now),
            Trust::Name(name) => self.chain(end, others, name, now),
            Trust::Pin(digest) => pin(digest, end, others, host, now),
        }?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
