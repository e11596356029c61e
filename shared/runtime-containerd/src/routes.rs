//! The routes of a box, over rtnetlink(7).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::network::Inside;

/// The length of a header, in bytes.
const HEADER: usize = 16;
/// The flags of netlink(7): `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST: u16 = 0x1 | 0x4;
/// `NLM_F_CREATE | NLM_F_REPLACE`.
const REPLACE: u16 = 0x400 | 0x100;
/// `AF_INET`.
const IPV4: u8 = 2;

/// Replaces the route to the boxes' whole network, in the network namespace of this thread, by one to
/// the gateway.
///
/// # Errors
/// When the kernel refuses it, for example because there is no such route.
pub fn replace(inside: &Inside, subnet: Ipv4Net) -> io::Result<()> {
    let interface = if_nametoindex(inside.interface.as_str())?;
    request(&to_gateway(interface, inside.gateway, inside.address))?;
    request(&deletion(interface, subnet)).map_err(|error| {
        let text = format!("the box's route to {subnet} was not deleted: {error}");
        io::Error::new(error.kind(), text)
    })
}

fn to_gateway(interface: u32, gateway: Ipv4Addr, source: Ipv4Addr) -> Vec<u8> {
    let mut body = route(32, libc::RTPROT_BOOT);
    attribute(&mut body, libc::RTA_DST, gateway.octets());
    attribute(&mut body, libc::RTA_OIF, interface.to_ne_bytes());
    attribute(&mut body, libc::RTA_PREFSRC, source.octets());
    message(libc::RTM_NEWROUTE, REQUEST | REPLACE, &body)
}

/// The deletion of the route that the kernel has added with the box's address.
fn deletion(interface: u32, subnet: Ipv4Net) -> Vec<u8> {
    let mut body = route(subnet.prefix_len(), libc::RTPROT_KERNEL);
    attribute(&mut body, libc::RTA_DST, subnet.network().octets());
    attribute(&mut body, libc::RTA_OIF, interface.to_ne_bytes());
    message(libc::RTM_DELROUTE, REQUEST, &body)
}

/// A `struct rtmsg` of a route to neighbours in the main table.
fn route(prefix_length: u8, protocol: u8) -> Vec<u8> {
    let (table, scope, kind) = (libc::RT_TABLE_MAIN, libc::RT_SCOPE_LINK, libc::RTN_UNICAST);
    let mut body = vec![IPV4, prefix_length, 0, 0, table, protocol, scope, kind];
    // No flags.
    body.extend([0; 4]);
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    body.extend(8_u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // The sequence, and the kernel as the receiver.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn request(message: &[u8]) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut socket = File::from(socket);
    socket.write_all(message)?;
    let mut answer = [0; 1024];
    let length = socket.read(&mut answer)?;
    // An acknowledgement is an error message with the code 0.
    let code = answer[..length].get(HEADER..HEADER + 4);
    match code.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) {
        Some([0, 0, 0, 0]) => Ok(()),
        Some(bytes) => Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(bytes))),
        None => Err(io::Error::other("the kernel's answer is too short")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_layout_of_rtnetlink() {
        let gateway = Ipv4Addr::new(10, 160, 0, 1);
        let replaced = to_gateway(7, gateway, Ipv4Addr::new(10, 160, 0, 5));
        assert_eq!(replaced.len(), 52);
        assert_eq!(replaced[..4], 52_u32.to_ne_bytes());
        assert_eq!(replaced[16..28], [2, 32, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0]);
        assert_eq!(replaced[32..36], gateway.octets());
        let deleted = deletion(7, "10.160.0.0/20".parse().unwrap());
        assert_eq!(deleted.len(), 44);
        assert_eq!(deleted[16..20], [2, 20, 0, 0]);
        assert_eq!(deleted[32..36], [10, 160, 0, 0]);
        assert_eq!(deleted[40..44], 7_u32.to_ne_bytes());
    }
}
