//! A mock AMD: roots, authorities, chips and reports, for evidence that no real chip would sign.
//!
//! Owns the keys. They prove nothing: a verifier that accepts these roots returns facts marked `simulated`.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PSS_SHA384};
use openrelay_attest::roots::AmdRoot;

use crate::der::{bits, boolean, integer, octets, oid, sequence, set, time, tlv};

/// Start of the validity of every certificate, which lasts one year; seconds since the Unix epoch.
pub const BEGINS: u64 = 1_800_000_000;
/// End of that validity.
pub const ENDS: u64 = BEGINS + 365 * 86_400;

/// OID of basic constraints, the only critical extension.
const CONSTRAINTS: &str = "2.5.29.19";
/// Length of the signed part of a report, in bytes.
const SIGNED: usize = 0x2a0;

/// A certificate authority: a key and its common name.
pub struct Authority {
    /// Common name.
    pub name: String,
    key: KeyPair,
}

impl Authority {
    fn new(name: String) -> Self {
        Self { name, key: KeyPair::generate(KeySize::Rsa2048).expect("a key") }
    }

    fn of_der(name: String, der: &[u8]) -> Option<Self> {
        Some(Self { name, key: KeyPair::from_pkcs8(der).ok()? })
    }

    fn to_der(&self) -> Vec<u8> {
        self.key.as_der().expect("a key").as_ref().to_vec()
    }

    /// Signs as AMD does: RSA-PSS with SHA-384.
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), message, &mut signature).expect("a signature");
        signature
    }

    fn public_key(&self) -> Vec<u8> {
        let algorithm = sequence(&[oid("1.2.840.113549.1.1.1"), tlv(5, &[])]);
        sequence(&[algorithm, bits(self.key.public_key().as_ref())])
    }
}

/// The certificate hierarchy of one product.
pub struct MockAmd {
    /// The product: `Milan`, `Genoa`, `Turin`.
    pub product: &'static str,
    /// Start of the validity of its certificates, which lasts one year; seconds since the Unix epoch.
    pub begins: u64,
    ark: Authority,
    ask: Authority,
    asvk: Authority,
}

/// The content of a certificate before signing.
pub struct Certificate {
    /// Serial number.
    pub serial: u8,
    /// Common name of the subject.
    pub subject: String,
    /// Start of validity, in seconds since the Unix epoch.
    pub begins: u64,
    /// End of validity, in seconds since the Unix epoch.
    pub ends: u64,
    /// Public key, as DER.
    pub key: Vec<u8>,
    /// Extensions: OID and content.
    pub extensions: Vec<(String, Vec<u8>)>,
}

/// Parameters of RSA-PSS: without the trailer field as in Turin's certificates, or with it as in those of other
/// products.
fn algorithm(with_trailer: bool) -> Vec<u8> {
    algorithm_called("1.2.840.113549.1.1.10", 48, with_trailer)
}

/// The same parameters under another algorithm identifier, or with another salt length.
fn algorithm_called(identifier: &str, salt: u8, with_trailer: bool) -> Vec<u8> {
    let sha384 = sequence(&[oid("2.16.840.1.101.3.4.2.2"), tlv(5, &[])]);
    let mgf1 = sequence(&[oid("1.2.840.113549.1.1.8"), sha384.clone()]);
    let mut parts = vec![tlv(0xa0, &sha384), tlv(0xa1, &mgf1), tlv(0xa2, &integer(salt))];
    if with_trailer {
        parts.push(tlv(0xa3, &integer(1)));
    }
    sequence(&[oid(identifier), sequence(&parts)])
}

fn name(common: &str) -> Vec<u8> {
    sequence(&[set(&sequence(&[oid("2.5.4.3"), tlv(0x0c, common.as_bytes())]))])
}

impl MockAmd {
    /// Generates a hierarchy for this product.
    pub fn new(product: &'static str) -> Self {
        let authority = |prefix: &str| Authority::new(format!("{prefix}-{product}"));
        Self { product, begins: BEGINS, ark: authority("ARK"), ask: authority("SEV"), asvk: authority("SEV-VLEK") }
    }

    /// Returns the private keys of the root, the chip authority and the cloud authority, for another simulation
    /// program.
    pub fn to_keys(&self) -> [Vec<u8>; 3] {
        [&self.ark, &self.ask, &self.asvk].map(Authority::to_der)
    }

