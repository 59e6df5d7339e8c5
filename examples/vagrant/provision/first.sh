#!/bin/sh
# Begins the mesh on this machine, and leaves a token for each of the others where they find it.
#   first.sh OTHER...
set -eu

meshd init
mkdir -p /vagrant/.tokens
for other in "$@"; do
  meshctl token create >"/vagrant/.tokens/$other"
done
