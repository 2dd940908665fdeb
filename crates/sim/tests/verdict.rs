//! The path from evidence to a verdict: valid evidence is accepted, and each defect is refused with its own code.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue must stop")]

use std::sync::OnceLock;

use aws_lc_rs::digest::{SHA256, digest};
use openrelay_attest::binding::{Binding, LENGTH};
use openrelay_attest::collateral::{AmdCollateral, Collateral};
use openrelay_attest::evidence::Measurement;
use openrelay_attest::facts::{KeyKind, Platform, TcbVersion};
use openrelay_attest::policy::{Floors, Policy};
use openrelay_attest::raw::convert;
use openrelay_attest::verdict::{Block, Image, ImageState, LedgerView, Relay, Staple, Verdict, verify};
use openrelay_attest::{Evidence, Refusal, Roots};
use openrelay_sim::amd::{BEGINS, Chip, ENDS, MockAmd, Report};
use openrelay_sim::intel::{Machine, MockIntel, Published, Quote};

const NOW: u64 = BEGINS + 86_400;
const INGRESS: u8 = 1;
const EGRESS: u8 = 2;
const IMAGE: [u8; 32] = [0x1a; 32];
const VALUE: [u8; 32] = [0x5a; 32];
/// The launch measurement in [`Report::new`].
const MEASUREMENT: [u8; 48] = [0x4d; 48];

/// A relay on a mock chip, and everything that its verification needs.
struct World {
    amd: &'static MockAmd,
    chip: Chip,
    report: Report,
    binding: Binding,
    /// The report data that the chip signs, if it differs from the binding's.
    report_data: Option<[u8; 64]>,
    roots: Roots,
    policy: Policy,
    view: LedgerView,
    with_crl: bool,
    key: KeyKind,
    role: u8,
    now: u64,
}

/// Returns the product's hierarchy, made once because its keys take most of the test's time.
fn hierarchy(product: &'static str) -> &'static MockAmd {
    static ALL: OnceLock<Vec<MockAmd>> = OnceLock::new();
    let all = ALL.get_or_init(|| ["Milan", "Genoa", "Turin"].map(MockAmd::new).into());
    all.iter().find(|amd| amd.product == product).unwrap()
}

impl World {
    fn new() -> Self {
        Self::of("Genoa", Chip::default())
    }

    fn of(product: &'static str, chip: Chip) -> Self {
        let amd = hierarchy(product);
        let binding = Binding {
            network: [1; 32],
            relay_id: 7,
            handshake_key: [2; 32],
            key_epoch: 3,
            roles: EGRESS,
            image: IMAGE,
            block_hash: [4; 32],
            block_height: 5,
        };
        let (intel, intel_pck, amd_roots) = (Vec::new(), Vec::new(), vec![amd.root()]);
        let roots = Roots { intel, intel_pck, amd: amd_roots, min_firmware_generation: 2, simulated: true };
        let floor = TcbVersion { fmc: None, boot_loader: 10, tee: 1, snp: 23, microcode: 84 };
        let view = LedgerView {
            network: Some(binding.network),
            time: Some(NOW - 60),
            newest_known: false,
            block: Some(Block { hash: binding.block_hash, height: binding.block_height, time: NOW - 3_600 }),
            relay: Some(Relay {
                relay_id: binding.relay_id,
                handshake_key: binding.handshake_key,
                key_epoch: binding.key_epoch,
                roles: binding.roles,
            }),
            images: Some(vec![Image {
                hash: IMAGE,
                value: VALUE,
                state: ImageState::Active,
                firmware_generation: Some(2),
                measurements: vec![Measurement::Snp([0; 48]), Measurement::Snp(MEASUREMENT)],
                advisories: Vec::new(),
                rebuilt_by: vec![[0xa1; 20], [0xa2; 20]],
            }]),
            floors: Some(Floors { intel_evaluation: 0, amd: vec![(product.to_owned(), floor)] }),
        };
        Self {
            report: Report::new(product, 3, &chip),
            policy: Policy { simulation: true, ..Policy::default() },
            report_data: None,
            with_crl: true,
            key: KeyKind::Vcek,
            role: EGRESS,
            now: NOW,
            amd,
            chip,
            binding,
            roots,
            view,
        }
    }

    fn judge(&self) -> Result<Verdict, Refusal> {
        let data = self.report_data.unwrap_or_else(|| self.binding.report_data());
        let raw = self.chip.sign(&self.report.clone().with(0x50, &data));
        let Evidence::Amd(mut report) = convert(&raw)?.evidence else { panic!("no report") };
        let mut certificate = self.chip.certificate(self.amd.product);
        report.certificate = if self.key == KeyKind::Vlek {
            certificate.subject = "SEV-VLEK".into();
            self.amd.vlek(&certificate)
        } else {
            self.amd.vcek(&certificate)
        };
        let crl = self.with_crl.then(|| self.amd.crl(BEGINS, Some(ENDS), &[]));
        let staple = Staple { evidence: Evidence::Amd(report), binding: self.binding };
        let collateral = Collateral::Amd(AmdCollateral { crl });
        verify(&staple, self.role, &collateral, (&self.roots, &self.policy), &self.view, self.now)
    }

    fn code(&self) -> &'static str {
        self.judge().map_or_else(|refusal| refusal.code(), |_| "verdict")
    }
}

