#!/bin/sh
# Brings this machine into the mesh of another, by the token that was left for it. Run again, it does nothing.
#   join.sh ADDRESS-OF-THE-FIRST
set -eu
name="$(hostname)"

if [ -e /var/lib/meshd/host.json ]; then
  echo "$name is in a mesh already"
elif ! meshd join "$1" --token-file "/vagrant/.tokens/$name"; then
  echo "Is $name a machine made anew? The one before used its token, and may still count as there (meshctl status on" >&2
  echo "vm1). A minute after that one is gone: vagrant provision vm1 && vagrant provision $name" >&2
  exit 1
fi
