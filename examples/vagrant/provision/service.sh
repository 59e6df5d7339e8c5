#!/bin/sh
# Runs one version of a service as a systemd unit, as any program would be run, and registers it with the mesh.
#   service.sh NAME VERSION PORT
# Others call it by http://NAME:PORT/. It listens on loopback only: whoever calls comes through the mesh.
set -eu
name="$1" version="$2" port="$3"

install -d /opt/example
install -m 644 /vagrant/app/service.py /opt/example/service.py
cat >"/etc/systemd/system/example-$name.service" <<UNIT
[Unit]
Description=$name $version, an example

[Service]
ExecStart=/usr/bin/python3 /opt/example/service.py $name $version 8081
DynamicUser=yes
Restart=always

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --now --quiet "example-$name.service"
meshctl service register "$name" --port "$port:http:127.0.0.1:8081" --label "version=$version" --check-http /health
