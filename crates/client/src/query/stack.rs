//! TCP and DNS over a circuit, without the host's own stack: no device, route or firewall rule of the host has to
//! change.
//!
//! Owns the sockets of one circuit. Takes packets from the circuit and gives packets to it; never sends a datagram
//! itself.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use openrelay_proto::ip::{CLIENT_V4, CLIENT_V6};
use openrelay_proto::random::{Random, array};
use openrelay_proto::time::Time;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::dns::{self, GetQueryResultError, QueryHandle};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{DnsQueryType, HardwareAddress, IpAddress, IpCidr};

/// Largest packet, in bytes. Every path on which a circuit opens carries it.
/// Source: the smallest MTU that an egress accepts from a client.
const MTU: usize = 1_152;
/// Receive buffer of a connection, in bytes. It is large enough to read a directory of one mebibyte within ten
/// seconds over a path with a round trip of one second.
const RECEIVE: usize = 131_072;
/// Send buffer of a connection, in bytes; queries are short.
const SEND: usize = 8_192;
/// Maximum number of connections at once. A reading takes two for each endpoint and mirror.
const MOST_SOCKETS: usize = 128;
/// A connection is given up after this silence. Callers that wait for it have shorter timeouts.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);

/// Why a connection or a name lookup failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum StackError {
    /// Too many connections are open.
    #[error("too many connections at once")]
    Full,
    /// Nothing can be sent to this address.
    #[error("the address cannot be reached")]
    Unreachable,
    /// The name is not a valid host name.
    #[error("this is not a valid host name")]
    BadName,
    /// The name server knows no address of this host.
    #[error("the name server does not know this host")]
    UnknownName,
}

/// A network stack for one circuit.
pub(super) struct Stack {
    interface: Interface,
    packets: Packets,
    sockets: SocketSet<'static>,
    names: SocketHandle,
    /// Closed connections, each removed when its last packet has left.
    finished: Vec<SocketHandle>,
}

/// Packets on their way between stack and circuit.
#[derive(Default)]
struct Packets {
    arrived: VecDeque<Vec<u8>>,
    leaving: VecDeque<Vec<u8>>,
}

fn instant(now: Time) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

impl Stack {
    /// Returns a stack that resolves names with the first of these servers.
    pub(super) fn new(servers: &[IpAddr], now: Time, random: &mut dyn Random) -> Self {
        let mut packets = Packets::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from_be_bytes(array(random));
        let mut interface = Interface::new(config, &mut packets, instant(now));
        interface.update_ip_addrs(|addresses| {
            // The list has room for two.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(CLIENT_V4), 32));
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv6(CLIENT_V6), 128));
        });
        // Everything goes into the circuit. Without a link layer, the gateway of a route does not matter.
        let _ = interface.routes_mut().add_default_ipv4_route(CLIENT_V4);
        let _ = interface.routes_mut().add_default_ipv6_route(CLIENT_V6);
        let servers: Vec<IpAddress> = servers.iter().take(1).map(|server| (*server).into()).collect();
        let mut sockets = SocketSet::new(Vec::new());
        let names = sockets.add(dns::Socket::new(&servers, Vec::new()));
        Self { interface, packets, sockets, names, finished: Vec::new() }
    }

    /// Takes a packet from the circuit.
    pub(super) fn arrived(&mut self, packet: &[u8]) {
        self.packets.arrived.push_back(packet.to_vec());
    }

    /// Returns the next packet for the circuit.
    pub(super) fn leaving(&mut self) -> Option<Vec<u8>> {
        self.packets.leaving.pop_front()
    }

    /// Handles arrived packets and timeouts.
    pub(super) fn work(&mut self, now: Time) {
        self.interface.poll(instant(now), &mut self.packets, &mut self.sockets);
        for handle in self.finished.drain(..) {
            self.sockets.remove(handle);
        }
    }

    /// Returns the time until [`Stack::work`] is due again; `None` if nothing is due.
    pub(super) fn rest(&mut self, now: Time) -> Option<Duration> {
        self.interface.poll_delay(instant(now), &self.sockets).map(Into::into)
    }

    /// Starts to connect.
    pub(super) fn connect(&mut self, to: SocketAddr, random: &mut dyn Random) -> Result<SocketHandle, StackError> {
        if self.sockets.iter().count() > MOST_SOCKETS {
            return Err(StackError::Full);
        }
        let mut socket =
            tcp::Socket::new(tcp::SocketBuffer::new(vec![0; RECEIVE]), tcp::SocketBuffer::new(vec![0; SEND]));
        socket.set_timeout(Some(SILENCE));
        let port = 49_152 | (u16::from_be_bytes(array(random)) >> 2);
        socket.connect(self.interface.context(), to, port).map_err(|_| StackError::Unreachable)?;
        Ok(self.sockets.add(socket))
    }

    /// Returns a connection.
    pub(super) fn connection(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Aborts a connection: its user has read all it needs.
    pub(super) fn finish(&mut self, handle: SocketHandle) {
        self.sockets.get_mut::<tcp::Socket<'static>>(handle).abort();
        self.finished.push(handle);
    }

    /// Asks for the address of a host.
    pub(super) fn ask(&mut self, name: &str, v6: bool) -> Result<QueryHandle, StackError> {
        let kind = if v6 { DnsQueryType::Aaaa } else { DnsQueryType::A };
        let names: &mut dns::Socket<'static> = self.sockets.get_mut(self.names);
        names.start_query(self.interface.context(), name, kind).map_err(|_| StackError::BadName)
    }

    /// Returns the answer once it is there; each answer is returned once.
    pub(super) fn answer(&mut self, query: QueryHandle) -> Option<Result<IpAddr, StackError>> {
        let names: &mut dns::Socket<'static> = self.sockets.get_mut(self.names);
        match names.get_query_result(query) {
            Err(GetQueryResultError::Pending) => None,
            Err(GetQueryResultError::Failed) => Some(Err(StackError::UnknownName)),
            Ok(addresses) => Some(addresses.first().map(|first| (*first).into()).ok_or(StackError::UnknownName)),
        }
    }

    /// Cancels an unanswered query whose caller has given up.
    pub(super) fn forget(&mut self, query: QueryHandle) {
        self.sockets.get_mut::<dns::Socket<'static>>(self.names).cancel_query(query);
    }
}