#[test]
fn valid_evidence_yields_a_verdict_with_facts() {
    let world = World::new();
    let verdict = world.judge().unwrap();
    assert_eq!((verdict.binding(), verdict.image()), (&world.binding, ImageState::Active));
    assert!(verdict.facts().simulated && verdict.facts().platform == Platform::SevSnp);
    assert_eq!(verdict.facts().report_data, world.binding.report_data());
    let signed = world.report.with(0x50, &world.binding.report_data()).0;
    assert_eq!(verdict.identity(), digest(&SHA256, &signed).as_ref(), "the hash of what the chip signed");
}

/// Bit 0 of the platform information says whether SMT is enabled, whatever other bits are set.
#[test]
fn smt_is_reported_from_bit_0_of_platform_info() {
    for (info, shared) in [(0x20, false), (0x21, true), (0x3e, false), (0x3f, true)] {
        let mut world = World::new();
        world.report.put(0x40, &[info]);
        assert_eq!(world.judge().unwrap().facts().smt, Some(shared), "{info:#x}");
    }
}

/// Each row changes one thing.
#[test]
fn altered_evidence_is_refused_with_its_code() {
    type Change = fn(&mut World);
    let rows: [(&str, Change, &str); 89] = [
        ("nothing", |_| {}, "verdict"),
        ("the policy refuses simulations", |w| w.policy.simulation = false, "simulated"),
        ("debug", |w| w.report.put(0x0a, &[0x0b]), "debug"),
        ("other report data", |w| w.report_data = Some([0; 64]), "binding"),
        (
            "report data, last byte",
            |w| {
                let mut data = w.binding.report_data();
                data[63] ^= 1;
                w.report_data = Some(data);
            },
            "binding",
        ),
        ("binding, network", |w| keep(w, |b| b.network[0] ^= 1), "binding"),
        ("binding, relay", |w| keep(w, |b| b.relay_id += 1), "binding"),
        ("binding, key", |w| keep(w, |b| b.handshake_key[31] ^= 1), "binding"),
        ("binding, epoch", |w| keep(w, |b| b.key_epoch += 1), "binding"),
        ("binding, roles", |w| keep(w, |b| b.roles = 3), "binding"),
        ("binding, image", |w| keep(w, |b| b.image[0] ^= 1), "binding"),
        ("binding, block", |w| keep(w, |b| b.block_hash[0] ^= 1), "binding"),
        ("binding, height", |w| keep(w, |b| b.block_height += 1), "binding"),
        ("another network", |w| w.binding.network[0] ^= 1, "other-network"),
        ("another relay's evidence", |w| w.binding.relay_id += 1, "other-relay"),
        ("another key", |w| w.binding.handshake_key[0] ^= 1, "other-key"),
        ("the previous epoch", |w| w.binding.key_epoch -= 1, "other-epoch"),
        ("other roles", |w| w.binding.roles = 3, "other-role"),
        ("the wrong role for this hop", |w| w.role = INGRESS, "other-role"),
        ("a block of another fork", |w| w.binding.block_hash[0] ^= 1, "unknown-block"),
        ("a block that is not on the chain", |w| w.view.block = None, "unknown-block"),
        ("the block at another height", |w| w.view.block.as_mut().unwrap().height += 1, "unknown-block"),
        ("a block newer than the newest", |w| w.view.block.as_mut().unwrap().time = NOW - 59, "unknown-block"),
        ("the newest block", |w| w.view.block.as_mut().unwrap().time = NOW - 60, "verdict"),
        ("a block of the maximum age", |w| set_age(w, 21_600), "verdict"),
        ("a block a second too old", |w| set_age(w, 21_601), "too-old"),
        ("another image", |w| w.binding.image[0] ^= 1, "unknown-image"),
        ("no images at all", |w| w.view.images = Some(Vec::new()), "unknown-image"),
        ("a measurement of no approved image", |w| w.report.put(0x90, &[0x4e]), "measurement"),
        ("firmware of the previous generation", |w| image(w).firmware_generation = Some(1), "firmware-generation"),
        ("firmware without a generation", |w| image(w).firmware_generation = None, "firmware-generation"),
        ("firmware of a later generation", |w| image(w).firmware_generation = Some(3), "verdict"),
        ("an image without measurements", |w| image(w).measurements.clear(), "measurement"),
        ("an image for trust domains", |w| image(w).measurements = vec![domain(MEASUREMENT, 0)], "measurement"),
        ("the network is missing", |w| w.view.network = None, "no-view"),
        ("the time is missing", |w| w.view.time = None, "no-view"),
        ("the record is missing", |w| w.view.relay = None, "no-view"),
        ("the images are missing", |w| w.view.images = None, "no-view"),
        ("the floors are missing", |w| w.view.floors = None, "no-view"),
        ("no floor for this product", |w| w.view.floors = Some(Floors::default()), "no-floor"),
        ("a floor for another product", |w| w.view.floors.as_mut().unwrap().amd[0].0 = "Turin".into(), "no-floor"),
        ("boot loader below the floor", |w| floor(w).boot_loader = 11, "floor"),
        ("TEE below the floor", |w| floor(w).tee = 2, "floor"),
        ("SNP firmware below the floor", |w| floor(w).snp = 24, "floor"),
        ("microcode below the floor", |w| floor(w).microcode = 85, "floor"),
        ("an FMC floor for a product without FMC", |w| floor(w).fmc = Some(1), "floor"),
        ("the current TCB is below the floor", |w| w.report.put(0x38, &[9]), "floor"),
        ("the committed TCB is below the floor", |w| w.report.put(0x1e0, &[9]), "floor"),
        ("the launch TCB is below the floor", |w| w.report.put(0x1f0, &[9]), "floor"),
        ("two of three named rebuilders, two needed", |w| name(w, &[0xa1, 0xa2, 0xa3], 2), "verdict"),
        ("two of three named rebuilders, three needed", |w| name(w, &[0xa1, 0xa2, 0xa3], 3), "rebuilders"),
        ("only other rebuilders than the named one", |w| name(w, &[0xa3], 1), "rebuilders"),
        ("local rebuild required, this image rebuilt", |w| w.policy.rebuilt = Some(vec![VALUE]), "verdict"),
        ("local rebuild required, nothing rebuilt", |w| w.policy.rebuilt = Some(Vec::new()), "not-rebuilt"),
        ("local rebuild required, another rebuilt", |w| w.policy.rebuilt = Some(vec![[9; 32]]), "not-rebuilt"),
        ("local rebuild required, other firmware rebuilt", |w| w.policy.rebuilt = Some(vec![IMAGE]), "not-rebuilt"),
        ("no revocation list", |w| w.with_crl = false, "no-crl"),
        ("VMPL 1", |w| w.report.put(0x30, &[1]), "vmpl"),
        ("memory aliases unchecked", |w| w.report.put(0x40, &[1]), "attributes"),
        ("further bits of platform information", |w| w.report.put(0x40, &[0x3f]), "verdict"),
        (
            "memory aliases unchecked, check not required",
            |w| {
                w.policy.alias_check = false;
                w.report.put(0x40, &[1]);
            },
            "verdict",
        ),
        ("page swapping by the host is allowed", |w| guest_policy(w, 0x0003_0133), "attributes"),
        ("memory on a CXL link", |w| guest_policy(w, 0x0223_0133), "attributes"),
        ("all permitted policy bits", |w| guest_policy(w, 0x03d3_0133), "verdict"),
        ("SMT refused by the policy, and enabled", |w| w.policy.smt = false, "smt"),
        (
            "SMT refused by the policy, and disabled",
            |w| {
                w.policy.smt = false;
                w.report.put(0x40, &[0x20]);
            },
            "verdict",
        ),
        ("an ID key digest", |w| w.report.put(0xe0, &[1]), "owner"),
        ("an author key digest", |w| w.report.put(0x13f, &[1]), "owner"),
        ("host data, which the host may choose", |w| w.report.put(0xc0, &[1; 32]), "verdict"),
        ("another product is accepted", |w| w.policy.amd_products = vec!["Turin".into()], "product"),
        ("only TDX is accepted", |w| w.policy.platforms = vec![Platform::Tdx], "platform"),
        ("nothing is accepted", |w| w.policy.platforms.clear(), "platform"),
        ("a clock six hours behind the block", |w| set_time(w, NOW + 21_600), "verdict"),
        ("a clock more than six hours behind", |w| set_time(w, NOW + 21_601), "clock"),
        ("a clock six hours ahead of the block", |w| (w.now, w.view.time) = (NOW + 21_600, Some(NOW)), "verdict"),
        ("a clock more than six hours ahead", |w| (w.now, w.view.time) = (NOW + 21_601, Some(NOW)), "outdated"),
        ("72 hours ahead, and no newer block is known", |w| offline(w, 259_200, true), "verdict"),
        ("72 hours ahead, and a newer block is known", |w| offline(w, 259_200, false), "outdated"),
        ("six hours ahead, and a newer block is known", |w| offline(w, 21_600, false), "verdict"),
        ("more than 72 hours ahead, and no newer block is known", |w| offline(w, 259_201, true), "outdated"),
        (
            "evidence too old for the newest known block",
            |w| (offline(w, 259_200, true), set_age(w, 21_601)).1,
            "too-old",
        ),
        (
            "a clock behind the newest known block",
            |w| (w.view.newest_known = true, set_time(w, NOW + 21_601)).1,
            "clock",
        ),
        ("a clock at 1970", |w| w.now = 0, "not-yet-valid"),
        ("a clock before every certificate", |w| w.now = BEGINS - 1, "not-yet-valid"),
        ("other roots", |w| w.roots.amd = vec![MockAmd::new("Genoa").root()], "certificate-signature"),
        ("no roots", |w| w.roots.amd.clear(), "unknown-issuer"),
        ("another chip's report", |w| w.report.put(0x1a0, &[0]), "other-chip"),
        ("reserved bytes", |w| w.report.put(0x29f, &[1]), "reserved-bits"),
        ("an unsigned report", |w| w.report.put(0x48, &[7 << 2]), "unsigned"),
    ];
    for (what, change, expected) in rows {
        let mut world = World::new();
        change(&mut world);
        assert_eq!(world.code(), expected, "{what}");
    }
    let states = [
        (ImageState::Pending, "image-state"),
        (ImageState::Active, "verdict"),
        (ImageState::Deprecated, "verdict"),
        (ImageState::Retired, "image-state"),
        (ImageState::Suspended, "image-state"),
        (ImageState::Revoked, "image-state"),
    ];
    for (state, expected) in states {
        let mut world = World::new();
        image(&mut world).state = state;
        assert_eq!(world.code(), expected, "{state:?}");
    }
    assert_eq!(World::of("Milan", Chip::default()).code(), "product", "the default policy of clients");
    assert_eq!(World::of("Turin", Chip::default()).code(), "verdict");
}

