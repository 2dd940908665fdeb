//! Measurements on a network: what load and attacks cost a relay.

pub(crate) mod flood;
pub(crate) mod load;
