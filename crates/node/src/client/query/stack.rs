//! TCP and names over a circuit, without the host's own stack: no device, no route and no firewall of the host has to change for it.
//!
//! Owns the sockets of one circuit. Packets come from the circuit and go to it; how they travel is not this module's business.

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

/// Largest packet: what every path carries that a circuit comes up on. Source: the smallest MTU that an egress takes from a client.
const MTU: usize = 1_152;
/// Bytes that a connection holds of what is on its way here: a directory of a mebibyte within ten seconds over a path of a second.
const RECEIVE: usize = 131_072;
/// And of what is on its way there: questions are short.
const SEND: usize = 8_192;
/// Connections at once at most: a reading takes two for each endpoint and mirror.
const MOST_SOCKETS: usize = 128;
/// A connection on which nothing comes for so long is given up; who waits for it waits less.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);

/// Why a connection or a name is not to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum StackError {
    /// Too many at once.
    #[error("too many connections at once")]
    Full,
    /// An address that nothing can be sent to.
    #[error("this address cannot be reached")]
    Unreachable,
    /// Not a name.
    #[error("this is no name of a host")]
    BadName,
    /// Nobody knows it.
    #[error("the name servers know no such host")]
    UnknownName,
}

/// The stack.
pub(super) struct Stack {
    interface: Interface,
    packets: Packets,
    sockets: SocketSet<'static>,
    names: SocketHandle,
    /// Connections that nobody has any more, to be taken out when their last packet has left.
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
    /// A stack that asks these servers for names, the first one of them that it can.
    pub(super) fn new(servers: &[IpAddr], now: Time, random: &mut dyn Random) -> Self {
        let mut packets = Packets::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from_be_bytes(array(random));
        let mut interface = Interface::new(config, &mut packets, instant(now));
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(CLIENT_V4), 32));
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv6(CLIENT_V6), 128));
        });
        // Everything goes into the circuit; whom a route names is of no account without a link layer.
        let _ = interface.routes_mut().add_default_ipv4_route(CLIENT_V4);
        let _ = interface.routes_mut().add_default_ipv6_route(CLIENT_V6);
        let servers: Vec<IpAddress> = servers.iter().take(1).map(|server| (*server).into()).collect();
        let mut sockets = SocketSet::new(Vec::new());
        let names = sockets.add(dns::Socket::new(&servers, Vec::new()));
        Self { interface, packets, sockets, names, finished: Vec::new() }
    }

    /// A packet of the circuit's.
    pub(super) fn arrived(&mut self, packet: &[u8]) {
        self.packets.arrived.push_back(packet.to_vec());
    }

    /// The next packet for the circuit.
    pub(super) fn leaving(&mut self) -> Option<Vec<u8>> {
        self.packets.leaving.pop_front()
    }

    /// Works off what has arrived and what is due.
    pub(super) fn work(&mut self, now: Time) {
        self.interface.poll(instant(now), &mut self.packets, &mut self.sockets);
        for handle in self.finished.drain(..) {
            self.sockets.remove(handle);
        }
    }

    /// How long it may be left alone.
    pub(super) fn rest(&mut self, now: Time) -> Option<Duration> {
        self.interface.poll_delay(instant(now), &self.sockets).map(Into::into)
    }

    /// Begins to connect.
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

    /// A connection.
    pub(super) fn connection(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Ends a connection at once: whoever has it has taken what it wanted.
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

    /// The answer, once it is there; each is given once.
    pub(super) fn answer(&mut self, query: QueryHandle) -> Option<Result<IpAddr, StackError>> {
        let names: &mut dns::Socket<'static> = self.sockets.get_mut(self.names);
        match names.get_query_result(query) {
            Err(GetQueryResultError::Pending) => None,
            Err(GetQueryResultError::Failed) => Some(Err(StackError::UnknownName)),
            Ok(addresses) => Some(addresses.first().map(|first| (*first).into()).ok_or(StackError::UnknownName)),
        }
    }

    /// Forgets a question that is not waited for any more and has not been answered.
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

/// Room for a packet that leaves.
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
        // What arrives may have its checksum left to the receiver, and was authenticated by the circuit.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::OsRandom;

    /// A stack of the other side: what leaves one arrives at the other.
    #[test]
    fn a_connection_carries_bytes_both_ways_and_ends() {
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
        assert_eq!(client.sockets.iter().count(), 1, "nothing is left but the names' socket");
    }

    #[test]
    fn what_is_no_name_or_address_is_refused() {
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