/// The same image bytes are approved twice, with different firmware.
#[test]
fn image_version_is_chosen_by_the_measured_firmware() {
    use ImageState::{Active, Deprecated, Retired, Revoked, Suspended};
    let of_old = || vec![Measurement::Snp([0x0d; 48])];
    let of_evidence = || vec![Measurement::Snp(MEASUREMENT)];
    let both = || vec![Measurement::Snp([0x0d; 48]), Measurement::Snp(MEASUREMENT)];
    type Version = (ImageState, Vec<Measurement>);
    let judged = |versions: [Version; 2]| {
        let mut world = World::new();
        let image = image(&mut world).clone();
        let version = |(state, measurements)| Image { state, measurements, ..image.clone() };
        world.view.images = Some(versions.map(version).into());
        world.judge().map(|verdict| verdict.image()).map_err(|refusal| refusal.code())
    };
    // The state of the other version is irrelevant.
    assert_eq!(judged([(Revoked, of_old()), (Active, of_evidence())]), Ok(Active));
    assert_eq!(judged([(Active, of_evidence()), (Revoked, of_old())]), Ok(Active));
    assert_eq!(judged([(Deprecated, of_evidence()), (Active, of_old())]), Ok(Deprecated));
    assert_eq!(judged([(Revoked, of_evidence()), (Active, of_old())]), Err("image-state"));
    assert_eq!(judged([(Retired, of_evidence()), (Active, of_old())]), Err("image-state"));
    assert_eq!(judged([(Active, of_old()), (Suspended, of_evidence())]), Err("image-state"));
    // A measurement that both versions list cannot tell them apart.
    assert_eq!(judged([(Deprecated, both()), (Active, of_evidence())]), Ok(Active));
    assert_eq!(judged([(Active, of_evidence()), (Retired, both())]), Ok(Active));
    assert_eq!(judged([(Revoked, both()), (Active, of_evidence())]), Err("image-state"));
    assert_eq!(judged([(Active, of_evidence()), (Suspended, both())]), Err("image-state"));
    assert_eq!(judged([(Active, of_old()), (Active, of_old())]), Err("measurement"));
}

