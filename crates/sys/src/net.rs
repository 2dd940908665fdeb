//! Addresses, links and routes of this host, over netlink.
//!
//! Owns one netlink socket; every request waits for the kernel's answer. Changes only what the caller requests.
//!
//! Source: rtnetlink(7).
#![allow(clippy::wildcard_enum_match_arm, reason = "netlink's enums are open-ended")]

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The main routing table.
pub const MAIN_TABLE: u32 = 254;

/// A policy rule, which selects a routing table for packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Whether the rule is for IPv6.
    pub v6: bool,
    /// Position in the order of rules.
    pub priority: u32,
    /// The table to look up; `None` makes the packets unreachable.
    pub table: Option<u32>,
    /// Selects only packets to this address.
    pub to: Option<IpAddr>,
    /// Ignores routes with a prefix of up to this many bits.
    pub suppress_prefix: Option<u32>,
}

/// A route of this host to a network that is not everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The network's first address.
    pub network: IpAddr,
    /// Its prefix length in bits, at least 1.
    pub prefix: u8,
    /// The link that leads there.
    pub link: u32,
}

impl Route {
    /// Returns whether the network has an address in common with this one.
    pub fn overlaps(&self, network: IpAddr, prefix: u8) -> bool {
        let shorter = u32::from(self.prefix.min(prefix));
        match (self.network, network) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(32 - shorter).unwrap_or(0) == 0,
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).checked_shr(128 - shorter).unwrap_or(0) == 0,
            _ => false,
        }
    }
}

/// A netlink socket for the kernel's routing.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the thread's network namespace.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns the index of the link called `name`.
    ///
    /// # Errors
    /// `ENODEV` when there is no such link.
    pub fn link(&mut self, name: &str) -> io::Result<u32> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let answers = self.request(Message::GetLink(message), 0)?;
        let index = answers.into_iter().find_map(|answer| match answer {
            Message::NewLink(link) => Some(link.header.index),
            _ => None,
        });
        index.ok_or_else(|| io::Error::from_raw_os_error(19))
    }

    /// Sets a link's MTU.
    ///
    /// # Errors
    /// When the link does not allow it.
    pub fn set_mtu(&mut self, link: u32, mtu: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.request(Message::SetLink(message), 0).map(drop)
    }

    /// Limits how many segments this host's TCP hands to a link at once.
    ///
    /// # Errors
    /// When the kernel does not have this setting.
    pub fn set_segments(&mut self, link: u32, segments: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::GsoMaxSegs(segments));
        self.request(Message::SetLink(message), 0).map(drop)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn set_up(&mut self, link: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(Message::SetLink(message), 0).map(drop)
    }

    /// Adds an address to a link; an address that exists already stays.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or when the link does not support the address family.
    pub fn add_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.is_ipv6());
        message.header.prefix_len = prefix;
        message.header.index = link;
        message.header.scope = AddressScope::Universe;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.request(Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Adds a route to a network through a link to the main table.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn add_route(&mut self, link: u32, network: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(network.is_ipv6());
        message.header.destination_prefix_length = prefix;
        message.header.table = u8::try_from(MAIN_TABLE).unwrap_or(0);
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if network.is_ipv6() { RouteScope::Universe } else { RouteScope::Link };
        message.attributes.push(RouteAttribute::Oif(link));
        message.attributes.push(RouteAttribute::Destination(route_address(network)));
        self.request(Message::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Adds a default route through a link to a separate table.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn add_default_route(&mut self, link: u32, v6: bool, table: u32) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        message.header.table = u8::try_from(table).unwrap_or(0);
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if v6 { RouteScope::Universe } else { RouteScope::Link };
        message.attributes.push(RouteAttribute::Oif(link));
        message.attributes.push(RouteAttribute::Table(table));
        self.request(Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Adds a default route through a neighbour to the main table.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or when no link leads to the neighbour.
    pub fn add_gateway(&mut self, neighbour: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(neighbour.is_ipv6());
        message.header.table = u8::try_from(MAIN_TABLE).unwrap_or(0);
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = RouteScope::Universe;
        message.attributes.push(RouteAttribute::Gateway(route_address(neighbour)));
        self.request(Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Adds a rule; a rule that exists already stays.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn add_rule(&mut self, rule: Rule) -> io::Result<()> {
        match self.request(Message::NewRule(rule_message(rule)), NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map(drop),
        }
    }

    /// Removes a rule; succeeds when the rule does not exist.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn remove_rule(&mut self, rule: Rule) -> io::Result<()> {
        match self.request(Message::DelRule(rule_message(rule)), 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Returns the link through which packets to `address` leave.
    ///
    /// # Errors
    /// When there is no route.
    pub fn route_link(&mut self, address: IpAddr) -> io::Result<u32> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address.is_ipv6());
        message.header.destination_prefix_length = if address.is_ipv6() { 128 } else { 32 };
        message.attributes.push(RouteAttribute::Destination(route_address(address)));
        let answers = self.request(Message::GetRoute(message), 0)?;
        let link = answers.into_iter().find_map(|answer| match answer {
            Message::NewRoute(route) => route.attributes.into_iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(link) => Some(link),
                _ => None,
            }),
            _ => None,
        });
        link.ok_or_else(|| io::ErrorKind::NetworkUnreachable.into())
    }

    /// Returns the name of the link with this index.
    ///
    /// # Errors
    /// `ENODEV` when there is no such link.
    pub fn link_name(&mut self, link: u32) -> io::Result<String> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        let answers = self.request(Message::GetLink(message), 0)?;
        let name = answers.into_iter().find_map(|answer| match answer {
            Message::NewLink(link) => link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            }),
            _ => None,
        });
        name.ok_or_else(|| io::Error::from_raw_os_error(19))
    }

    /// Returns the addresses of this host that are neither loopback nor link-local. An IPv6 address may still be
    /// tentative.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let answers = self.request(Message::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let global = answers.into_iter().filter_map(|answer| match answer {
            Message::NewAddress(address) if address.header.scope == AddressScope::Universe => Some(address.attributes),
            _ => None,
        });
        Ok(global
            .filter_map(|attributes| {
                let find = |local: bool| {
                    attributes.iter().find_map(|attribute| match attribute {
                        AddressAttribute::Local(address) if local => Some(*address),
                        AddressAttribute::Address(address) if !local => Some(*address),
                        _ => None,
                    })
                };
                // For a point-to-point link, the other one is the peer's.
                find(true).or_else(|| find(false))
            })
            .filter(|address| !address.is_loopback())
            .collect())
    }

    /// Returns the routes of all tables to networks and single addresses of one family, without default routes and
    /// without those that refuse.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn routes(&mut self, v6: bool) -> io::Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(v6);
        let answers = self.request(Message::GetRoute(message), NLM_F_DUMP)?;
        let route = |route: RouteMessage| {
            let known = matches!(route.header.kind, RouteType::Unicast | RouteType::Local);
            let prefix = route.header.destination_prefix_length;
            let (mut network, mut link) = (None, None);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(v4)) => network = Some(IpAddr::V4(*v4)),
                    RouteAttribute::Destination(RouteAddress::Inet6(v6)) => network = Some(IpAddr::V6(*v6)),
                    RouteAttribute::Oif(index) => link = Some(*index),
                    _ => {}
                }
            }
            let found = Route { network: network?, prefix, link: link.unwrap_or(0) };
            (known && prefix > 0).then_some(found)
        };
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                Message::NewRoute(message) => route(message),
                _ => None,
            })
            .collect())
    }

    /// Sends one request and collects the answers up to its acknowledgement.
    fn request(&mut self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<Message>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                let length = usize::try_from(answer.header.length).unwrap_or(0).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or(&[]);
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(code) => return Err(io::Error::from_raw_os_error(code.get().abs())),
                    },
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

