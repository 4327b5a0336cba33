#!/usr/bin/env bash
# Installs the named Debian packages that are missing. Without root or apt-get it says what will be skipped.
# Always exits 0: tests and notebooks check for themselves what is there. HPCNB_APT=0 switches it off.
set -euo pipefail

consequence() {
    case "$1" in
        chromium) echo "browser tests are skipped" ;;
        fonts-dejavu-core) echo "text in browser screenshots may be blank" ;;
        iproute2 | procps | openssh-*) echo "tests on virtual hosts are skipped" ;;
        slurm* | munge) echo "tests with Slurm are skipped" ;;
        dataset-fashion-mnist) echo "notebook 02 trains on scikit-learn's digits" ;;
        python3-venv) echo "python3 -m venv may fail" ;;
        *) echo "what needs it is skipped" ;;
    esac
}

present() {
    if command -v dpkg-query >/dev/null && dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q "ok installed"; then
        return 0
    fi
    # Not every system is Debian, and not every program comes from a package.
    case "$1" in
        chromium) command -v chromium >/dev/null ;;
        dataset-fashion-mnist) [ -d /usr/share/datasets/fashion-mnist ] ;;
        python3-venv) python3 -c "import ensurepip" 2>/dev/null ;;
        make) command -v make >/dev/null ;;
        *) return 1 ;;
    esac
}

missing=()
for package in "$@"; do
    present "$package" || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

reason=""
if [ "${HPCNB_APT:-1}" = 0 ]; then
    reason="HPCNB_APT=0"
elif ! command -v apt-get >/dev/null; then
    reason="there is no apt-get"
elif [ "$(id -u)" != 0 ]; then
    reason="you are not root"
else
    echo "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    log="$(mktemp)"
    trap 'rm -f "$log"' EXIT
    if apt-get update -qq >"$log" 2>&1 </dev/null &&
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$log" 2>&1 </dev/null; then
        exit 0
    fi
    tail -n 5 "$log"
    reason="apt-get failed (its last lines are above)"
fi
for package in "${missing[@]}"; do
    echo "not installed: $package ($reason): $(consequence "$package")"
done
