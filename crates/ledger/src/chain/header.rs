//! Block headers, as far as proofs need them.
//!
//! Owns the parsing of the four fields that proofs need, by position, and the hash of the whole header. A fork that
//! adds fields at the end changes nothing here. It never checks that a header belongs to the chain. Source: Ethereum's
//! yellow paper, section 4.3, and the EIPs that added later fields.

use alloy_primitives::{B256, Bytes, U256, keccak256};
use alloy_rlp::{Decodable, Encodable, Header as RlpHead};
use serde_json::Value;

/// Largest header that is accepted, in bytes. Current headers have about 650.
pub const MAX_HEADER: usize = 4_096;
/// Number of fields that every header has: those from before the London fork.
const LEAST_FIELDS: usize = 15;
const PARENT: usize = 0;
const STATE_ROOT: usize = 3;
const NUMBER: usize = 8;
const TIMESTAMP: usize = 11;

/// The bytes or JSON object are not a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the block header is malformed")]
pub struct MalformedHeader;

/// The fields of a header that proofs need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Block hash: Keccak-256 of the header's RLP.
    pub hash: B256,
    /// Hash of the previous block.
    pub parent: B256,
    /// Root of all accounts after the block.
    pub state_root: B256,
    /// Block height.
    pub number: u64,
    /// Block time, in seconds since the Unix epoch.
    pub timestamp: u64,
}

impl Header {
    /// Decodes a header from its RLP.
    ///
    /// # Errors
    /// [`MalformedHeader`] for any other bytes, also if bytes follow the header.
    pub fn decode(rlp: &[u8]) -> Result<Self, MalformedHeader> {
        if rlp.len() > MAX_HEADER {
            return Err(MalformedHeader);
        }
        let mut rest = rlp;
        let head = RlpHead::decode(&mut rest).map_err(|_| MalformedHeader)?;
        if !head.list || head.payload_length != rest.len() {
            return Err(MalformedHeader);
        }
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let before = rest;
            RlpHead::decode_bytes(&mut rest, false).map_err(|_| MalformedHeader)?;
            fields.push(before.get(..before.len() - rest.len()).ok_or(MalformedHeader)?);
        }
        if fields.len() < LEAST_FIELDS {
            return Err(MalformedHeader);
        }
        Ok(Self {
            hash: keccak256(rlp),
            parent: field(&fields, PARENT)?,
            state_root: field(&fields, STATE_ROOT)?,
            number: field(&fields, NUMBER)?,
            timestamp: field(&fields, TIMESTAMP)?,
        })
    }
}

/// Encodes the header that an endpoint returned as JSON to RLP, and checks the hash that it claims.
///
/// # Errors
/// [`MalformedHeader`] if fields are missing or the hash differs.
pub fn from_json(shown: &Value) -> Result<Vec<u8>, MalformedHeader> {
    let mut payload = Vec::new();
    for (at, (name, kind)) in FIELDS.into_iter().enumerate() {
        let Some(text) = shown[name].as_str() else {
            // Forks add fields at the end. If one is missing, so are those after it.
            if at >= LEAST_FIELDS {
                break;
            }
            return Err(MalformedHeader);
        };
        match kind {
            Kind::Data => text.parse::<Bytes>().map_err(|_| MalformedHeader)?.encode(&mut payload),
            Kind::Quantity => text.parse::<U256>().map_err(|_| MalformedHeader)?.encode(&mut payload),
        }
    }
    let mut rlp = Vec::new();
    RlpHead { list: true, payload_length: payload.len() }.encode(&mut rlp);
    rlp.extend(payload);
    let claimed: Option<B256> = shown["hash"].as_str().and_then(|text| text.parse().ok());
    if claimed == Some(keccak256(&rlp)) { Ok(rlp) } else { Err(MalformedHeader) }
}

#[derive(Clone, Copy)]
enum Kind {
    Data,
    Quantity,
}

/// JSON names of a header's fields, in RLP order.
const FIELDS: [(&str, Kind); 21] = [
    ("parentHash", Kind::Data),
    ("sha3Uncles", Kind::Data),
    ("miner", Kind::Data),
    ("stateRoot", Kind::Data),
    ("transactionsRoot", Kind::Data),
    ("receiptsRoot", Kind::Data),
    ("logsBloom", Kind::Data),
    ("difficulty", Kind::Quantity),
    ("number", Kind::Quantity),
    ("gasLimit", Kind::Quantity),
    ("gasUsed", Kind::Quantity),
    ("timestamp", Kind::Quantity),
    ("extraData", Kind::Data),
    ("mixHash", Kind::Data),
    ("nonce", Kind::Data),
    ("baseFeePerGas", Kind::Quantity),
    ("withdrawalsRoot", Kind::Data),
    ("blobGasUsed", Kind::Quantity),
    ("excessBlobGas", Kind::Quantity),
    ("parentBeaconBlockRoot", Kind::Data),
    ("requestsHash", Kind::Data),
];

