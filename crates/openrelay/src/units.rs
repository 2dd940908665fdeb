//! Sums and spans of time in words.
//!
//! Owns the units: people read tokens and ether, never their smallest units alone.

use alloy_primitives::utils::format_units;
use alloy_primitives::{Address, U256};
use openrelay_chain::Endpoint;
use serde::{Serialize, Serializer};

use crate::rpc::ask;

alloy_sol_types::sol! {
    /// The part of ERC-20 that says how amounts are shown.
    interface Metadata {
        function decimals() external view returns (uint8);
    }
}

/// Decimals of ether.
const ETHER: u8 = 18;

/// An amount of a token. Prints as tokens, with all digits. In JSON the amount is a decimal string in the smallest
/// unit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Tokens {
    #[serde(serialize_with = "decimal")]
    amount: U256,
    /// Digits after the point of one token; `None` if the token does not say.
    decimals: Option<u8>,
}

/// An amount of ether. Prints as ether; in JSON it is a decimal string in wei.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Ether(#[serde(serialize_with = "decimal")] pub(crate) U256);

/// How amounts of a token are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Unit(Option<u8>);

impl Unit {
    /// Asks a token for its decimals, which ERC-20 makes optional.
    pub(crate) fn of(endpoint: &Endpoint, token: Address) -> Self {
        Self(ask(endpoint, token, &Metadata::decimalsCall {}).ok())
    }

    pub(crate) const fn show(self, amount: U256) -> Tokens {
        Tokens { amount, decimals: self.0 }
    }
}

impl std::fmt::Display for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.decimals.and_then(|decimals| plain(self.amount, decimals)) {
            Some(tokens) => write!(f, "{tokens} tokens"),
            None => write!(f, "{} of the token's smallest unit", self.amount),
        }
    }
}

impl std::fmt::Display for Ether {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match plain(self.0, ETHER) {
            Some(ether) => write!(f, "{ether} ether"),
            None => write!(f, "{} wei", self.0),
        }
    }
}

fn decimal<S: Serializer>(amount: &U256, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(amount)
}

fn plain(amount: U256, decimals: u8) -> Option<String> {
    let text = format_units(amount, decimals).ok()?;
    Some(if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text })
}

/// Returns a span of time in its largest unit of which it has two or more, rounded up.
pub(crate) fn span(seconds: u64) -> String {
    let units = [(86_400, "days"), (3_600, "hours"), (60, "minutes")];
    let unit = units.into_iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} s"), |(length, name)| format!("{} {name}", seconds.div_ceil(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_shown_in_tokens_and_ether_with_all_digits() {
        let unit = Unit(Some(18));
        let token = U256::from(10).pow(U256::from(18));
        for (unit, amount, said) in [
            (unit, token * U256::from(1_000), "1000 tokens"),
            (unit, U256::ZERO, "0 tokens"),
            (unit, U256::from(1), "0.000000000000000001 tokens"),
            (unit, token / U256::from(200), "0.005 tokens"),
            (Unit(Some(0)), U256::from(1_000), "1000 tokens"),
            (Unit(None), U256::from(7), "7 of the token's smallest unit"),
            (Unit(Some(255)), U256::from(7), "7 of the token's smallest unit"),
        ] {
            assert_eq!(unit.show(amount).to_string(), said);
        }
        assert_eq!(Ether(token / U256::from(100)).to_string(), "0.01 ether");
        let json = serde_json::to_string(&(unit.show(token), Ether(token))).unwrap_or_default();
        let amount = "1000000000000000000";
        assert_eq!(json, format!("[{{\"amount\":\"{amount}\",\"decimals\":18}},\"{amount}\"]"));
    }

    #[test]
    fn spans_are_rounded_up_in_their_largest_unit() {
        for (seconds, said) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 minutes"),
            (7_199, "120 minutes"),
            (7_201, "3 hours"),
            (172_800, "2 days"),
            (14 * 86_400 - 1, "14 days"),
        ] {
            assert_eq!(span(seconds), said);
        }
    }
}
