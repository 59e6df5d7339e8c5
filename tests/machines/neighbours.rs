//! Others who change a machine's network beside meshd: firewalls, containers on a bridge, policy routing by marks.

use anyhow::{Result, ensure};

use crate::machine::Machine;
use crate::{mesh, on_machines};

#[test]
fn meshd_lives_beside_firewalls_containers_and_policy_routing() {
    on_machines("meshd_lives_beside_others", 2, |machines| {
        let (caller, callee) = (machines.vm(1), machines.vm(2));
        // A firewall as ufw and firewalld make them: nothing comes in but what is allowed, their own table.
        for machine in [caller, callee] {
            machine.sh(&format!("nft '{FIREWALL}'"))?;
        }
        // Policy routing by marks of others, on the bits that container networks use.
        caller
            .sh("ip rule add fwmark 0x4000/0x4000 lookup 77 && ip route add unreachable default table 77")?;
        container(caller)?;
        let before = caller.sh("nft list table inet others; ip rule; nft list table ip containers")?;

        mesh::form(machines)?;

        ensure!(
            caller.sh("nft list table inet others; ip rule; nft list table ip containers")? == before,
            "theirs stays"
        );
        let from_container =
            caller.sh("ip netns exec box curl -s --max-time 5 -o /dev/null -w '%{http_code}' http://198.18.56.11:9080/ || true")?;
        ensure!(from_container.starts_with("000"), "a container is no caller of the mesh: {from_container}");
        // A published port of a container is reached as before, from another machine.
        let published = callee.sh("curl -s --max-time 5 http://198.18.56.11:8088/")?;
        ensure!(published.trim() == "in a box", "{published}");

        // The firewall loads its rules anew, as on a reload of firewalld: nothing of meshd goes.
        caller.sh(&format!("nft delete table inet others && nft '{FIREWALL}'"))?;
        caller.sh("curl -sf --max-time 5 http://reviews:9080/")?;

        // One that forgets to let the mesh port through: the reason can be seen.
        callee.sh("nft add rule inet others input tcp dport 15008 drop; nft flush chain inet others input; nft add rule inet others input ct state established,related accept; nft add rule inet others input iif lo accept")?;
        let cut =
            caller.sh("curl -s --max-time 20 -o /dev/null -w '%{http_code}' http://reviews:9080/ || true")?;
        ensure!(["200", "503", "504", "000"].contains(&cut.trim()), "{cut}");
        Ok(())
    });
}

/// A container of the machine: a namespace behind a bridge, with a port published by nftables as Docker does.
fn container(machine: &Machine) -> Result<()> {
    machine.sh(
        "ip netns add box && ip link add cbr0 type bridge && ip addr add 198.19.0.1/24 dev cbr0 && ip link set cbr0 up \
         && ip link add veth0 type veth peer name eth0 netns box && ip link set veth0 master cbr0 up \
         && ip -n box addr add 198.19.0.2/24 dev eth0 && ip -n box link set eth0 up && ip -n box link set lo up \
         && ip -n box route add default via 198.19.0.1 && sysctl -q -w net.ipv4.ip_forward=1 \
         && systemd-run -q --unit=box ip netns exec box lab-service 198.19.0.2:80 'in a box'",
    )?;
    machine.sh(
        "nft 'table ip containers { chain pre { type nat hook prerouting priority -100; tcp dport 8088 dnat to 198.19.0.2:80; }; chain post { type nat hook postrouting priority 100; oifname \"cbr0\" masquerade; }; }'",
    )
    .map(drop)
}

const FIREWALL: &str = "table inet others { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo accept; tcp dport { 22, 8088, 15008 } accept; udp dport 15008 accept; }; chain marks { type route hook output priority -150; tcp dport 4444 meta mark set 0x4000; }; }";
