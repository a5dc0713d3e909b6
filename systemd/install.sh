#!/bin/sh
# Installs this checkout as a service, removes it again, or lays out its files below DESTDIR for a package.
set -eu
# What a person's umask hides, the agent's user could not read.
umask 022
checkout=$(cd "$(dirname "$0")/.." && pwd)
prefix=/opt/upkeep
lib=/usr/local/lib
etc=/etc/upkeep
units="upkeep.service upkeep-ops.socket upkeep-ops.service upkeep-gpu.socket upkeep-gpu.service"
destdir=${DESTDIR:-}

usage() {
    cat <<'END'
usage: install.sh [--uninstall]
Installs the agent in /opt/upkeep, its units and its user, and a configuration in /etc/upkeep where there is none.
Running it again upgrades. With DESTDIR it only lays out units, user and folders below that, and needs no root.
  --uninstall   remove all of it but the configuration, the state in /var/lib/upkeep and the user
END
}

say() { echo "$*"; }
fail() { echo "install.sh: $*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || fail "cannot $1: it needs root; run: sudo ./dev install, or set DESTDIR"
}

booted() { [ -d /run/systemd/system ]; }

# put SOURCE FOLDER
put() {
    install -D -m 644 "$1" "$destdir$2/$(basename "$1")"
    say "written   $destdir$2/$(basename "$1")"
}

put_files() {
    for unit in $units; do put "$checkout/systemd/$unit" "$lib/systemd/system"; done
    put "$checkout/systemd/sysusers.d/upkeep.conf" "$lib/sysusers.d"
    put "$checkout/systemd/tmpfiles.d/upkeep.conf" "$lib/tmpfiles.d"
    put "$checkout/docs/how-to/install.md" "$prefix/share/doc/upkeep"
    install -d "$destdir/usr/local/bin"
    ln -sfn "$prefix/bin/upkeep" "$destdir/usr/local/bin/upkeep"
    say "written   $destdir/usr/local/bin/upkeep"
}

# The system's Python only: one in somebody's home is out of reach for the agent's user.
find_python() {
    for python in python3.13 python3.12 python3.11 python3; do
        found=$(PATH=/usr/local/bin:/usr/bin:/bin command -v "$python") || continue
        "$found" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null && { echo "$found"; return; }
    done
    fail "cannot make $prefix: no Python from 3.11 to 3.13 with venv in the system; run: apt-get install python3-venv"
}

pip() {
    "$prefix/bin/python" -I -m pip --disable-pip-version-check --quiet "$@" >"$log" 2>&1 && return
    tail -15 "$log" >&2
    fail "cannot install the Python packages into $prefix"
}

put_program() {
    if ! "$prefix/bin/python" -c '' 2>/dev/null; then
        python=$(find_python)
        "$python" -m venv --clear "$prefix"
    fi
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    pip install --require-hashes -r "$checkout/requirements.lock"
    pip install --no-deps --no-build-isolation --force-reinstall "$checkout"
    say "installed $prefix ($(du -sm "$prefix" | cut -f1) MB): $("$prefix/bin/upkeep" --version)"
}

# What is there belongs to a person and stays; a policy is never widened in passing.
put_configuration() {
    [ -e "$etc/upkeep.yaml" ] || "$prefix/bin/upkeep" init --system "$etc" >/dev/null
    say "in force  $etc/upkeep.yaml"
    policy=$("$prefix/bin/upkeep" ops policy --config "$etc/upkeep.yaml")
    if [ ! -e "$etc/ops.json" ]; then
        echo "$policy" >"$etc/ops.json.new"
        mv "$etc/ops.json.new" "$etc/ops.json"
        say "written   $etc/ops.json"
    elif [ "$policy" = "$(cat "$etc/ops.json")" ]; then
        say "in force  $etc/ops.json"
    else
        say "kept      $etc/ops.json, which is not what $etc/upkeep.yaml asks for; to take that over, write"
        say "          what 'upkeep ops policy' prints to it and run: sudo systemctl restart upkeep-ops.socket"
    fi
}

install_all() {
    if [ -n "$destdir" ]; then
        put_files
        return
    fi
    need_root install
    command -v systemd-sysusers >/dev/null || fail "cannot install: this host has no systemd"
    put_program
    put_files
    systemd-sysusers "$lib/sysusers.d/upkeep.conf"
    systemd-tmpfiles --create "$lib/tmpfiles.d/upkeep.conf"
    put_configuration
    if booted; then
        systemctl daemon-reload
        # shellcheck disable=SC2086
        systemctl try-restart $units
    fi
    say "next      upkeep check && sudo systemctl enable --now upkeep-ops.socket upkeep-gpu.socket upkeep.service"
}

uninstall() {
    if [ -z "$destdir" ]; then
        need_root uninstall
        # shellcheck disable=SC2086
        if booted; then systemctl disable --quiet --now $units 2>/dev/null || true; fi
    fi
    for unit in $units; do rm -f "$destdir$lib/systemd/system/$unit"; done
    rm -f "$destdir$lib/sysusers.d/upkeep.conf" "$destdir$lib/tmpfiles.d/upkeep.conf" "$destdir/usr/local/bin/upkeep"
    rm -rf "$destdir$prefix" "$destdir/var/cache/upkeep"
    if [ -z "$destdir" ] && booted; then systemctl daemon-reload; fi
    say "removed   $destdir$prefix, units, commands"
    say "kept      $destdir$etc, $destdir/var/lib/upkeep, user upkeep"
}

case ${1:-} in
"") install_all ;;
--uninstall) uninstall ;;
-h | --help) usage ;;
*) usage >&2; exit 2 ;;
esac
