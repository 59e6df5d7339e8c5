#!/bin/sh
# Begins the mesh on this machine, and leaves a token for each of the others where they find it. Run again, it begins
# nothing, and leaves new tokens: for who was made anew.
#   first.sh OTHER...
set -eu

if [ -e /var/lib/meshd/host.json ]; then
  echo "$(hostname) is in a mesh already"
else
  meshd init
fi
mkdir -p /vagrant/.tokens
for other in "$@"; do
  meshctl token create >"/vagrant/.tokens/$other"
done
