use std::io::Read;
use std::net::{SocketAddr, TcpStream};

use super::*;

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[test]
fn who_waits_in_the_queue_of_a_predecessor_is_served_by_the_successor() {
    let before = Listeners::default();
    let group = before.tcp_group(loopback(), 2).unwrap();
    let address = group[0].local_addr().unwrap();
    let mut waiting: Vec<TcpStream> = (0..16).map(|_| TcpStream::connect(address).unwrap()).collect();

    let after = Listeners::inherited(before.all().unwrap());
    let taken = after.tcp_group(address, 1).unwrap();
    before.close(Keep::InStore);
    drop(group);

    assert_eq!(taken.len(), 2, "also those beyond what the successor would have: callers wait there");
    let mut served = 0;
    for listener in &taken {
        while let Ok((stream, _)) = listener.accept() {
            drop(stream);
            served += 1;
        }
    }
    assert_eq!(served, 16);
    for stream in &mut waiting {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed in order, not reset");
    }
}

#[test]
fn a_successor_with_more_workers_joins_the_group() {
    let before = Listeners::default();
    let group = before.tcp_group(loopback(), 1).unwrap();
    let address = group[0].local_addr().unwrap();

    let after = Listeners::inherited(before.all().unwrap());

    assert_eq!(after.tcp_group(address, 3).unwrap().len(), 3);
}

#[test]
fn what_nobody_asks_for_is_closed() {
    let before = Listeners::default();
    let address = before.tcp(loopback()).unwrap().local_addr().unwrap();
    let after = Listeners::inherited(before.all().unwrap());
    before.close(Keep::Nothing);
    assert!(TcpStream::connect(address).is_ok());

    after.close_unclaimed();

    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_closed_place_is_not_handed_on() {
    let listeners = Listeners::default();
    let address = listeners.tcp(loopback()).unwrap().local_addr().unwrap();
    listeners.udp(loopback()).unwrap();
    assert_eq!(listeners.all().unwrap().len(), 2);

    listeners.close_tcp(address);

    assert_eq!(listeners.all().unwrap().len(), 1);
    assert!(TcpStream::connect(address).is_err(), "nobody listens there any more");
}

#[test]
fn places_have_names_that_systemd_takes() {
    let place = Place::Tcp("[::1]:15001".parse().unwrap());
    assert_eq!(place.name(), "tcp [__1]_15001");
}

#[test]
fn connections_and_files_are_no_listeners() {
    let listener = TcpListener::bind(loopback()).unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();

    let listeners = Listeners::inherited(vec![stream.into(), file.into()]);

    assert!(listeners.all().unwrap().is_empty());
}
