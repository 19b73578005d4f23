#!/usr/bin/env bash
# What a container of the image `node` does:
#   node keys     make the key of the cluster's user, the key of its hosts, and the file that knows them
#   node serve    be a host: an ssh server without root, on port 2222
#   node ARGS...  run `distrib ARGS...`
set -euo pipefail
keys=${KEYS:-/keys}

case ${1:-serve} in
keys)
    [ -e "$keys/user" ] || ssh-keygen -q -t ed25519 -N '' -C distrib -f "$keys/user"
    [ -e "$keys/host" ] || ssh-keygen -q -t ed25519 -N '' -C host -f "$keys/host"
    cp "$keys/user.pub" "$keys/authorized_keys"
    echo "[node*]:2222 $(cut -d ' ' -f 1,2 "$keys/host.pub")" >"$keys/known_hosts"
    ;;
serve)
    exec /usr/sbin/sshd -D -e -f /etc/ssh/distrib_sshd_config -h "$keys/host" \
        -o "AuthorizedKeysFile=$keys/authorized_keys" ${PORT:+-p "$PORT"}
    ;;
*)
    exec distrib "$@"
    ;;
esac
