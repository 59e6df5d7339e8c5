#!/usr/bin/env bash
# What a request costs over one hop between two hosts on loopback, by TLS over TCP and by QUIC.
#
#   cargo build --release --workspace --bins && tests/bench/transport.sh [FOLDER OF THE BINARIES]
#
# Needs wrk. One worker a host, 32 connections, 8 s after 2 s of warm-up, each transport twice in turn. The figure is CPU
# (user and system) of both meshd processes together, per request.
set -u
BIN="${1:-target/release}"
for T in tcp quic tcp quic; do
D=$(mktemp -d); 
for n in 1 2; do mkdir -p $D/vm$n/services.d; cat > $D/vm$n/meshd.toml <<EOT
[host]
name = "vm$n"
data = "$D/vm$n/data"
[listen]
mesh = "127.0.6.$n:15008"
socket = "$D/vm$n/sock"
outbound = []
inbound = []
admin = ""
metrics = []
dns = []
http_proxy = ""
[intercept]
mode = "off"
[proxy]
workers = 1
transport = "$T"
[services]
directory = "$D/vm$n/services.d"
[[listener]]
address = "127.0.6.$n:9080"
service_port = 9080
EOT
done
cat > $D/vm2/services.d/r.toml <<EOT
[[service]]
name = "reviews"
[[service.port]]
number = 9080
protocol = "http"
target = 29080
EOT
$BIN/lab-service 29080 "hello" & S=$!
$BIN/meshd init --config $D/vm1/meshd.toml >/dev/null
$BIN/meshd run --config $D/vm1/meshd.toml 2>$D/1.log & P1=$!
sleep 1
$BIN/meshctl --socket $D/vm1/sock token create 2>/dev/null | $BIN/meshd join 127.0.6.1 --config $D/vm2/meshd.toml >/dev/null
$BIN/meshd run --config $D/vm2/meshd.toml 2>$D/2.log & P2=$!
sleep 2
cpu() { awk '{print $14+$15}' /proc/$1/stat; }
wrk -t1 -c32 -d2s -H 'Host: reviews' http://127.0.6.1:9080/ >/dev/null
A=$(( $(cpu $P1) + $(cpu $P2) ))
wrk -t1 -c32 -d8s -H 'Host: reviews' http://127.0.6.1:9080/ > $D/wrk
B=$(( $(cpu $P1) + $(cpu $P2) ))
N=$(awk '/requests in/{print $1}' $D/wrk)
echo "$T: $N requests, $(( (B-A)*10000 / N )) us CPU per request in both, $(grep -E 'Requests/sec|Non-2xx' $D/wrk | tr '\n' ' ')"
kill $P1 $P2 $S; wait 2>/dev/null; rm -rf $D
done
