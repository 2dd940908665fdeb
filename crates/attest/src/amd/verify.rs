//! Verifies a report against its certificate, and the certificate against pinned roots.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

use super::certificate::{Read, check_crl};
use super::{Product, Report};
use crate::collateral::AmdCollateral;
use crate::evidence::Measurement;
use crate::facts::{Crl, Facts, KeyKind, Platform, Tcb};
use crate::refusal::Refusal;
use crate::roots::{AmdRoot, Roots};

const LEAF: &str = "the certificate of the chip's key";
/// Prefix of the hash that makes chip tags, so that a tag is of no use elsewhere.
const CHIP: &[u8] = b"openrelay chip of AMD\0";

/// The certificate chain above a leaf.
struct Chain<'a> {
    product: Product,
    ark: Read,
    /// The ASK or ASVK.
    authority: Read,
    root: &'a AmdRoot,
}

/// Examines a report that passed [`Report::check`].
pub(crate) fn examine(
    report: &Report,
    collateral: Option<&AmdCollateral>,
    roots: &Roots,
    now: u64,
) -> Result<Facts, Refusal> {
    if report.certificate.is_empty() {
        return Err(Refusal::NoCertificate);
    }
    let leaf = Read::new(&report.certificate, LEAF)?;
    let kind = report.key_kind()?;
    if leaf.key_kind() != Some(kind) {
        return Err(Refusal::KeyKind);
    }
    let chain = Chain::above(&leaf, kind, roots)?;
    if let Some(product) = report.product()?
        && product != chain.product
    {
        return Err(Refusal::OtherProduct { found: product.name(), certified: chain.root.product });
    }
    chain.ark.check(&chain.ark, now)?;
    chain.authority.check(&chain.ark, now)?;
    leaf.check(&chain.authority, now)?;
    let mut expires = leaf.expires().min(chain.authority.expires()).min(chain.ark.expires());
    let crl = match collateral.and_then(|collateral| collateral.crl.as_deref()) {
        Some(bytes) => {
            expires = expires.min(check_crl(bytes, &chain.ark, &[&chain.ark, &chain.authority], now)?);
            Crl::Checked
        }
        None => Crl::NotGiven,
    };
    let signature = [report.r, report.s].concat();
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, leaf.p384_key()?)
        .verify(&report.signed, &signature)
        .map_err(|_| Refusal::Signature)?;
    fits(report, &leaf, kind, chain.product)?;
    let chip = if kind == KeyKind::Vcek { Some(certified_chip(&leaf)?) } else { None };
    Ok(facts(report, (kind, chip), &chain, (crl, expires), roots.simulated))
}

impl<'a> Chain<'a> {
    /// Finds the pinned chain above a leaf by its issuer's name.
    fn above(leaf: &Read, kind: KeyKind, roots: &'a Roots) -> Result<Self, Refusal> {
        for root in &roots.amd {
            let Some(product) = Product::called(root.product) else { continue };
            let authority = if kind == KeyKind::Vlek {
                Read::new(&root.asvk, "the certificate of AMD's authority for clouds (ASVK)")?
            } else {
                Read::new(&root.ask, "the certificate of AMD's authority for chips (ASK)")?
            };
            if leaf.is_issued_by(&authority) {
                let ark = Read::new(&root.ark, "AMD's root certificate")?;
                return Ok(Self { product, ark, authority, root });
            }
        }
        Err(Refusal::UnknownIssuer { what: LEAF })
    }
}

/// Checks that the certificate is for this report's firmware and chip.
fn fits(report: &Report, leaf: &Read, kind: KeyKind, product: Product) -> Result<(), Refusal> {
    if !leaf.is_for(product)? {
        return Err(Refusal::OtherProduct { found: product.name(), certified: "another one" });
    }
    let (reported, certified) = (product.tcb(report.field(0x180)), leaf.tcb(product)?);
    let pairs = [
        ("boot loader", reported.boot_loader == certified.boot_loader),
        ("TEE", reported.tee == certified.tee),
        ("SNP firmware", reported.snp == certified.snp),
        ("microcode", reported.microcode == certified.microcode),
        ("FMC", reported.fmc == certified.fmc),
    ];
    if let Some((what, _)) = pairs.iter().find(|(_, equal)| !equal) {
        return Err(Refusal::TcbMismatch(what));
    }
    if kind == KeyKind::Vlek {
        return Ok(());
    }
    // The machine's owner may mask the chip ID in the report (MASK_CHIP_ID), which then has zeros. The certificate
    // names the chip anyway.
    let (chip, certified) = (report.chip_id(), certified_chip(leaf)?);
    if chip == certified || chip == [0; 64] { Ok(()) } else { Err(Refusal::OtherChip) }
}

/// Returns the ID of the chip that a VCEK certificate is for. From Turin on the ID has 8 bytes; reports pad it with
/// zeros.
fn certified_chip(leaf: &Read) -> Result<[u8; 64], Refusal> {
    let id = leaf.hardware_id()?.filter(|id| [8, 64].contains(&id.len())).ok_or(Refusal::OtherChip)?;
    let mut chip = [0; 64];
    for (place, byte) in chip.iter_mut().zip(id) {
        *place = *byte;
    }
    if chip == [0; 64] { Err(Refusal::OtherChip) } else { Ok(chip) }
}

fn facts(
    report: &Report,
    (key, chip): (KeyKind, Option<[u8; 64]>),
    chain: &Chain<'_>,
    (crl, expires): (Crl, u64),
    simulated: bool,
) -> Facts {
    let tcb = |at| chain.product.tcb(report.field(at));
    let tag = chip.map(|chip| {
        let mut tag = [0; 32];
        tag.copy_from_slice(digest(&SHA256, &[CHIP, &chip].concat()).as_ref());
        tag
    });
    let mut fields = Vec::new();
    let whole: [(&'static str, usize, usize); 14] = [
        ("policy", 0x08, 8),
        ("vmpl", 0x30, 4),
        ("guest_svn", 0x04, 4),
        ("platform_info", 0x40, 8),
        ("key_info", 0x48, 4),
        ("family_id", 0x10, 16),
        ("image_id", 0x20, 16),
        ("host_data", 0xc0, 32),
        ("id_key_digest", 0xe0, 48),
        ("author_key_digest", 0x110, 48),
        ("report_id", 0x140, 32),
        ("report_id_ma", 0x160, 32),
        ("current_version", 0x1e8, 3),
        ("committed_version", 0x1ec, 3),
    ];
    // Mitigation bits, which a bulletin lists, from version 5 on.
    let mitigations = [("launch_mit_vector", 0x1f8, 8), ("current_mit_vector", 0x200, 8)];
    let mitigations = mitigations.into_iter().filter(|_| report.version() >= 5);
    for (name, at, length) in whole.into_iter().chain(mitigations) {
        fields.push((name, report.signed.get(at..at + length).unwrap_or(&[]).to_vec()));
    }
    Facts {
        platform: Platform::SevSnp,
        simulated,
        version: report.version(),
        product: chain.root.product.to_owned(),
        measurement: Measurement::Snp(report.measurement()),
        report_data: report.report_data(),
        fields,
        key,
        chip: tag,
        smt: Some(report.platform_info() & 1 == 1),
        tcb: Tcb::Amd { reported: tcb(0x180), current: tcb(0x38), committed: tcb(0x1e0), launch: tcb(0x1f0) },
        crl,
        expires,
    }
}
