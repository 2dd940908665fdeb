//! The small internet: web server, name server and echo server, and their clients.
//!
//! The web server sends known bytes, so that a client can check a download without trusting the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::digest::{Context, SHA256};
use serde_json::json;

use crate::net::output::say;

/// Port of the web server.
pub(crate) const WEB: u16 = 80;
/// Port of the echo server.
pub(crate) const ECHO: u16 = 7;
const DNS: u16 = 53;
/// Name of the web server, which the name server resolves.
pub(crate) const NAME: &str = "web.devnet";
/// Name of the chain's host. The name server resolves it when it was given the address.
pub(crate) const CHAIN: &str = "chain.devnet";
const BLOCK: usize = 1 << 20;

/// Serves until the process ends.
pub(crate) fn serve(addresses: &[IpAddr], chain: Option<Ipv4Addr>) -> Result<()> {
    let v4 = addresses.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None });
    let v6 = addresses.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None });
    let mut threads = Vec::new();
    for &address in addresses {
        let web = TcpListener::bind((address, WEB)).context("cannot bind the web server")?;
        let echo = UdpSocket::bind((address, ECHO)).context("cannot bind the echo server")?;
        let dns = UdpSocket::bind((address, DNS)).context("cannot bind the name server")?;
        threads.push(std::thread::spawn(move || serve_web(&web)));
        threads.push(std::thread::spawn(move || answer(&echo, |datagram| Some(datagram.to_vec()))));
        threads.push(std::thread::spawn(move || {
            answer(&dns, |query| resolve(query, &[(NAME, v4, v6), (CHAIN, chain, None)]))
        }));
    }
    say("ready");
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// Returns the bytes that the web server repeats. Each group of eight differs from the others.
fn block() -> Vec<u8> {
    let mut state = 0x0123_4567_89ab_cdefu64;
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn serve_web(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            // A client that disconnects early is not an error.
            let _ = serve_one(stream);
        });
    }
}

fn serve_one(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 8_192 {
        let read = stream.read(&mut byte)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(byte.get(..read).unwrap_or(&[]));
    }
    let line = String::from_utf8_lossy(&request);
    let bytes: u64 = line.split(['/', ' ']).find_map(|word| word.parse().ok()).unwrap_or(0);
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
    let block = block();
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        stream.write_all(block.get(..now).unwrap_or(&block))?;
        left -= now as u64;
    }
    Ok(())
}

/// Downloads endlessly and discards the data, to keep a path busy.
pub(crate) fn drain(host: &str) -> Result<()> {
    let mut stream = TcpStream::connect(host).context("cannot connect")?;
    write!(stream, "GET /{} HTTP/1.1\r\nHost: {host}\r\n\r\n", u64::MAX)?;
    let mut buffer = vec![0; 1 << 18];
    while stream.read(&mut buffer).context("the connection broke")? > 0 {}
    Ok(())
}

/// Fetches `bytes` bytes and checks them; prints the result as JSON.
pub(crate) fn fetch(host: &str, bytes: u64, v6: bool) -> Result<()> {
    let addresses = host.to_socket_addrs().with_context(|| format!("cannot resolve {host}"))?;
    let address = addresses
        .into_iter()
        .find(|address| address.is_ipv6() == v6)
        .context("the name has no address of this family")?;
    let mut expected = Context::new(&SHA256);
    let block = block();
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        expected.update(block.get(..now).unwrap_or(&block));
        left -= now as u64;
    }
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).context("cannot connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /{bytes} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
    let mut buffer = vec![0; 1 << 18];
    let mut got = Context::new(&SHA256);
    let (mut received, mut head) = (0u64, Vec::new());
    let mut in_head = true;
    loop {
        let read = stream.read(&mut buffer).context("the connection broke")?;
        if read == 0 {
            break;
        }
        let mut data = buffer.get(..read).unwrap_or(&[]);
        if in_head {
            head.extend_from_slice(data);
            let Some(end) = head.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
            in_head = false;
            data = head.get(end + 4..).unwrap_or(&[]);
        }
        got.update(data);
        received += data.len() as u64;
    }
    let seconds = started.elapsed().as_secs_f64();
    let ok = received == bytes && got.finish().as_ref() == expected.finish().as_ref();
    let gbit_s = received as f64 * 8.0 / seconds / 1e9;
    say(&json!({ "bytes": received, "sha256_ok": ok, "seconds": seconds, "gbit_s": gbit_s }).to_string());
    if ok { Ok(()) } else { bail!("received {received} of {bytes} bytes, or their hash is wrong") }
}