/// A packet that has arrived.
struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// Buffer for a packet that leaves.
struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Packets {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Leaving(&mut self.leaving)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // An arrived packet may leave its checksum to the receiver. The circuit has authenticated it.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openrelay_node::random::OsRandom;

    /// The server is a second stack: packets that leave one arrive at the other.
    #[test]
    fn connection_carries_bytes_and_closes() {
        let mut random = OsRandom::default();
        let mut now = Time::default();
        let mut client = Stack::new(&[], now, &mut random);
        let mut server = Stack::new(&[], now, &mut random);
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        server.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.push(IpCidr::new(address.into(), 32)).unwrap();
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; RECEIVE]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(80).unwrap();
        let listening = server.sockets.add(socket);
        let connection = client.connect(SocketAddr::new(address, 80), &mut random).unwrap();
        let mut heard = Vec::new();
        for _ in 0..200 {
            client.work(now);
            server.work(now);
            while let Some(packet) = client.leaving() {
                assert!(packet.len() <= MTU);
                server.arrived(&packet);
            }
            while let Some(packet) = server.leaving() {
                client.arrived(&packet);
            }
            let socket = client.connection(connection);
            if socket.can_send() && socket.send_queue() == 0 && heard.is_empty() {
                socket.send_slice(&[7; 4_000]).unwrap();
            }
            let other = server.connection(listening);
            if other.can_recv() {
                let mut bytes = vec![0; RECEIVE];
                let count = other.recv_slice(&mut bytes).unwrap();
                heard.extend_from_slice(&bytes[..count]);
            }
            if heard.len() >= 4_000 {
                break;
            }
            now = now.after(Duration::from_millis(5));
        }
        assert!(heard.len() >= 4_000 && heard.iter().all(|byte| *byte == 7));
        client.finish(connection);
        client.work(now);
        assert_eq!(client.sockets.iter().count(), 1, "only the DNS socket is left");
    }

    #[test]
    fn invalid_name_and_address_are_refused() {
        let mut random = OsRandom::default();
        let mut stack = Stack::new(&["192.0.2.1".parse().unwrap()], Time::default(), &mut random);
        assert_eq!(stack.ask("a..b", false).err(), Some(StackError::BadName));
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 80));
        assert_eq!(stack.connect(nowhere, &mut random), Err(StackError::Unreachable));
        let query = stack.ask("endpoint.example", true).unwrap();
        assert!(stack.answer(query).is_none());
        stack.forget(query);
    }
}
