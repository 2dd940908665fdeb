//! The rules that apply at each block.
//!
//! Owns the schedule of a genesis file: forks by block number until the merge, and by time after it.

use revm::primitives::hardfork::SpecId;
use serde_json::Value;

/// The rules of one fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The EVM specification.
    pub(crate) spec: SpecId,
    /// How fast the blob fee moves. Source: EIP-7892.
    pub(crate) blob_fraction: u64,
    /// Target and maximum number of blobs in a block. At the target the fee stays constant.
    pub(crate) blobs: (u64, u64),
}

/// The rules of each block.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    by_number: Vec<(u64, SpecId)>,
    merge: u64,
    by_time: Vec<(u64, Rules)>,
}

const CANCUN: Rules = Rules { spec: SpecId::CANCUN, blob_fraction: 3_338_477, blobs: (3, 6) };

/// Keys of the forks by block number in a genesis file, in their order.
const NUMBERED: [(&str, SpecId); 10] = [
    ("homesteadBlock", SpecId::HOMESTEAD),
    ("eip150Block", SpecId::TANGERINE),
    ("eip155Block", SpecId::SPURIOUS_DRAGON),
    ("eip158Block", SpecId::SPURIOUS_DRAGON),
    ("byzantiumBlock", SpecId::BYZANTIUM),
    // revm lacks the storage prices between these two forks. No chain has used them for long.
    ("constantinopleBlock", SpecId::PETERSBURG),
    ("petersburgBlock", SpecId::PETERSBURG),
    ("istanbulBlock", SpecId::ISTANBUL),
    ("berlinBlock", SpecId::BERLIN),
    ("londonBlock", SpecId::LONDON),
];

/// Keys of the forks by time, without the suffix `Time`.
const TIMED: [(&str, SpecId); 6] = [
    ("shanghai", SpecId::SHANGHAI),
    ("cancun", SpecId::CANCUN),
    ("prague", SpecId::PRAGUE),
    ("osaka", SpecId::OSAKA),
    ("bpo1", SpecId::OSAKA),
    ("bpo2", SpecId::OSAKA),
];

impl Schedule {
    /// Returns one fork from the first block on. It is pinned, because later forks price storage differently.
    pub(crate) fn osaka() -> Self {
        let rules = Rules { spec: SpecId::OSAKA, blob_fraction: 5_007_716, blobs: (6, 9) };
        Self { by_number: Vec::new(), merge: 0, by_time: vec![(0, rules)] }
    }

    /// Reads the schedule from the `config` of a genesis file.
    pub(crate) fn of_genesis(config: &Value) -> Self {
        let number = |key: &str| config[key].as_u64();
        let by_number = NUMBERED.iter().filter_map(|(key, spec)| Some((number(key)?, *spec))).collect();
        let (mut by_time, mut rules) = (Vec::new(), CANCUN);
        for (name, spec) in TIMED {
            let Some(time) = number(&format!("{name}Time")) else { continue };
            let blobs = &config["blobSchedule"][name];
            let read = |key: &str, before: u64| blobs[key].as_u64().unwrap_or(before);
            rules = Rules {
                spec,
                blob_fraction: read("baseFeeUpdateFraction", rules.blob_fraction),
                blobs: (read("target", rules.blobs.0), read("max", rules.blobs.1)),
            };
            by_time.push((time, rules));
        }
        Self { by_number, merge: number("mergeNetsplitBlock").unwrap_or(0), by_time }
    }

    /// Returns the rules of a block.
    pub(crate) fn rules(&self, number: u64, timestamp: u64) -> Rules {
        if number < self.merge {
            let spec = self.by_number.iter().rev().find(|(from, _)| *from <= number);
            return Rules { spec: spec.map_or(SpecId::FRONTIER, |(_, spec)| *spec), ..CANCUN };
        }
        let rules = self.by_time.iter().rev().find(|(from, _)| *from <= timestamp);
        rules.map_or(Rules { spec: SpecId::MERGE, ..CANCUN }, |(_, rules)| *rules)
    }
}
