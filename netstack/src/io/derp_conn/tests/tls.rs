//! Each row of the table by which a relay's certificate is judged: one that passes, and those that do not.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::client::danger::ServerCertVerifier as _;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, CertificateError, RootCertStore};

use crate::io::derp_conn::DerpConnError;
use crate::io::derp_conn::tls::{PinError, Trust, Verifier, config};
use crate::tailcfg::DerpNode;

/// 2026-11-01.
const NOW: u64 = 1_793_491_200;
const HOST: &str = "relay.example";

type Der = CertificateDer<'static>;

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params
}

/// A certificate that signs itself.
fn own(params: &CertificateParams) -> Der {
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().clone()
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = params(&[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "authority");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn below(params: &CertificateParams, issuer: &CertifiedIssuer<'static, KeyPair>) -> Der {
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, issuer).unwrap().der().clone()
}

/// As relays make it: it carries their DERP key, and nothing about it is linked to the rest.
fn meta() -> Der {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = params(&[]);
    params.serial_number = Some(2_u64.into());
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = format!("derpkey{}", "0f".repeat(32));
    params.distinguished_name.push(DnType::CommonName, name);
    params.self_signed(&key).unwrap().der().clone()
}

fn roots(authorities: &[&CertifiedIssuer<'static, KeyPair>]) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.der().clone()).unwrap();
    }
    Arc::new(roots)
}

fn name(text: &str) -> ServerName<'static> {
    ServerName::try_from(text.to_owned()).unwrap()
}

fn pin_of(certificate: &Der) -> Trust {
    Trust::Pin(Sha256::digest(certificate).into())
}

