//! A mock Intel: roots, authorities, machines, their quotes and Intel's publications, for evidence that no real
//! machine would sign.
//!
//! Owns the keys. They prove nothing: a verifier that accepts these roots returns facts marked `simulated`.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64ct::Encoding as _;
use openrelay_attest::Roots;
use openrelay_attest::collateral::IntelCollateral;
use openrelay_attest::roots::MIN_FIRMWARE_GENERATION;

use crate::der::{bits, boolean, integer, magnitude, octets, oid, rfc3339, sequence, set, time, tlv};

pub use crate::amd::{BEGINS, ENDS};

/// Processor model (FMSPC) of all its machines.
pub const FMSPC: [u8; 6] = [0x50, 0x80, 0x6f, 0, 0, 0];
/// Firmware component versions (SVNs) in a machine's certificate.
const SVNS: [u8; 16] = [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
const QE_SIGNER: [u8; 32] = [0x9e; 32];
const MODULE_SIGNER: [u8; 48] = [0; 48];

/// A P-256 key and its common name.
pub struct Key {
    /// Common name.
    pub name: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(name: &'static str) -> Self {
        Self { name, pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key") }
    }

    fn of_der(name: &'static str, der: &[u8]) -> Option<Self> {
        Some(Self { name, pair: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).ok()? })
    }

    fn to_der(&self) -> Vec<u8> {
        self.pair.to_pkcs8v1().expect("a key").as_ref().to_vec()
    }

    /// Returns r and s.
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(&SystemRandom::new(), message).expect("a signature");
        signature.as_ref().try_into().expect("64 bytes")
    }

    fn sign_der(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.sign(message);
        sequence(&[magnitude(&signature[..32]), magnitude(&signature[32..])])
    }

    /// Returns x and y.
    fn point(&self) -> [u8; 64] {
        self.pair.public_key().as_ref()[1..].try_into().expect("64 bytes after the form")
    }

    fn info(&self) -> Vec<u8> {
        let algorithm = sequence(&[oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")]);
        sequence(&[algorithm, bits(self.pair.public_key().as_ref())])
    }
}

/// The certificate hierarchy.
pub struct MockIntel {
    /// Validity of its certificates.
    pub dates: Dates,
    root: Key,
    platform: Key,
    signer: Key,
}

/// A validity period.
#[derive(Clone)]
pub struct Dates {
    /// Start, in seconds since the Unix epoch.
    pub begins: u64,
    /// End, in seconds since the Unix epoch.
    pub ends: u64,
}

impl Default for Dates {
    fn default() -> Self {
        Self { begins: BEGINS, ends: ENDS }
    }
}

/// Intel's publications before signing.
#[derive(Clone)]
pub struct Published {
    /// TCB info, as JSON.
    pub tcb_info: String,
    /// Identity of the quoting enclave, as JSON.
    pub qe_identity: String,
    /// Serial numbers of revoked PCK certificates.
    pub revoked_machines: Vec<u8>,
    /// Serial numbers of revoked authorities.
    pub revoked_authorities: Vec<u8>,
    /// Validity of both revocation lists.
    pub lists: Dates,
}

impl Default for Published {
    /// Returns publications that report everything up to date, valid for a month from [`BEGINS`].
    fn default() -> Self {
        Self::since(BEGINS)
    }
}

impl Published {
    /// Returns publications that report everything up to date, valid for a month from `begins`, in seconds since the
    /// Unix epoch.
    pub fn since(begins: u64) -> Self {
        let (issued, next) = (rfc3339(begins), rfc3339(begins + 30 * 86_400));
        let components = |svns: &[u8]| {
            let all: Vec<String> = svns.iter().map(|svn| format!("{{\"svn\":{svn}}}")).collect();
            all.join(",")
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
        let (module, mask) = (hex(&MODULE_SIGNER), "FFFFFFFFFFFFFFFF");
        let tcb_info = format!(
            "{{\"id\":\"TDX\",\"version\":3,\"issueDate\":\"{issued}\",\"nextUpdate\":\"{next}\",\"fmspc\":\"{}\",\
             \"pceId\":\"0000\",\"tcbType\":0,\"tcbEvaluationDataNumber\":18,\"tdxModule\":{{\"mrsigner\":\"{module}\",\
             \"attributes\":\"0000000000000000\",\"attributesMask\":\"{mask}\"}},\
             \"tdxModuleIdentities\":[{{\"id\":\"TDX_01\",\"mrsigner\":\"{module}\",\
             \"attributes\":\"0000000000000000\",\"attributesMask\":\"{mask}\",\
             \"tcbLevels\":[{{\"tcb\":{{\"isvsvn\":5}},\"tcbDate\":\"2026-01-01T00:00:00Z\",\
             \"tcbStatus\":\"UpToDate\"}}]}}],\
             \"tcbLevels\":[{{\"tcb\":{{\"sgxtcbcomponents\":[{}],\"pcesvn\":13,\"tdxtcbcomponents\":[{}]}},\
             \"tcbDate\":\"2026-01-01T00:00:00Z\",\"tcbStatus\":\"UpToDate\"}}]}}",
            hex(&FMSPC),
            components(&SVNS),
            components(&[5, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        );
        let qe_identity = format!(
            "{{\"id\":\"TD_QE\",\"version\":2,\"issueDate\":\"{issued}\",\"nextUpdate\":\"{next}\",\
             \"tcbEvaluationDataNumber\":18,\"miscselect\":\"00000000\",\"miscselectMask\":\"FFFFFFFF\",\
             \"attributes\":\"11000000000000000000000000000000\",\
             \"attributesMask\":\"FBFFFFFFFFFFFFFF0000000000000000\",\
             \"mrsigner\":\"{}\",\"isvprodid\":2,\"tcbLevels\":[{{\"tcb\":{{\"isvsvn\":4}},\
             \"tcbDate\":\"2026-01-01T00:00:00Z\",\"tcbStatus\":\"UpToDate\"}}]}}",
            hex(&QE_SIGNER),
        );
        let none = Vec::new();
        Self {
            tcb_info,
            qe_identity,
            revoked_machines: none.clone(),
            revoked_authorities: none,
            lists: Dates { begins, ends: begins + (ENDS - BEGINS) },
        }
    }
}

impl Published {
    /// Returns publications for SGX enclaves, otherwise like the default.
    pub fn for_enclaves() -> Self {
        let mut this = Self::default();
        this.tcb_info = this.tcb_info.replace("\"id\":\"TDX\"", "\"id\":\"SGX\"");
        this.qe_identity =
            this.qe_identity.replace("\"id\":\"TD_QE\"", "\"id\":\"QE\"").replace("\"isvprodid\":2", "\"isvprodid\":1");
        this
    }
}

impl Default for MockIntel {
    fn default() -> Self {
        let [root, platform, signer] = NAMES.map(Key::new);
        Self { dates: Dates::default(), root, platform, signer }
    }
}

/// Common names of the root, the platform authority and the signer of publications.
const NAMES: [&str; 3] = ["Mock SGX Root CA", "Mock SGX PCK Platform CA", "Mock SGX TCB Signing"];

fn name(common: &str) -> Vec<u8> {
    sequence(&[set(&sequence(&[oid("2.5.4.3"), tlv(0x0c, common.as_bytes())]))])
}

fn algorithm() -> Vec<u8> {
    sequence(&[oid("1.2.840.10045.4.3.2")])
}

/// Encodes a certificate as PEM.
fn pem(bytes: &[u8]) -> String {
    let packed = base64ct::Base64::encode_string(bytes);
    format!("-----BEGIN CERTIFICATE-----\n{packed}\n-----END CERTIFICATE-----\n")
}

impl MockIntel {
    /// Returns the private keys, for another simulation program.
    pub fn to_keys(&self) -> [Vec<u8>; 3] {
        [&self.root, &self.platform, &self.signer].map(Key::to_der)
    }

    /// Restores a hierarchy from these keys.
    pub fn of_keys(dates: Dates, keys: [&[u8]; 3]) -> Option<Self> {
        let key = |place: usize| Key::of_der(NAMES[place], keys[place]);
        Some(Self { dates, root: key(0)?, platform: key(1)?, signer: key(2)? })
    }

    /// Returns the roots that a verifier needs for this hierarchy.
    pub fn roots(&self) -> Roots {
        Roots {
            intel: self.root_certificate(),
            intel_pck: vec![self.platform_certificate()],
            amd: Vec::new(),
            min_firmware_generation: MIN_FIRMWARE_GENERATION,
            simulated: true,
        }
    }

    fn root_certificate(&self) -> Vec<u8> {
        issue(&self.root, 1, &self.root, &self.dates, &[authority()])
    }

    fn platform_certificate(&self) -> Vec<u8> {
        issue(&self.root, 2, &self.platform, &self.dates, &[authority()])
    }

    /// Issues the certificate of a machine's key.
    fn pck(&self, machine: &Machine) -> Vec<u8> {
        issue(&self.platform, machine.serial, &machine.pck, &machine.dates, &[machine.extension()])
    }

    /// Signs the publications.
    pub fn sign(&self, published: &Published) -> IntelCollateral {
        let signer = issue(&self.root, 3, &self.signer, &self.dates, &[]);
        let chain = [pem(&signer), pem(&self.root_certificate())].concat();
        let list = |key: &Key, revoked: &[u8]| crl(key, &published.lists, revoked);
        IntelCollateral {
            tcb_info_signature: self.signer.sign(published.tcb_info.as_bytes()).to_vec(),
            tcb_info: published.tcb_info.clone(),
            tcb_info_issuer_chain: chain.clone(),
            qe_identity_signature: self.signer.sign(published.qe_identity.as_bytes()).to_vec(),
            qe_identity: published.qe_identity.clone(),
            qe_identity_issuer_chain: chain,
            pck_crl: list(&self.platform, &published.revoked_machines),
            pck_crl_issuer_chain: [pem(&self.platform_certificate()), pem(&self.root_certificate())].concat(),
            root_ca_crl: list(&self.root, &published.revoked_authorities),
        }
    }
}

fn authority() -> Vec<u8> {
    sequence(&[oid("2.5.29.19"), boolean(true), octets(&sequence(&[boolean(true)]))])
}

fn issue(issuer: &Key, serial: u8, subject: &Key, dates: &Dates, extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut parts = vec![
        tlv(0xa0, &integer(2)),
        integer(serial),
        algorithm(),
        name(issuer.name),
        sequence(&[time(dates.begins), time(dates.ends)]),
        name(subject.name),
        subject.info(),
    ];
    if !extensions.is_empty() {
        parts.push(tlv(0xa3, &sequence(extensions)));
    }
    let signed = sequence(&parts);
    let signature = issuer.sign_der(&signed);
    sequence(&[signed, algorithm(), bits(&signature)])
}

fn crl(issuer: &Key, dates: &Dates, revoked: &[u8]) -> Vec<u8> {
    let mut parts = vec![integer(1), algorithm(), name(issuer.name), time(dates.begins), time(dates.ends)];
    let entries: Vec<Vec<u8>> = revoked.iter().map(|serial| sequence(&[integer(*serial), time(BEGINS)])).collect();
    if !entries.is_empty() {
        parts.push(sequence(&entries));
    }
    let number = sequence(&[oid("2.5.29.20"), octets(&integer(1))]);
    parts.push(tlv(0xa0, &sequence(&[number])));
    let signed = sequence(&parts);
    let signature = issuer.sign_der(&signed);
    sequence(&[signed, algorithm(), bits(&signature)])
}

/// A machine and its keys.
pub struct Machine {
    /// Serial number of its certificate.
    pub serial: u8,
    /// Validity of its certificate.
    pub dates: Dates,
    /// Platform ID (PPID), unique to the machine.
    pub ppid: [u8; 16],
    /// Processor model (FMSPC).
    pub fmspc: [u8; 6],
    pck: Key,
    attestation: Key,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            serial: 9,
            dates: Dates::default(),
            ppid: [0x77; 16],
            fmspc: FMSPC,
            pck: Key::new("Mock SGX PCK Certificate"),
            attestation: Key::new("attestation"),
        }
    }
}

impl Machine {
    /// Returns the SGX extension of its certificate. Source: Intel SGX PCK Certificate and CRL Profile, 1.3.5.
    fn extension(&self) -> Vec<u8> {
        let sgx = |place: &str| oid(&format!("1.2.840.113741.1.13.1{place}"));
        let pair = |place: &str, value: Vec<u8>| sequence(&[sgx(place), value]);
        let mut tcb: Vec<Vec<u8>> =
            SVNS.iter().enumerate().map(|(at, svn)| pair(&format!(".2.{}", at + 1), integer(*svn))).collect();
        tcb.push(pair(".2.17", integer(13)));
        tcb.push(pair(".2.18", octets(&SVNS)));
        let flags = [pair(".7.1", boolean(false)), pair(".7.2", boolean(false)), pair(".7.3", boolean(true))];
        let all = [
            pair(".1", octets(&self.ppid)),
            pair(".2", sequence(&tcb)),
            pair(".3", octets(&[0, 0])),
            pair(".4", octets(&self.fmspc)),
            pair(".5", tlv(0x0a, &[1])),
            pair(".7", sequence(&flags)),
        ];
        sequence(&[sgx(""), octets(&sequence(&all))])
    }

    /// Returns the raw quote of a trust domain, version 4, after `change` has modified it.
    pub fn quote(&self, intel: &MockIntel, change: impl FnOnce(&mut Quote)) -> Vec<u8> {
        let mut quote = Quote::default();
        change(&mut quote);
        self.sign(intel, quote)
    }

    /// Signs a quote and returns it as raw bytes.
    pub fn sign(&self, intel: &MockIntel, quote: Quote) -> Vec<u8> {
        let is_enclave = quote.signed[0] == 3;
        let (signed, mut qe) = (quote.signed, quote.qe_report);
        let authentication = [0x61; 32];
        let bound = digest(&SHA256, &[&self.attestation.point()[..], &authentication].concat());
        if !quote.unbound {
            qe[320..352].copy_from_slice(bound.as_ref());
        }
        let stranger = Key::new("somebody");
        let key = if quote.signed_by_another { &stranger } else { &self.attestation };
        let pck = if quote.vouched_for_by_another { &stranger } else { &self.pck };
        let chain = [self.pck_pem(intel), pem(&intel.platform_certificate()), pem(&intel.root_certificate())].concat();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        let inner = [
            &qe[..],
            &pck.sign(&qe),
            &32u16.to_le_bytes(),
            &authentication,
            &5u16.to_le_bytes(),
            &length(chain.as_bytes()),
            chain.as_bytes(),
        ]
        .concat();
        // From version 4 on, certification data of its own type wraps the quoting enclave's report and certificate
        // chain.
        let head = if is_enclave { Vec::new() } else { [&6u16.to_le_bytes()[..], &length(&inner)].concat() };
        let data = [&key.sign(&signed)[..], &self.attestation.point(), &head, &inner].concat();
        [&signed[..], &length(&data), &data].concat()
    }

    fn pck_pem(&self, intel: &MockIntel) -> String {
        pem(&intel.pck(self))
    }
}

/// A quote before signing.
pub struct Quote {
    /// Header and body.
    pub signed: Vec<u8>,
    /// Offset of the body in `signed`.
    body: usize,
    /// Report of the quoting enclave.
    pub qe_report: Vec<u8>,
    /// Leaves the attestation key out of the quoting enclave's report.
    pub unbound: bool,
    /// Signs with a key other than the attestation key.
    pub signed_by_another: bool,
    /// Signs the quoting enclave's report with a key other than the machine's.
    pub vouched_for_by_another: bool,
}

impl Default for Quote {
    fn default() -> Self {
        let mut this = Self::new(4, 0x81, &[], 584);
        this.put_domain();
        this
    }
}

impl Quote {
    fn new(version: u8, kind: u8, body_head: &[u8], body: usize) -> Self {
        let mut signed = vec![0; 48];
        signed[..8].copy_from_slice(&[version, 0, 2, 0, kind, 0, 0, 0]);
        signed[12..28].copy_from_slice(&[
            0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
        ]);
        signed.extend(body_head);
        let begins = signed.len();
        signed.resize(begins + body, 0);
        let mut this = Self {
            signed,
            body: begins,
            qe_report: vec![0; 384],
            unbound: false,
            signed_by_another: false,
            vouched_for_by_another: false,
        };
        this.qe_report[48] = 0x11;
        this.qe_report[128..160].copy_from_slice(&QE_SIGNER);
        this.qe_report[256..260].copy_from_slice(&[2, 0, 4, 0]);
        this
    }

    /// Returns a trust domain's quote, version 5, with a body of type 2 (584 bytes), 3 (648 bytes) or 4 (885 bytes).
    pub fn of_domain_5(kind: u8) -> Self {
        let length: u16 = [584, 648, 885][usize::from(kind - 2)];
        let [low, high] = length.to_le_bytes();
        let mut this = Self::new(5, 0x81, &[kind, 0, low, high, 0, 0], length.into());
        this.put_domain();
        if kind > 2 {
            // The running module; the body's first module version is the one that started the domain.
            this.put(584, &[5, 1, 3]);
        }
        this
    }

    /// Returns an enclave's quote, version 3.
    pub fn of_enclave() -> Self {
        let mut this = Self::new(3, 0, &[], 384);
        this.put(0, &SVNS);
        // INIT, MODE64BIT.
        this.put(48, &[5]);
        this.put(64, &[0xe7; 32]);
        // The quoting enclave for SGX enclaves.
        this.qe_report[256..260].copy_from_slice(&[1, 0, 4, 0]);
        this
    }

    fn put_domain(&mut self) {
        // TDX module SVN 5, generation 1.
        self.put(0, &[5, 1, 3]);
        // SEPT_VE_DISABLE and PKS.
        self.put(120, &0x5000_0000u64.to_le_bytes());
        self.put(136, &[0xd7; 48]);
    }

    /// Overwrites the bytes at an offset of the body.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        let at = self.body + at;
        self.signed[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
