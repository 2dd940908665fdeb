//! The product on a network: relays, clients, a chain with its operators and validators, and who attacks them.
//!
//! Owns no scenario: it starts programs and says how they are driven. Knows [`crate::net`] and nothing above itself.

pub(crate) mod approved;
pub(crate) mod attacks;
pub(crate) mod boot;
pub(crate) mod chain;
pub(crate) mod counts;
pub(crate) mod devchain;
pub(crate) mod flood;
pub(crate) mod internet;
pub(crate) mod keeper;
pub(crate) mod leak;
pub(crate) mod load;
pub(crate) mod local_chain;
pub(crate) mod namespaces;
pub(crate) mod operators;
pub(crate) mod packed;
pub(crate) mod programs;
pub(crate) mod relays;
pub(crate) mod secret;
pub(crate) mod services;
pub(crate) mod simulation;
pub(crate) mod thin;
pub(crate) mod tiny;