fn judge_at(
    now: u64,
    trust: Trust,
    roots: &Arc<RootCertStore>,
    shown: &[Der],
    host: &str,
) -> Result<(), rustls::Error> {
    let verifier = Verifier {
        trust,
        roots: Arc::clone(roots),
        algorithms: ring::default_provider().signature_verification_algorithms,
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let judged = verifier.verify_server_cert(&shown[0], &shown[1..], &name(host), &[], now);
    judged.map(drop)
}

fn judge(
    trust: Trust,
    roots: &Arc<RootCertStore>,
    shown: &[Der],
    host: &str,
) -> Result<(), rustls::Error> {
    judge_at(NOW, trust, roots, shown, host)
}

fn refused_as(outcome: &Result<(), rustls::Error>) -> &CertificateError {
    match outcome {
        Err(rustls::Error::InvalidCertificate(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn is_pin_error(outcome: &Result<(), rustls::Error>, expected: PinError) -> bool {
    let CertificateError::Other(other) = refused_as(outcome) else {
        panic!("{outcome:?}");
    };
    other.0.downcast_ref() == Some(&expected)
}

#[test]
fn insecure_for_tests_takes_any_certificate() {
    let expired = own(&params(&["elsewhere.example"]));
    let late = NOW + 10 * 365 * 86_400;
    assert_eq!(
        judge_at(late, Trust::Any, &roots(&[]), &[expired], HOST),
        Ok(())
    );
}

#[test]
fn without_a_certificate_name_the_chain_and_the_host_name_decide() {
    let authority = authority();
    let roots = roots(&[&authority]);
    let good = below(&params(&[HOST]), &authority);
    let judge_host = |shown: &[Der], host| judge(Trust::Host, &roots, shown, host);
    assert_eq!(judge_host(std::slice::from_ref(&good), HOST), Ok(()));

    let elsewhere = judge_host(std::slice::from_ref(&good), "elsewhere.example");
    assert!(matches!(
        refused_as(&elsewhere),
        CertificateError::NotValidForNameContext { .. }
    ));
    let foreign = judge_host(&[below(&params(&[HOST]), &self::authority())], HOST);
    assert!(matches!(
        refused_as(&foreign),
        CertificateError::UnknownIssuer | CertificateError::BadSignature
    ));
    let own = judge_host(&[own(&params(&[HOST]))], HOST);
    assert!(matches!(refused_as(&own), CertificateError::UnknownIssuer));
    let late = judge_at(NOW + 86_400 * 365, Trust::Host, &roots, &[good], HOST);
    assert!(matches!(
        refused_as(&late),
        CertificateError::ExpiredContext { .. }
    ));
}

#[test]
fn an_address_as_host_name_must_be_in_the_certificate() {
    let authority = authority();
    let roots = roots(&[&authority]);
    let good = below(&params(&["192.0.2.1"]), &authority);
    let shown = [good];
    assert_eq!(judge(Trust::Host, &roots, &shown, "192.0.2.1"), Ok(()));
    assert!(judge(Trust::Host, &roots, &shown, "192.0.2.2").is_err());
}

#[test]
fn a_certificate_name_replaces_the_host_name() {
    let authority = authority();
    let roots = roots(&[&authority]);
    let named = || Trust::Name(name("front.example"));
    let good = below(&params(&["front.example"]), &authority);
    assert_eq!(judge(named(), &roots, &[good], HOST), Ok(()));
    let for_host = below(&params(&[HOST]), &authority);
    let refused = judge(named(), &roots, &[for_host], HOST);
    assert!(matches!(
        refused_as(&refused),
        CertificateError::NotValidForNameContext { .. }
    ));
    let unlinked = own(&params(&["front.example"]));
    assert!(judge(named(), &roots, &[unlinked], HOST).is_err());
}

#[test]
fn a_chain_is_judged_without_the_meta_certificate_and_without_what_cannot_be_read() {
    let root = authority();
    let mut middle = params(&[]);
    middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    middle.distinguished_name.push(DnType::CommonName, "middle");
    let middle = CertifiedIssuer::signed_by(middle, KeyPair::generate().unwrap(), &root).unwrap();
    let end = below(&params(&[HOST]), &middle);
    let rubbish = CertificateDer::from(vec![0x30, 3, 1, 2, 3]);
    let shown = [end, middle.der().clone(), rubbish, meta()];
    let roots = roots(&[&root]);
    assert_eq!(judge(Trust::Host, &roots, &shown, HOST), Ok(()));
    let unlinked = [shown[0].clone(), shown[3].clone()];
    assert!(judge(Trust::Host, &roots, &unlinked, HOST).is_err());
}

#[test]
fn a_pin_takes_the_one_certificate_without_a_chain() {
    let none = roots(&[]);
    let good = own(&params(&[HOST]));
    let pin = || pin_of(&good);
    assert_eq!(
        judge(pin(), &none, std::slice::from_ref(&good), HOST),
        Ok(())
    );
    let with_meta = [good.clone(), meta()];
    assert_eq!(judge(pin(), &none, &with_meta, HOST), Ok(()));
    // Not even the one that signed it may come along.
    let authority = authority();
    let signed = below(&params(&[HOST]), &authority);
    let pin = pin_of(&signed);
    let chain = [signed, authority.der().clone()];
    assert_eq!(judge(pin, &none, &chain[..1], HOST), Ok(()));
}

#[test]
fn a_pin_refuses_another_digest_and_a_second_certificate() {
    let none = roots(&[]);
    let good = own(&params(&[HOST]));
    let other = own(&params(&[HOST]));
    let refused = judge(pin_of(&good), &none, std::slice::from_ref(&other), HOST);
    assert!(is_pin_error(&refused, PinError::Digest));
    for second in [other, good.clone()] {
        let two = [good.clone(), second];
        let refused = judge(pin_of(&good), &none, &two, HOST);
        assert!(is_pin_error(&refused, PinError::Count { count: 2 }));
    }
    let only_meta = [meta()];
    let refused = judge(pin_of(&only_meta[0]), &none, &only_meta, HOST);
    assert!(is_pin_error(&refused, PinError::Count { count: 0 }));
    let behind_meta = [meta(), good.clone()];
    let refused = judge(pin_of(&good), &none, &behind_meta, HOST);
    assert!(is_pin_error(&refused, PinError::Count { count: 1 }));
}

#[test]
fn a_pin_refuses_a_certificate_before_and_after_its_time() {
    let none = roots(&[]);
    let good = [own(&params(&[HOST]))];
    let (from, until) = (1_767_225_600, 1_798_761_600);
    for (now, valid) in [
        (from - 1, false),
        (from, true),
        (until, true),
        (until + 1, false),
    ] {
        let outcome = judge_at(now, pin_of(&good[0]), &none, &good, HOST);
        if valid {
            assert_eq!(outcome, Ok(()), "{now}");
        } else {
            assert!(is_pin_error(&outcome, PinError::NotNow), "{now}");
        }
    }
}

#[test]
fn a_pin_asks_for_the_host_name_unless_it_is_an_address() {
    let none = roots(&[]);
    let elsewhere = [own(&params(&["elsewhere.example"]))];
    let pin = || pin_of(&elsewhere[0]);
    let refused = judge(pin(), &none, &elsewhere, HOST);
    assert!(matches!(
        refused_as(&refused),
        CertificateError::NotValidForNameContext { .. }
    ));
    assert_eq!(judge(pin(), &none, &elsewhere, "192.0.2.1"), Ok(()));
}

#[test]
fn names_of_the_map_that_are_none_are_refused_with_the_place_to_correct() {
    let node = |host: &str, cert_name: &str| DerpNode {
        host_name: host.to_owned(),
        cert_name: cert_name.to_owned(),
        ..DerpNode::default()
    };
    let good = format!("sha256-raw:{}", "aB".repeat(32));
    assert!(config(&node(HOST, &good), roots(&[])).is_ok());
    assert!(config(&node("192.0.2.1", ""), roots(&[])).is_ok());
    let short = format!("sha256-raw:{}", "ab".repeat(31));
    let no_hex = format!("sha256-raw:{}", "+f".repeat(32));
    for bad in ["sha256-raw:", &short, &no_hex, "sha1:00", "a b"] {
        let refused = config(&node(HOST, bad), roots(&[]));
        assert!(
            matches!(refused, Err(DerpConnError::CertName { .. })),
            "{bad}"
        );
    }
    for bad in ["", "a b", "relay.example:443"] {
        let refused = config(&node(bad, ""), roots(&[]));
        assert!(matches!(refused, Err(DerpConnError::Host { .. })), "{bad}");
    }
}

#[test]
fn this_system_or_mozilla_has_roots() {
    assert!(crate::io::derp_conn::tls::system_roots().len() > 20);
}