fn rule_message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.v6);
    message.header.action = RuleAction::Unreachable;
    if let Some(table) = rule.table {
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(table).unwrap_or(0);
        message.attributes.push(RuleAttribute::Table(table));
    }
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    if let Some(to) = rule.to {
        message.header.dst_len = if to.is_ipv6() { 128 } else { 32 };
        message.attributes.push(RuleAttribute::Destination(to));
    }
    if let Some(bits) = rule.suppress_prefix {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(bits));
    }
    message
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_when_the_shorter_prefix_agrees() {
        let route = |network: &str, prefix| Route { network: network.parse().unwrap(), prefix, link: 1 };
        let pool: IpAddr = "100.64.0.0".parse().unwrap();
        for (network, prefix, overlaps) in [
            ("100.64.0.0", 10, true),
            ("100.64.3.0", 24, true),
            ("100.64.255.255", 32, true),
            ("100.65.0.0", 24, false),
            ("100.80.0.0", 24, false),
            ("96.0.0.0", 4, true),
            ("fd00::", 8, false),
        ] {
            assert_eq!(route(network, prefix).overlaps(pool, 16), overlaps, "{network}/{prefix}");
        }
        assert!(route("fd6f::", 16).overlaps("fd6f:7265:6c61:7900::".parse().unwrap(), 64));
        assert!(!route("fd6f:7265:6c61:7901::", 64).overlaps("fd6f:7265:6c61:7900::".parse().unwrap(), 64));
    }

    #[test]
    fn loopback_has_a_route_and_no_address_that_counts() {
        let mut netlink = Netlink::open().unwrap();
        let loopback = netlink.link("lo").unwrap();
        assert_eq!(netlink.link_name(loopback).unwrap(), "lo");
        let routes = netlink.routes(false).unwrap();
        assert!(routes.iter().any(|route| route.overlaps("127.0.0.1".parse().unwrap(), 32)), "{routes:?}");
        assert!(netlink.addresses().unwrap().iter().all(|address| !address.is_loopback()));
    }
}
