//! Both mock vendors together, for a network of programs that simulate: who makes evidence has their keys, who judges it their roots.
//!
//! Owns the two files. A folder of keys proves nothing to anybody but to who is told to believe its roots, and everything that follows from those says `simulated`.

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

/// The vendors, and the certificates that stand for them.
pub struct Vendors {
    amd: MockAmd,
    intel: MockIntel,
    roots: Roots,
}

/// What a chip is asked to say that no chip of an honest relay says.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Lie {
    /// The truth.
    #[default]
    None,
    /// The guest can be looked into.
    Debug,
    /// Something else was started.
    Measurement,
}

impl Vendors {
    /// Vendors whose certificates and publications are valid from this second on, since the Unix epoch: publications for a month.
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

    /// What a verifier has to be given.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// What the vendors publish.
    pub fn bundle(&self) -> Bundle {
        self.bundle_since(self.amd.begins)
    }

    /// The same, issued at this second, since the Unix epoch.
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

    /// Evidence of a machine of its own for these 64 bytes, and for what was started.
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

    /// The vendors' secret keys and certificates.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.amd.begins.to_be_bytes().to_vec();
        for key in self.amd.to_keys().iter().chain(&self.intel.to_keys()) {
            put(&mut out, key);
        }
        out.extend(encode_roots(&self.roots));
        out
    }

    /// Reads what [`Vendors::encode`] has written.
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

/// The chip of one machine, for whichever vendor.
pub struct Hardware {
    amd: Chip,
    intel: Machine,
}

impl Default for Hardware {
    /// One that there was not before.
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
    /// One whose certificates begin at this second, since the Unix epoch.
    pub fn since(begins: u64) -> Self {
        let mut this = Self::default();
        this.intel.dates = Dates { begins, ends: begins + YEAR };
        this
    }
}

/// The roots in a file, and the oldest generation of firmware that is accepted.
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

/// Reads roots of a simulation: whatever they sign is called `simulated`.
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