    /// Restores a hierarchy from these keys.
    pub fn of_keys(product: &'static str, begins: u64, [ark, ask, asvk]: [&[u8]; 3]) -> Option<Self> {
        let authority = |prefix: &str, key| Authority::of_der(format!("{prefix}-{product}"), key);
        let (ark, ask, asvk) = (authority("ARK", ark)?, authority("SEV", ask)?, authority("SEV-VLEK", asvk)?);
        Some(Self { product, begins, ark, ask, asvk })
    }

    /// Returns the root and its chip and cloud authorities.
    pub fn root(&self) -> AmdRoot {
        AmdRoot {
            product: self.product,
            ark: self.issue(&self.ark, &self.of_authority(1, &self.ark)),
            ask: self.issue(&self.ark, &self.of_authority(2, &self.ask)),
            asvk: self.issue(&self.ark, &self.of_authority(3, &self.asvk)),
        }
    }

    /// Returns the content of an authority's certificate.
    fn of_authority(&self, serial: u8, authority: &Authority) -> Certificate {
        Certificate {
            serial,
            subject: authority.name.clone(),
            begins: self.begins,
            ends: self.begins + (ENDS - BEGINS),
            key: authority.public_key(),
            extensions: vec![(CONSTRAINTS.into(), sequence(&[boolean(true)]))],
        }
    }

    /// Issues a chip certificate, signed by the chip authority.
    pub fn vcek(&self, certificate: &Certificate) -> Vec<u8> {
        self.issue(&self.ask, certificate)
    }

    /// Issues a chip certificate that states another algorithm or salt length than its signature uses.
    pub fn vcek_said_to_be_signed(&self, certificate: &Certificate, identifier: &str, salt: u8) -> Vec<u8> {
        self.issue_as(&self.ask, certificate, &algorithm_called(identifier, salt, true))
    }

    /// Issues a cloud certificate, signed by the cloud authority.
    pub fn vlek(&self, certificate: &Certificate) -> Vec<u8> {
        self.issue(&self.asvk, certificate)
    }

    fn issue(&self, issuer: &Authority, certificate: &Certificate) -> Vec<u8> {
        self.issue_as(issuer, certificate, &algorithm(self.product != "Turin"))
    }

    fn issue_as(&self, issuer: &Authority, certificate: &Certificate, algorithm: &[u8]) -> Vec<u8> {
        let extensions: Vec<Vec<u8>> = certificate
            .extensions
            .iter()
            .map(|(identifier, content)| {
                let critical = if identifier == CONSTRAINTS { boolean(true) } else { Vec::new() };
                sequence(&[oid(identifier), critical, octets(content)])
            })
            .collect();
        let mut parts = vec![
            tlv(0xa0, &integer(2)),
            integer(certificate.serial),
            algorithm.to_vec(),
            name(&issuer.name),
            sequence(&[time(certificate.begins), time(certificate.ends)]),
            name(&certificate.subject),
            certificate.key.clone(),
        ];
        if !extensions.is_empty() {
            parts.push(tlv(0xa3, &sequence(&extensions)));
        }
        let signed = sequence(&parts);
        let signature = issuer.sign(&signed);
        sequence(&[signed, algorithm.to_vec(), bits(&signature)])
    }

    /// Signs, with the root, a revocation list of these serial numbers.
    pub fn crl(&self, begins: u64, ends: Option<u64>, revoked: &[u8]) -> Vec<u8> {
        self.crl_by(&self.ark, &self.ark.name, begins, ends, revoked)
    }

    /// Signs, with the chip authority, a revocation list in the root's name.
    pub fn forged_crl(&self) -> Vec<u8> {
        self.crl_by(&self.ask, &self.ark.name, BEGINS, Some(ENDS), &[])
    }

    /// Signs a revocation list whose two copies of the algorithm, one signed and one beside the signature, are
    /// encoded differently.
    pub fn ambiguous_crl(&self) -> Vec<u8> {
        self.crl_as((&self.ark, &self.ark.name), (BEGINS, Some(ENDS)), &[], [algorithm(false), algorithm(true)])
    }

    fn crl_by(&self, key: &Authority, issuer: &str, begins: u64, ends: Option<u64>, revoked: &[u8]) -> Vec<u8> {
        let algorithm = algorithm(self.product != "Turin");
        self.crl_as((key, issuer), (begins, ends), revoked, [algorithm.clone(), algorithm])
    }

