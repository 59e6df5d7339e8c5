#!/bin/sh
# Installs the package, and says by which of the machine's addresses other hosts reach it.
#   install.sh ADDRESS
# The machine has two network cards, and its default route goes through the one that other hosts cannot use.
set -eu
address="$1"

export DEBIAN_FRONTEND=noninteractive
package="$(ls /vagrant/meshd_*.deb)"
# What it recommends (nftables, iproute2) comes along; a meshd.toml that was edited stays as it is.
install() { apt-get install -y -q -o Dpkg::Options::=--force-confold "$package"; }
# On a fresh machine apt must learn first where from.
install || { apt-get update -q && install; }
sed -i "s|^#\? *advertise = .*|advertise = \"$address\"|" /etc/meshd/meshd.toml
