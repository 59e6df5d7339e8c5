#!/bin/sh
# Brings this machine into the mesh of another, by the token that was left for it. Run again, it does nothing.
#   join.sh ADDRESS-OF-THE-FIRST
set -eu
name="$(hostname)"

if [ -e /var/lib/meshd/host.json ]; then
  echo "$name is in a mesh already"
elif ! meshd join "$1" --token-file "/vagrant/.tokens/$name"; then
  echo "Is $name a machine made anew? Its token was used by the one before. As root on vm1:" >&2
  echo "  meshctl host remove $name; then, outside: vagrant provision vm1 && vagrant provision $name" >&2
  exit 1
fi
