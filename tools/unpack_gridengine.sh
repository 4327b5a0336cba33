#!/usr/bin/env bash
# Unpacks Debian's Grid Engine into a folder, for tests; nothing is installed or started (its packages would start
# daemons and bring a mail server). Does nothing if it is there. Always exits 0: tests that need it say so and skip.
set -euo pipefail

folder="${1:?usage: tools/unpack_gridengine.sh FOLDER}"
[ ! -d "$folder" ] || exit 0
if [ "${HPCNB_APT:-1}" = 0 ] || ! command -v apt-get dpkg-deb >/dev/null; then
    echo "no Grid Engine: there is no apt-get, or HPCNB_APT=0: tests with it are skipped"
    exit 0
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd_back="$PWD"
cd "$work"
if apt-get download -qq gridengine-master gridengine-exec gridengine-client gridengine-common libjemalloc2 \
    >log 2>&1 </dev/null; then
    for package in *.deb; do
        dpkg-deb -x "$package" unpacked
    done
    cd "$cd_back"
    mkdir -p "$(dirname "$folder")"
    mv "$work/unpacked" "$folder"
else
    echo "no Grid Engine (apt-get download: $(tail -n 1 log)): tests with it are skipped"
fi
