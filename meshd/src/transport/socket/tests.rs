use super::*;

fn any() -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, 0).into()
}

#[test]
fn an_address_in_use_names_itself_and_the_way_to_its_holder() {
    let first = listen_tcp(any(), Share::Alone).unwrap();
    let address = first.local_addr().unwrap();
    for message in [
        listen_tcp(address, Share::Alone).unwrap_err().to_string(),
        listen_tcp_group(address, 2).unwrap_err().to_string(),
    ] {
        assert_eq!(
            message,
            format!(
                "cannot listen on TCP {address}: address already in use: another process holds {address}; find it \
                 with \"ss -ltnp 'sport = :{}'\", then stop it or choose another address",
                address.port()
            )
        );
    }
}

#[test]
fn an_address_of_another_host_is_told_as_such() {
    let error = listen_tcp("203.0.113.1:0".parse().unwrap(), Share::Alone).unwrap_err();
    assert!(error.to_string().contains("this host has no address 203.0.113.1"), "{error}");
}

#[test]
fn a_group_shares_one_port_and_a_second_group_is_refused() {
    let group = listen_tcp_group(any(), 3).unwrap();
    let address = group[0].local_addr().unwrap();
    assert!(group.iter().all(|listener| listener.local_addr().unwrap() == address));
    assert!(listen_tcp_group(address, 1).is_err());
}

#[test]
fn a_udp_port_in_use_is_told() {
    let first = bind_udp(any(), Share::Alone).unwrap();
    let error = bind_udp(first.local_addr().unwrap(), Share::Alone).unwrap_err();
    assert!(error.to_string().contains("ss -lunp"), "{error}");
}

#[tokio::test]
async fn outgoing_connections_are_made_without_delay_with_and_without_a_mark() {
    let listener = listen_tcp(any(), Share::Alone).unwrap();
    let address = listener.local_addr().unwrap();
    for options in [SocketOptions::default(), SocketOptions { mark: None }] {
        let stream = connect_tcp(address, options).await.unwrap();
        assert!(stream.nodelay().unwrap());
        keep_alive(&stream, Duration::from_secs(10)).unwrap();
        limit_unacknowledged(&stream, Duration::from_secs(10)).unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_was_not_redirected_has_no_original_destination() {
    let listener = listen_tcp(any(), Share::Alone).unwrap();
    let stream = connect_tcp(listener.local_addr().unwrap(), SocketOptions::default()).await.unwrap();
    assert!(original_destination(&stream).is_err());
}

#[test]
fn a_mapped_address_is_written_as_ipv4() {
    let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().unwrap();
    assert_eq!(unmapped(mapped), "192.0.2.1:80".parse().unwrap());
    let plain: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
    assert_eq!(unmapped(plain), plain);
}