/// Changes the presented binding but not the signed report data.
fn keep(world: &mut World, change: fn(&mut Binding)) {
    world.report_data = Some(world.binding.report_data());
    change(&mut world.binding);
}

fn guest_policy(world: &mut World, policy: u64) {
    world.report.put(0x08, &policy.to_le_bytes());
}

/// Turin supports ciphertext hiding, so both the guest policy and the machine must enable it.
#[test]
fn ciphertext_hiding_is_required_on_turin() {
    let code = |policy, info| {
        let mut world = World::of("Turin", Chip::default());
        guest_policy(&mut world, policy);
        world.report.put(0x40, &[info]);
        world.code()
    };
    assert_eq!(code(0x0303_0133, 0x31), "verdict");
    assert_eq!(code(0x0203_0133, 0x31), "attributes");
    assert_eq!(code(0x0303_0133, 0x21), "attributes");
}

/// The enclave's signer chooses these fields, and no check restricts who the signer is.
#[test]
fn enclave_fields_outside_the_measurement_are_checked() {
    let (intel, machine, mut world) = (MockIntel::default(), Machine::default(), World::new());
    world.roots = intel.roots();
    world.policy.platforms = vec![Platform::Sgx];
    image(&mut world).measurements = vec![Measurement::Sgx([0xe7; 32])];
    image(&mut world).firmware_generation = Some(world.roots.min_firmware_generation);
    let binding = world.binding;
    let code = |at: usize, bytes: &[u8]| {
        let mut quote = Quote::of_enclave();
        quote.put(320, &binding.report_data());
        // x87 and SSE.
        quote.put(56, &[3]);
        quote.put(at, bytes);
        let staple = Staple { evidence: convert(&machine.sign(&intel, quote)).unwrap().evidence, binding };
        let collateral = Collateral::Intel(Box::new(intel.sign(&Published::for_enclaves())));
        let judged = verify(&staple, EGRESS, &collateral, (&world.roots, &world.policy), &world.view, NOW);
        judged.map_or_else(|refusal| refusal.code(), |_| "verdict")
    };
    let rows: [(&str, usize, &[u8], &str); 10] = [
        ("nothing", 56, &[3], "verdict"),
        ("AVX-512 and AMX", 56, &0x6_00e7u64.to_le_bytes(), "verdict"),
        ("processor trace", 56, &0x103u64.to_le_bytes(), "attributes"),
        ("addresses of page faults", 16, &[1], "attributes"),
        ("a configuration ID", 255, &[1], "owner"),
        ("a configuration SVN", 261, &[1], "owner"),
        ("another product ID of the signer", 257, &[1], "owner"),
        ("another SVN of the signer", 258, &[1], "owner"),
        ("another measurement", 64, &[0], "measurement"),
        ("debug", 48, &[7], "debug"),
    ];
    for (what, at, bytes, expected) in rows {
        assert_eq!(code(at, bytes), expected, "{what}");
    }
}

