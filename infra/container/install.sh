#!/usr/bin/env bash
# Installs slidesam into /opt/slidesam on a bare Debian 12, as root: every step that makes the container image.
#
#   EXTRAS="micro-sam dashboard" install.sh    the default; EXTRAS= for neither torch nor micro-sam
#
# The sources are those around this file. Versions come from requirements.lock. Running it again makes the environment anew.
# Where packages come from is the caller's affair (pip's settings, PIP_CERT, SSL_CERT_FILE, proxies); nothing of it is kept in the image.
set -euo pipefail

read -ra extras <<<"${EXTRAS-micro-sam dashboard}"
target=/opt/slidesam
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# All locked packages are wheels and numba brings its own compiler, so that none is needed.
apt-get update -qq
apt-get install -y -qq --no-install-recommends ca-certificates python3 python3-venv

# pip carries certificates of its own; the image's can be added to by whoever builds it.
export SSL_CERT_FILE=${SSL_CERT_FILE:-${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}}
export PIP_CERT=${PIP_CERT:-$SSL_CERT_FILE}

# An installer would pass over an extra that it doesn't know, and the workers would lack it.
python3 - "$source/pyproject.toml" "${extras[@]}" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    known = tomllib.load(file)["project"]["optional-dependencies"]
unknown = [extra for extra in sys.argv[2:] if extra not in known]
if unknown:
    sys.exit(f"EXTRAS: slidesam has no {', '.join(unknown)}; it has {', '.join(known)}")
PYTHON

# Beside the target, where there is room for it. Building leaves files in the sources, so that a copy is built.
work=$(mktemp -d /opt/.slidesam-build.XXXXXX)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
mkdir "$work/source"
cp -r "$source"/{pyproject.toml,README.md,LICENSE,requirements.lock,api,flows,tasks} "$work/source"

# requirements.lock names more than is wanted here (all extras, tests, linters): it bounds versions, of what builds too;
# pyproject.toml selects. Compiled to bytecode as it is installed, since the image can't be written to later.
python3 -m venv "$work/tools"
python3 -m venv --clear --without-pip "$target"
chosen=$(IFS=,; echo "${extras[*]}")
PIP_CONSTRAINT="$work/source/requirements.lock" "$work/tools/bin/python" -m pip --python "$target/bin/python" \
    --disable-pip-version-check --no-cache-dir install --quiet "$work/source${chosen:+[$chosen]}"

apt-get clean
rm -rf /var/lib/apt/lists/*
