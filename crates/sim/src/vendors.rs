//! Both mock vendors together, for a network of simulation programs: provers hold the vendors' keys, verifiers their
//! roots.
//!
//! Owns the encoding of both files, keys and roots. The keys prove nothing except to a verifier told to trust their
//! roots, and every fact derived from those roots is marked `simulated`.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use openrelay_attest::bundle::{AmdProduct, Bundle};
use openrelay_attest::collateral::AmdCollateral;
use openrelay_attest::evidence::Measurement;
use openrelay_attest::facts::TcbVersion;
use openrelay_attest::raw::convert;
use openrelay_attest::roots::AmdRoot;
use openrelay_attest::{Evidence, Roots};

use crate::amd::{Chip, MockAmd, Report};
use crate::intel::{Dates, Machine, MockIntel, Published, Quote};

const PRODUCT: &str = "Genoa";
const YEAR: u64 = 365 * 86_400;

/// The mock vendors and their root certificates.
pub struct Vendors {
    amd: MockAmd,
    intel: MockIntel,
    roots: Roots,
}

/// A false statement in evidence, which no chip of an honest relay would sign.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Lie {
    /// No false statement.
    #[default]
    None,
    /// The guest runs in debug mode, so its memory is readable.
    Debug,
    /// The measurement is of another image.
    Measurement,
}

impl Vendors {
    /// Creates vendors whose certificates are valid for a year and publications for a month, from this second since
    /// the Unix epoch on.
    pub fn new(begins: u64) -> Self {
        let (mut amd, mut intel) = (MockAmd::new(PRODUCT), MockIntel::default());
        amd.begins = begins;
        intel.dates = Dates { begins, ends: begins + YEAR };
        Self::with_roots(amd, intel, None)
    }

    fn with_roots(amd: MockAmd, intel: MockIntel, roots: Option<Roots>) -> Self {
        let roots = roots.unwrap_or_else(|| Roots { amd: vec![amd.root()], ..intel.roots() });
        Self { amd, intel, roots }
    }

    /// Returns the roots that a verifier needs.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Returns the vendors' publications.
    pub fn bundle(&self) -> Bundle {
        self.bundle_since(self.amd.begins)
    }

    /// Returns the vendors' publications, issued at this second since the Unix epoch.
    pub fn bundle_since(&self, begins: u64) -> Bundle {
        let crl = self.amd.crl(begins, Some(begins + YEAR), &[]);
        Bundle {
            intel_floor: 1,
            amd_floor: 1,
            intel: vec![self.intel.sign(&Published::since(begins))],
            amd: vec![AmdProduct {
                product: PRODUCT.into(),
                floor: TcbVersion { fmc: None, boot_loader: 10, tee: 1, snp: 23, microcode: 84 },
                collateral: AmdCollateral { crl: Some(crl) },
            }],
        }
    }

    /// Returns evidence by this machine for a measurement and 64 bytes of report data; `None` for SGX.
    pub fn evidence(
        &self,
        machine: &Hardware,
        measurement: &Measurement,
        report_data: &[u8; 64],
        lie: Lie,
    ) -> Option<Evidence> {
        match measurement {
            Measurement::Tdx { mrtd, rtmrs } => {
                let mut quote = Quote::default();
                quote.put(136, mrtd);
                for (rtmr, at) in rtmrs.iter().zip([328, 376, 424, 472]) {
                    quote.put(at, rtmr);
                }
                quote.put(520, report_data);
                match lie {
                    Lie::None => {}
                    Lie::Debug => quote.put(120, &0x5000_0001u64.to_le_bytes()),
                    Lie::Measurement => quote.put(472, &[0xee; 48]),
                }
                convert(&machine.intel.sign(&self.intel, quote)).ok().map(|converted| converted.evidence)
            }
            Measurement::Snp(launch) => {
                let mut report = Report::new(PRODUCT, 3, &machine.amd).with(0x50, report_data).with(0x90, launch);
                match lie {
                    Lie::None => {}
                    Lie::Debug => report.put(0x0a, &[0x0b]),
                    Lie::Measurement => report.put(0x90, &[0xee; 48]),
                }
                let mut certificate = machine.amd.certificate(PRODUCT);
                (certificate.begins, certificate.ends) = (self.amd.begins, self.amd.begins + YEAR);
                let Evidence::Amd(mut report) = convert(&machine.amd.sign(&report)).ok()?.evidence else { return None };
                report.certificate = self.amd.vcek(&certificate);
                Some(Evidence::Amd(report))
            }
            Measurement::Sgx(_) => None,
        }
    }

    /// Encodes the vendors' private keys and root certificates.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.amd.begins.to_be_bytes().to_vec();
        for key in self.amd.to_keys().iter().chain(&self.intel.to_keys()) {
            put(&mut out, key);
        }
        out.extend(encode_roots(&self.roots));
        out
    }

    /// Decodes the output of [`Vendors::encode`].
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (begins, mut rest) = bytes.split_first_chunk::<8>()?;
        let begins = u64::from_be_bytes(*begins);
        let mut keys = Vec::new();
        for _ in 0..6 {
            keys.push(take(&mut rest)?);
        }
        let amd = MockAmd::of_keys(PRODUCT, begins, [keys[0], keys[1], keys[2]])?;
        let dates = Dates { begins, ends: begins + YEAR };
        let intel = MockIntel::of_keys(dates, [keys[3], keys[4], keys[5]])?;
        Some(Self::with_roots(amd, intel, Some(decode_roots(rest)?)))
    }
}

/// The chips of one machine, one for each vendor.
pub struct Hardware {
    amd: Chip,
    intel: Machine,
}

impl Default for Hardware {
    /// Creates a machine with new keys and random chip IDs.
    fn default() -> Self {
        let mut number = [0; 80];
        SystemRandom::new().fill(&mut number).expect("randomness");
        let mut this = Self { amd: Chip::default(), intel: Machine::default() };
        this.amd.id.copy_from_slice(&number[..64]);
        this.intel.ppid.copy_from_slice(&number[64..]);
        this
    }
}

impl Hardware {
    /// Creates a machine whose certificates become valid at this second since the Unix epoch.
    pub fn since(begins: u64) -> Self {
        let mut this = Self::default();
        this.intel.dates = Dates { begins, ends: begins + YEAR };
        this
    }
}

/// Encodes the roots and the minimum firmware generation.
pub fn encode_roots(roots: &Roots) -> Vec<u8> {
    let mut out = roots.min_firmware_generation.to_be_bytes().to_vec();
    put(&mut out, &roots.intel);
    put(&mut out, roots.intel_pck.first().map_or(&[][..], Vec::as_slice));
    for root in roots.amd.iter().take(1) {
        put(&mut out, &root.ark);
        put(&mut out, &root.ask);
        put(&mut out, &root.asvk);
    }
    out
}

/// Decodes the roots of a simulation; all facts they support are marked `simulated`.
pub fn decode_roots(bytes: &[u8]) -> Option<Roots> {
    let (floor, mut rest) = bytes.split_first_chunk::<4>()?;
    let min_firmware_generation = u32::from_be_bytes(*floor);
    let mut next = || take(&mut rest).map(<[u8]>::to_vec);
    let (intel, pck, ark, ask, asvk) = (next()?, next()?, next()?, next()?, next()?);
    let amd = vec![AmdRoot { product: PRODUCT, ark, ask, asvk }];
    let intel_pck = vec![pck];
    rest.is_empty().then_some(Roots { intel, intel_pck, amd, min_firmware_generation, simulated: true })
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let (bytes, tail) = tail.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    *rest = tail;
    Some(bytes)
}