fn set_age(world: &mut World, age: u64) {
    world.view.block.as_mut().unwrap().time = world.view.time.unwrap() - age;
}

/// Sets the age of the newest proven block, and whether it is the newest known block.
fn offline(world: &mut World, age: u64, newest_known: bool) {
    (world.view.time, world.view.newest_known) = (Some(world.now - age), newest_known);
    set_age(world, 3_600);
}

fn set_time(world: &mut World, time: u64) {
    world.view.time = Some(time);
    set_age(world, 60);
}

fn name(world: &mut World, rebuilders: &[u8], needed: usize) {
    world.policy.rebuilders = rebuilders.iter().map(|byte| [*byte; 20]).collect();
    world.policy.rebuilders_needed = needed;
}

fn image(world: &mut World) -> &mut Image {
    &mut world.view.images.as_mut().unwrap()[0]
}

/// Returns the measurement of a trust domain whose RTMRs are all equal.
fn domain(mrtd: [u8; 48], register: u8) -> Measurement {
    Measurement::Tdx { mrtd, rtmrs: [[register; 48]; 4] }
}

fn floor(world: &mut World) -> &mut TcbVersion {
    &mut world.view.floors.as_mut().unwrap().amd[0].1
}

/// Verifies a trust domain against the policy, the floors and Intel's TCB status.
#[test]
fn tdx_status_advisories_and_attributes_are_checked() {
    let intel = MockIntel::default();
    let machine = Machine::default();
    let mut world = World::new();
    world.roots = intel.roots();
    image(&mut world).measurements = vec![domain([0xd7; 48], 0)];
    let binding = world.binding;
    let staple = |change: &dyn Fn(&mut Quote)| {
        let raw = machine.quote(&intel, |quote| {
            quote.put(520, &binding.report_data());
            change(quote);
        });
        Staple { evidence: convert(&raw).unwrap().evidence, binding }
    };
    let shown = staple(&|_| {});
    let code_of = |staple: &Staple, world: &World, published: &Published| {
        let collateral = Collateral::Intel(Box::new(intel.sign(published)));
        let judged = verify(staple, EGRESS, &collateral, (&world.roots, &world.policy), &world.view, NOW);
        judged.map_or_else(|refusal| refusal.code(), |_| "verdict")
    };
    let code = |world: &World, published: &Published| code_of(&shown, world, published);
    let published = |status: &str| {
        let mut published = Published::default();
        // The platform's level ends the document.
        let levels = published.tcb_info.strip_suffix("\"UpToDate\"}]}").unwrap();
        published.tcb_info = format!("{levels}{status}}}]}}");
        published
    };
    let weak = published("\"SWHardeningNeeded\",\"advisoryIDs\":[\"INTEL-SA-00001\"]");
    assert_eq!(code(&world, &Published::default()), "verdict");
    assert_eq!(code(&world, &published("\"SWHardeningNeeded\"")), "verdict");
    for status in ["\"OutOfDate\"", "\"ConfigurationNeeded\"", "\"OutOfDateConfigurationNeeded\""] {
        assert_eq!(code(&world, &published(status)), "tcb-status", "{status}");
    }
    assert_eq!(code(&world, &weak), "advisory");
    image(&mut world).advisories = vec!["INTEL-SA-00001".into()];
    assert_eq!(code(&world, &weak), "verdict", "the image mitigates the advisory");
    type Change = fn(&mut Quote);
    fn attributes(quote: &mut Quote, bits: u64) {
        quote.put(120, &(1 << 28 | bits).to_le_bytes());
    }
    let rows: [(&str, Change, &str); 16] = [
        ("another firmware", |q| q.put(136, &[0]), "measurement"),
        ("RTMR 0, input from the host", |q| q.put(328, &[1]), "measurement"),
        ("RTMR 1, another kernel", |q| q.put(376, &[1]), "measurement"),
        ("RTMR 2, another command line", |q| q.put(424, &[1]), "measurement"),
        ("RTMR 3, extended at run time", |q| q.put(519, &[1]), "measurement"),
        ("LASS", |q| attributes(q, 1 << 27), "verdict"),
        ("Key Locker", |q| attributes(q, 1 << 31), "attributes"),
        ("performance counters", |q| attributes(q, 1 << 63), "attributes"),
        ("AVX-512 and AMX", |q| q.put(128, &0x6_00e7u64.to_le_bytes()), "verdict"),
        ("processor trace", |q| q.put(128, &0x1e7u64.to_le_bytes()), "attributes"),
        ("branch records", |q| q.put(128, &0x80e7u64.to_le_bytes()), "attributes"),
        ("a configuration ID", |q| q.put(184, &[1]), "owner"),
        ("an owner", |q| q.put(232, &[1]), "owner"),
        ("an owner's configuration", |q| q.put(327, &[1]), "owner"),
        ("debug", |q| attributes(q, 1), "debug"),
        ("nothing", |_| {}, "verdict"),
    ];
    for (what, change, expected) in rows {
        assert_eq!(code_of(&staple(&change), &world, &Published::default()), expected, "{what}");
    }
    world.view.floors.as_mut().unwrap().intel_evaluation = 18;
    assert_eq!(code(&world, &Published::default()), "verdict");
    world.view.floors.as_mut().unwrap().intel_evaluation = 19;
    assert_eq!(code(&world, &Published::default()), "floor");
    world.policy.platforms = vec![Platform::Sgx, Platform::SevSnp];
    assert_eq!(code(&world, &Published::default()), "platform");
}