fn field<T: Decodable>(fields: &[&[u8]], at: usize) -> Result<T, MalformedHeader> {
    let mut bytes = *fields.get(at).ok_or(MalformedHeader)?;
    T::decode(&mut bytes).map_err(|_| MalformedHeader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::hex;
    use alloy_rlp::Encodable;

    /// Mainnet block 21,925,176, its fields in header order. Source: a16z/helios, tests/testdata/rpc/block.json.
    const FIELDS: [&str; 20] = [
        "2af1ab84a4e79f58be9b35b77968f792a842866f0f94fed37521ecca17c7f442",
        "1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347",
        "4838b106fce9647bdf1e7877bf73ce8b0bad5f97",
        "7b3d5a01f69b7d2ea7479fd7ae35f4bac2700ab6d6d7b4807a7fedf53ced710e",
        "b6ef2bf0992ccdca89ed200364e20a4446282da6160fd21258cc9b3f4fa9f789",
        "f883e1a2fb8df9d1d988dec80f13c8aca724590ac357e45e30e0d48b1fbd64ee",
        "37a509abc1579d93a2ec495befaabd27d7adb9ede7f22df466dbd18c9ff0a4e6c4d71d74b98999f4cb125fc374ee91b7baa3ac6bcebb7ea0b6d7efedd56e3186b3f06e7b5725cb99ea2e737ff2516eb717672877d27c38f097c7b82589e69f799f1ebf009e6e1e76e18fd3319847afd1ba3f74b8b97d6c147bf6bffe13db5f558f6a4b8beb90777dbd5b3f0acfb7adbe7cd4b7a1eda37a3bc5759f5254d1d6b9eff9b556aeffe95cfb3f37cadcd28d8a352fd3d635e443dbe7af677ece8a6d6feb287cca54901fdb73cd63b2f3b79dd649f795ee142e437624df6e2aab6378a24dfd7c7ba11676007fff108a76a8dfbddf7c23485fb870f0478c786c71f25d8b",
        "",
        "014e8d38",
        "02243e5b",
        "f8e2f0",
        "67be0db3",
        "546974616e2028746974616e6275696c6465722e78797a29",
        "e6aaa45d8946d067dc3ff923bdd006f8cf378cbe2d8b20d3575228943fabfa05",
        "0000000000000000",
        "65d7fcc6",
        "06c67fc3ed2258189eabb31a16a22df10534b319b525bd2a3762d31fb48dda26",
        "",
        "04780000",
        "92ab5cd0d1078545b4d6061ff1a20af12d2c9897ef395889d42b47fa4478a3f6",
    ];

    fn mainnet() -> Vec<u8> {
        let mut payload = Vec::new();
        for field in FIELDS {
            hex::decode(field).unwrap().as_slice().encode(&mut payload);
        }
        let mut rlp = Vec::new();
        RlpHead { list: true, payload_length: payload.len() }.encode(&mut rlp);
        [rlp, payload].concat()
    }

    #[test]
    fn mainnet_header_has_its_known_hash() {
        let header = Header::decode(&mainnet()).unwrap();
        let hash = hex!("92dabfa3f61ff1c349d12f5fd0dd4c99760a0a41b77dee8f0a80f83efdcb307a");
        assert_eq!((header.hash.0, header.number, header.timestamp), (hash, 21_925_176, 0x67be_0db3));
        assert_eq!(hex::encode(header.state_root), FIELDS[3]);
        assert_eq!(hex::encode(header.parent), FIELDS[0]);
    }

    #[test]
    fn truncated_or_extended_header_is_refused_and_flipped_bit_changes_the_hash() {
        let rlp = mainnet();
        let hash = Header::decode(&rlp).unwrap().hash;
        for end in 0..rlp.len() {
            assert_eq!(Header::decode(&rlp[..end]), Err(MalformedHeader));
        }
        assert_eq!(Header::decode(&[&rlp[..], &[0]].concat()), Err(MalformedHeader));
        for bit in 0..rlp.len() * 8 {
            let mut flipped = rlp.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!Header::decode(&flipped).is_ok_and(|header| header.hash == hash));
        }
    }
}
