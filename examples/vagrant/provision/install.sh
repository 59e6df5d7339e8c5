#!/bin/sh
# Installs the package, and says by which of the machine's addresses other hosts reach it.
#   install.sh ADDRESS
# The machine has two network cards, and its default route goes through the one that other hosts cannot use.
set -eu
address="$1"

export DEBIAN_FRONTEND=noninteractive
package="$(ls /vagrant/meshd_*.deb)"
# What it recommends (nftables, iproute2) comes along; on a fresh machine apt must learn first where from.
apt-get install -y -q "$package" || { apt-get update -q && apt-get install -y -q "$package"; }
sed -i "s|^#\? *advertise = .*|advertise = \"$address\"|" /etc/meshd/meshd.toml
