#!/bin/sh
# Brings this machine into the mesh of another, by the token that was left for it.
#   join.sh ADDRESS-OF-THE-FIRST
set -eu

meshd join "$1" --token-file "/vagrant/.tokens/$(hostname)"