    fn crl_as(
        &self,
        (key, issuer): (&Authority, &str),
        (begins, ends): (u64, Option<u64>),
        revoked: &[u8],
        [inside, beside]: [Vec<u8>; 2],
    ) -> Vec<u8> {
        let mut parts = vec![integer(1), inside, name(issuer), time(begins)];
        parts.extend(ends.map(time));
        let entries: Vec<Vec<u8>> = revoked.iter().map(|serial| sequence(&[integer(*serial), time(BEGINS)])).collect();
        if !entries.is_empty() {
            parts.push(sequence(&entries));
        }
        let signed = sequence(&parts);
        let signature = key.sign(&signed);
        sequence(&[signed, beside, bits(&signature)])
    }
}

/// A chip, or a cloud, and its key.
pub struct Chip {
    key: EcdsaKeyPair,
    /// Chip ID.
    pub id: [u8; 64],
}

impl Default for Chip {
    fn default() -> Self {
        Self { key: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key"), id: [0xc5; 64] }
    }
}

impl Chip {
    /// Returns the public key as a certificate encodes it.
    pub fn public_key(&self) -> Vec<u8> {
        let algorithm = sequence(&[oid("1.2.840.10045.2.1"), oid("1.3.132.0.34")]);
        sequence(&[algorithm, bits(self.key.public_key().as_ref())])
    }

    /// Returns the content of its certificate, with the firmware versions of [`Report::new`].
    pub fn certificate(&self, product: &str) -> Certificate {
        let amd = |place: &str| format!("1.3.6.1.4.1.3704.1.{place}");
        let turin = product == "Turin";
        let mut extensions = vec![
            (amd("1"), integer(1)),
            (amd("2"), tlv(0x16, if turin { product.to_owned() } else { format!("{product}-B1") }.as_bytes())),
            (amd("3.1"), integer(10)),
            (amd("3.2"), integer(1)),
            (amd("3.3"), integer(23)),
            (amd("3.8"), integer(84)),
        ];
        if turin {
            extensions.push((amd("3.9"), integer(7)));
        }
        // From Turin on, a chip ID has eight bytes.
        extensions.push((amd("4"), self.id[..if turin { 8 } else { 64 }].to_vec()));
        Certificate {
            serial: 9,
            subject: "SEV-VCEK".into(),
            begins: BEGINS,
            ends: ENDS,
            key: self.public_key(),
            extensions,
        }
    }

    /// Returns the raw signed report.
    pub fn sign(&self, report: &Report) -> Vec<u8> {
        let signature = self.key.sign(&SystemRandom::new(), &report.0).expect("a signature");
        let (r, s) = signature.as_ref().split_at(48);
        let mut out = report.0.to_vec();
        for number in [r, s] {
            let mut little: Vec<u8> = number.iter().rev().copied().collect();
            little.resize(72, 0);
            out.extend(little);
        }
        out.resize(0x4a0, 0);
        out
    }
}

/// The content of a report before signing.
#[derive(Clone)]
pub struct Report(pub [u8; SIGNED]);

impl Report {
    /// Creates a report of this version that passes every check.
    pub fn new(product: &str, version: u32, chip: &Chip) -> Self {
        let mut this = Self([0; SIGNED]);
        let (family, model, tcb) = match product {
            "Milan" => (0x19, 0x01, [10, 1, 0, 0, 0, 0, 23, 84]),
            "Genoa" => (0x19, 0x11, [10, 1, 0, 0, 0, 0, 23, 84]),
            _ => (0x1a, 0x02, [7, 10, 1, 23, 0, 0, 0, 84]),
        };
        this.put(0x00, &version.to_le_bytes());
        // Minimum ABI version 1.51; SMT allowed; the reserved bit that is always one; no page swapping; on Turin also
        // ciphertext hiding.
        let hiding = product == "Turin";
        let policy = 0x0203_0133 | u64::from(hiding) << 24;
        this.put(0x08, &policy.to_le_bytes());
        this.put(0x34, &1u32.to_le_bytes());
        for at in [0x38, 0x180, 0x1e0, 0x1f0] {
            this.put(at, &tcb);
        }
        // SMT is enabled; the memory alias check is done.
        this.put(0x40, &(0x21 | u64::from(hiding) << 4).to_le_bytes());
        this.put(0x90, &[0x4d; 48]);
        if version >= 3 {
            this.put(0x188, &[family, model, 1]);
        }
        // The report pads a Turin chip ID with zeros.
        let id = if product == "Turin" { &chip.id[..8] } else { &chip.id[..] };
        this.put(0x1a0, id);
        this
    }

    /// Overwrites the bytes at an offset.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Returns the report with the bytes at an offset overwritten.
    #[must_use]
    pub fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }
}
