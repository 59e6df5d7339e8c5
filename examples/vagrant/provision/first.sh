#!/bin/sh
# Begins the mesh on this machine, and leaves a token for each of the others where they find it. Run again, it begins
# nothing, and makes a new token for each that is not in the mesh: one that was made anew, after `meshctl host remove`.
#   first.sh OTHER...
set -eu

if [ -e /var/lib/meshd/host.json ]; then
  echo "$(hostname) is in a mesh already"
else
  meshd init
fi
mkdir -p /vagrant/.tokens
# It tells of all hosts without a quorum, too, and ends with 4.
hosts="$(meshctl status -o json || test $? = 4)"
for other in "$@"; do
  case "$hosts" in
    *"\"name\": \"$other\""*) echo "$other is in the mesh already" ;;
    *) meshctl token create >"/vagrant/.tokens/$other" ;;
  esac
done