/// Sends datagrams of growing size, or of `size`, and checks the answers; prints their number as JSON.
pub(crate) fn exchange(server: SocketAddr, count: u32, size: Option<usize>) -> Result<()> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut answered, mut buffer) = (0, vec![0; 2_048]);
    let mut times = Vec::new();
    for number in 0..count {
        let size = size.unwrap_or(16 + usize::try_from(number).unwrap_or(0) * 11 % 1_184).max(4);
        let mut datagram = vec![number.to_le_bytes()[0]; size];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        let started = Instant::now();
        socket.send(&datagram)?;
        // A late answer does not count for a later question.
        loop {
            match socket.recv(&mut buffer) {
                Ok(len) if buffer.get(..len) == Some(&datagram) => {
                    answered += 1;
                    times.push(started.elapsed());
                    break;
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    times.sort();
    let at = |part: usize| times.get(times.len() * part / 100).map_or(0, Duration::as_micros);
    say(&json!({ "sent": count, "answered": answered, "p50_us": at(50), "p99_us": at(99) }).to_string());
    if answered == count { Ok(()) } else { bail!("{answered} of {count} datagrams came back") }
}

/// Sends datagrams of many sizes, from empty to the largest, filled with zeros, ones and noise.
pub(crate) fn garbage(to: SocketAddr) -> Result<()> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    let mut noise = 1u32;
    for size in [0, 1, 9, 10, 25, 26, 27, 42, 96, 112, 128, 160, 176, 1_130, 1_210, 1_472, 1_500, 9_000, 65_507] {
        for kind in 0..8 {
            let byte = |_| match kind {
                0 => 0,
                1 => 0xff,
                _ => {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    noise.to_be_bytes()[0]
                }
            };
            socket.send_to(&(0..size).map(byte).collect::<Vec<u8>>(), to)?;
        }
    }
    Ok(())
}

/// Sends the FIN of a TCP connection that never existed, from the tunnel's address.
pub(crate) fn stray(to: Ipv4Addr) -> Result<()> {
    let mut bytes = vec![0; 40];
    bytes[0] = 0x45;
    bytes[3] = 40;
    bytes[8] = 64;
    bytes[9] = openrelay_proto::ip::TCP;
    bytes[12..16].copy_from_slice(&openrelay_proto::ip::CLIENT_V4.octets());
    bytes[16..20].copy_from_slice(&to.octets());
    bytes[20..22].copy_from_slice(&40_000u16.to_be_bytes());
    bytes[22..24].copy_from_slice(&WEB.to_be_bytes());
    bytes[32] = 0x50;
    bytes[33] = 0x11;
    let packet = openrelay_proto::ip::Packet::parse(&bytes).context("not a packet")?;
    openrelay_proto::ip::checksum::fill_transport(&packet, &mut bytes);
    openrelay_proto::ip::checksum::fill_v4_header(&mut bytes, 20);
    Ok(openrelay_sys_dev::raw::RawSocket::open()?.send(&bytes, to)?)
}

fn answer(socket: &UdpSocket, reply: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; 65_536];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        if let Some(reply) = reply(buffer.get(..len).unwrap_or(&[])) {
            let _ = socket.send_to(&reply, from);
        }
    }
}

/// Encodes a name as in a DNS message.
fn encoded(name: &str) -> Vec<u8> {
    let label = |label: &str| [&[u8::try_from(label.len()).unwrap_or(0)], label.as_bytes()].concat();
    name.split('.').flat_map(label).chain([0]).collect()
}

/// Answers A and AAAA queries for these names. Source: RFC 1035 §4.
fn resolve(query: &[u8], names: &[(&str, Option<Ipv4Addr>, Option<Ipv6Addr>)]) -> Option<Vec<u8>> {
    let question = query.get(12..)?;
    let end = question.iter().position(|&byte| byte == 0)? + 5;
    let (asked, kind) = (question.get(..end - 4)?, question.get(end - 4..end - 2)?);
    let known = names.iter().find(|(name, ..)| asked.eq_ignore_ascii_case(&encoded(name)));
    let data = match (known, kind) {
        (Some((_, v4, _)), [0, 1]) => v4.map(|v4| v4.octets().to_vec()),
        (Some((_, _, v6)), [0, 28]) => v6.map(|v6| v6.octets().to_vec()),
        _ => None,
    };
    let mut reply = query.get(..2)?.to_vec();
    reply.extend_from_slice(&[
        0x81,
        if known.is_some() { 0x80 } else { 0x83 },
        0,
        1,
        0,
        u8::from(data.is_some()),
        0,
        0,
        0,
        0,
    ]);
    reply.extend_from_slice(question.get(..end)?);
    if let Some(data) = data {
        reply.extend_from_slice(&[0xc0, 12]);
        reply.extend_from_slice(kind);
        reply.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).ok()?]);
        reply.extend_from_slice(&data);
    }
    Some(reply)
}