#[test]
fn circuit_needs_two_chips_of_which_one_may_be_unknown() {
    let chip = |number| {
        let mut chip = Chip::default();
        chip.id = [number; 64];
        chip
    };
    let named = |number| World::of("Genoa", chip(number)).judge().unwrap();
    let hidden = |number| {
        let mut world = World::of("Genoa", chip(number));
        world.report.put(0x1a0, &[0; 64]);
        world.judge().unwrap()
    };
    let cloud = || {
        let mut world = World::new();
        world.key = KeyKind::Vlek;
        world.report.put(0x48, &[1 << 2]);
        world.judge().unwrap()
    };
    assert_eq!(named(1).may_share_a_circuit_with(&named(2)), Ok(()));
    assert_eq!(named(1).may_share_a_circuit_with(&named(1)).unwrap_err().code(), "same-chip");
    assert_eq!(hidden(1).may_share_a_circuit_with(&hidden(2)), Ok(()), "the certificates name the chips");
    assert_eq!(hidden(1).may_share_a_circuit_with(&named(1)).unwrap_err().code(), "same-chip");
    assert_eq!(named(1).may_share_a_circuit_with(&cloud()), Ok(()));
    assert_eq!(cloud().may_share_a_circuit_with(&cloud()).unwrap_err().code(), "unknown-chips");
}

#[test]
fn binding_has_one_encoding() {
    let binding = World::new().binding;
    let bytes = binding.encode();
    assert_eq!(Binding::decode(&bytes), Ok(binding));
    for end in 0..LENGTH {
        assert_eq!(Binding::decode(&bytes[..end]).unwrap_err().code(), "truncated");
    }
    assert_eq!(Binding::decode(&[&bytes[..], &[0]].concat()).unwrap_err().code(), "trailing-bytes");
    for bit in 0..LENGTH * 8 {
        let mut copy = bytes;
        copy[bit / 8] ^= 1 << (bit % 8);
        let other = Binding::decode(&copy).map(|other| other.report_data());
        assert_ne!(other, Ok(binding.report_data()), "bit {bit} is not bound");
    }
    for roles in [0, 4, 255] {
        assert_eq!(Binding::decode(&Binding { roles, ..binding }.encode()).unwrap_err().code(), "not-canonical");
    }
}

/// Genuine roots verify no simulated evidence.
#[test]
fn simulated_staple_is_refused_under_genuine_roots() {
    let mut world = World::new();
    world.roots = Roots::genuine();
    assert_ne!(world.code(), "verdict", "genuine roots do not verify a mock vendor's signature");
}
